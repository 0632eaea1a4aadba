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
from ..types import METADATA_KEY, Artifact, OpTime, Precision, Quantized, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner, Stopwatch
from ._signal_stack import signal_stack_kept

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

_LAYERS = {"Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul"}
_KEEPS_WEIGHTS = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize", "Unsqueeze", "Squeeze"}
_PROFILE_WARM_UP = 3


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Convert the torch.export program, quantize with NNCF where asked, save .xml and .bin."""
    import openvino

    from ..models.graph import capture

    program = capture(module, draft.spec)

    model = openvino.convert_model(program)
    model.inputs[0].get_tensor().set_names({"image"})
    model.outputs[0].get_tensor().set_names({"logits"})
    model.reshape({"image": [1, *draft.spec.size]})  # the converter leaves every side open
    if draft.precision is Precision.W8A8:
        assert calibration is not None  # checked by Target.export
        model = _quantize(model, calibration)
    artifact = draft
    if draft.precision.is_quantized:
        artifact = dataclasses.replace(draft, quantized=count_quantized(model))
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


def _quantize(model: Any, calibration: NDArray[np.float32]) -> Any:
    import nncf

    images = nncf.Dataset([image[None] for image in calibration])
    with signal_stack_kept():
        return nncf.quantize(model, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))


def count_quantized(model: Any) -> Quantized:
    """Count convolutions and products with a constant whose weights are stored as 8-bit integers, of all of them."""
    kinds = []
    for node in model.get_ops():
        if node.get_type_name() in _LAYERS:
            stored = [kind for i in range(2) if (kind := _stored_type(node.input_value(i).get_node()))]
            kinds += [stored[0] in ("i8", "u8")] if stored else []
    return Quantized(layers=sum(kinds), of=len(kinds))


def _stored_type(node: Any) -> str | None:
    """Element type of the constant behind a layer's operand; None for an activation."""
    while node.get_type_name() in _KEEPS_WEIGHTS:
        node = node.input_value(0).get_node()
    return node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else None


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

    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "bf16" if artifact.precision is Precision.BF16 else "f32",
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
            Precision.W8A8: "NNCF post-training quantization, transformer preset (smooth quant, bias correction)",
        },
        packages=("openvino", "nncf"),
        extra="openvino",
        write=write,
        open=open_runner,
        embedded=embedded,
        files=files,
    ),
)
