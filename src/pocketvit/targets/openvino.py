"""OpenVINO IR (.xml and .bin), run on the CPU; metadata in the model's rt_info.

Every file runs with the precision it is named after on any machine: OpenVINO's own default would silently compute an
fp32 file in bfloat16 where the CPU can.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from ..errors import BadInput
from ..types import METADATA_KEY, Artifact, Calibrator, OpTime, Precision, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner, Stopwatch
from ._signal_stack import signal_stack_kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

_PROFILE_WARM_UP = 3
_CALIBRATORS = (Calibrator.MINMAX, Calibrator.PERCENTILE, Calibrator.MSE)  # the default first


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Convert the torch.export program, quantize with NNCF where asked, save .xml and .bin."""
    import openvino

    from ..models.graph import capture
    from ._openvino_attention import spell_out_four_keys
    from ._openvino_quantize import convert, quantize

    model = convert(capture(module, draft.spec))
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    model.reshape({"image": [1, *draft.spec.size]})  # the converter leaves every side open
    spell_out_four_keys(model)
    artifact = draft
    if draft.precision.is_quantized:
        calibrator = draft.quantization.calibrator or _CALIBRATORS[0]
        model, quantized = quantize(model, draft, calibration, calibrator)
        artifact = dataclasses.replace(draft, quantized=quantized)
    model.set_rt_info(artifact.to_json(), [METADATA_KEY])
    compress = draft.precision in (Precision.FP16, Precision.BF16)
    try:
        openvino.save_model(model, str(draft.path), compress_to_fp16=compress)
    except RuntimeError as error:
        # on a full disk OpenVINO says "iostream error" and deletes what it wrote: afterwards the disk looks fine
        weights = sum(node.data.nbytes for node in model.get_ops() if node.get_type_name() == "Constant")
        if shutil.disk_usage(draft.path.parent).free < weights:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise
    return artifact


def open_runner(artifact: Artifact, threads: int) -> Runner:
    """Compile for the CPU, tuned for latency, computing in the precision the file was made for."""
    with damage_reported(artifact.path, "OpenVINO"):
        compiled = _compile(artifact, threads, profiling=False)
        shapes = [tuple(port.shape) for port in (*compiled.inputs, *compiled.outputs)]
        names = [sorted(port.get_names()) for port in (*compiled.inputs, *compiled.outputs)]
    if names != [["image"], ["logits"]]:
        raise BadInput(f"{artifact.path} does not map one 'image' to one 'logits'; export it again.")
    check_shapes(artifact, shapes[0], shapes[1])
    request = compiled.create_infer_request()

    def run_one(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return request.infer({"image": image}, share_inputs=True, share_outputs=True)[0]

    def profiled(image: NDArray[np.float32], runs: int) -> tuple[OpTime, ...]:
        return _profile(artifact, threads, image, runs)

    return FileRunner(artifact, threads, run_one, profiled)


def _compile(artifact: Artifact, threads: int, *, profiling: bool) -> Any:
    import openvino

    from ._openvino_quantize import DYNAMIC_GROUP

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if artifact.precision is Precision.BF16 else "f32",
        # 8-bit products wherever weights are compressed are OpenVINO's default, on CPUs that have them
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": DYNAMIC_GROUP if artifact.precision is Precision.W8A8_DYNAMIC else 0,
        "PERF_COUNT": profiling,
    }
    with signal_stack_kept():
        core = openvino.Core()
        return core.compile_model(core.read_model(str(artifact.path)), "CPU", settings)


def _profile(artifact: Artifact, threads: int, image: NDArray[np.float32], runs: int) -> tuple[OpTime, ...]:
    request = _compile(artifact, threads, profiling=True).create_infer_request()
    watch = Stopwatch()
    for run in range(_PROFILE_WARM_UP + runs):
        request.infer({"image": image})
        if run >= _PROFILE_WARM_UP:
            for node in request.get_profiling_info():
                if node.status == node.Status.EXECUTED:
                    watch.add(node.node_type, node.real_time.total_seconds() * 1000)
    return watch.per_run(runs)


def embedded(path: Path) -> str:
    """Return the JSON in rt_info; reads the .xml only, without OpenVINO."""
    with damage_reported(path, "OpenVINO"):
        root = ElementTree.fromstring(path.read_bytes())
        entry = root.find(f"rt_info/{METADATA_KEY}") if root.tag == "net" else None
        text = None if entry is None else entry.get("value")
        if text is None:
            raise NotOurs(path)
        check_metadata_size(path, len(text))
        return text


def files(path: Path) -> list[Path]:
    """The .xml and the .bin beside it."""
    return [path, path.with_suffix(".bin")]


TARGETS.add(
    "openvino",
    Target(
        name="openvino",
        suffix=".xml",
        precisions={
            Precision.FP32: "OpenVINO converter, float32 weights and arithmetic",
            Precision.FP16: "OpenVINO converter, weights compressed to float16, arithmetic in float32",
            Precision.BF16: "weights compressed to float16, arithmetic in bfloat16 on CPUs that have it",
            Precision.W8: "NNCF weight compression, per output channel, arithmetic in float32",
            Precision.W8A8: "NNCF post-training quantization, transformer preset (smooth quant, bias correction)",
            Precision.W8A8_DYNAMIC: "NNCF weight compression; products in 8 bits with activation ranges taken at run "
            "time, of 32 neighbours each (DYNAMIC_QUANTIZATION_GROUP_SIZE), convolutions in float32",
            Precision.W4: "NNCF weight compression in groups, by GPTQ where there are calibration images, arithmetic "
            "in float32; convolutions with 8-bit weights",
        },
        calibrators=_CALIBRATORS,
        packages=("openvino", "nncf"),
        extra="openvino",
        write=write,
        open=open_runner,
        embedded=embedded,
        files=files,
    ),
)
