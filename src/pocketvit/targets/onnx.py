"""ONNX files, run by ONNX Runtime on the CPU; metadata in the model's metadata_props."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..types import METADATA_KEY, Artifact, Calibrator, OpTime, Precision, Quantized, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner, Stopwatch

if TYPE_CHECKING:
    import numpy as np
    import onnx
    from numpy.typing import NDArray
    from torch import nn

_PROFILE_WARM_UP = 3
_CALIBRATORS = (Calibrator.MSE, Calibrator.PERCENTILE, Calibrator.MINMAX, Calibrator.ENTROPY)  # the default first


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Export through torch.export (dynamo), quantize where asked, save as one file without external data."""
    model, quantized = _graph(module, draft, calibration)
    artifact = dataclasses.replace(draft, quantized=quantized)
    del model.metadata_props[:]
    model.metadata_props.add(key=METADATA_KEY, value=artifact.to_json())
    model.producer_name, model.producer_version = "pocketvit", ""
    artifact.path.write_bytes(model.SerializeToString())
    return artifact


def _graph(
    module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None
) -> tuple[onnx.ModelProto, Quantized | None]:
    """The network in the draft's precision, and how many layers were quantized."""
    from ._onnx_graph import convert

    if draft.precision is Precision.INTEGER:
        from ._onnx_integer import integer_model

        assert calibration is not None  # checked by Target.export
        return integer_model(module, draft, calibration)
    if draft.precision is Precision.FP16:
        from ._torch_program import cast

        return convert(cast(module, "float16"), draft), None
    model = convert(module, draft)
    if not draft.precision.is_quantized:
        return model, None
    from ._onnx_quantize import quantize

    return quantize(model, draft, calibration, draft.quantization.calibrator or _CALIBRATORS[0])


def open_runner(artifact: Artifact, threads: int) -> Runner:
    """Start a session on the CPU; threads do not spin between images, so that other candidates are not disturbed."""
    with damage_reported(artifact.path, "ONNX"):
        _refuse_external_data(artifact.path)
        session = _session(artifact, threads)
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if [i.name for i in inputs] != ["image"] or [o.name for o in outputs] != ["logits"]:
        raise BadInput(f"{artifact.path} does not map one 'image' to one 'logits'; export it again.")
    check_shapes(artifact, inputs[0].shape, outputs[0].shape)

    def run_one(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return session.run(["logits"], {"image": image})[0]

    def profiled(image: NDArray[np.float32], runs: int) -> tuple[OpTime, ...]:
        return _profile(artifact, threads, image, runs)

    return FileRunner(artifact, threads, run_one, profiled)


def _session(artifact: Artifact, threads: int, profile_prefix: str | None = None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if artifact.precision is Precision.INTEGER:  # products of bytes saturate on processors without VNNI otherwise
        options.add_session_config_entry("session.x64quantprecision", "1")
    if artifact.precision in (Precision.W8, Precision.W4):
        # once, when loading: left in the graph, weights are turned into floats again for every image
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if profile_prefix:
        options.enable_profiling = True
        options.profile_file_prefix = profile_prefix
    return onnxruntime.InferenceSession(str(artifact.path), options, providers=["CPUExecutionProvider"])


def _profile(artifact: Artifact, threads: int, image: NDArray[np.float32], runs: int) -> tuple[OpTime, ...]:
    """Run a second session with ONNX Runtime's own profiler; the first runs of each node are warm-up."""
    with tempfile.TemporaryDirectory() as directory:
        session = _session(artifact, threads, str(Path(directory) / "profile"))
        for _ in range(_PROFILE_WARM_UP + runs):
            session.run(["logits"], {"image": image})
        events = json.loads(Path(session.end_profiling()).read_text())
    seen: dict[str, int] = {}
    watch = Stopwatch()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            seen[event["name"]] = seen.get(event["name"], 0) + 1
            if seen[event["name"]] > _PROFILE_WARM_UP:
                watch.add(event["args"]["op_name"], event["dur"] / 1000)
    return watch.per_run(runs)


def _refuse_external_data(path: Path) -> None:
    """Raise BadInput when a tensor lives in another file: ours never do, and the name could point anywhere."""
    import onnx
    from onnx.external_data_helper import _get_all_tensors, uses_external_data

    model = onnx.load(str(path), load_external_data=False)
    if any(uses_external_data(tensor) for tensor in _get_all_tensors(model)):
        raise BadInput(f"{path} keeps weights in other files, which pocketvit never writes and does not open.")


def embedded(path: Path) -> str:
    """Return the JSON in metadata_props."""
    import onnx

    with damage_reported(path, "ONNX"):
        model = onnx.load(str(path), load_external_data=False)
    for prop in model.metadata_props:
        if prop.key == METADATA_KEY:
            check_metadata_size(path, len(prop.value))
            return prop.value
    raise NotOurs(path)


TARGETS.add(
    "onnx",
    Target(
        name="onnx",
        suffix=".onnx",
        precisions={
            Precision.FP32: "torch.onnx dynamo exporter",
            Precision.FP16: "weights and arithmetic in float16; ONNX Runtime casts where the CPU has no kernel",
            Precision.W8: "8-bit weights per output channel behind DequantizeLinear, float arithmetic; loaded without "
            "session.disable_quant_qdq=1 they are dequantized again for every image",
            Precision.W8A8: "ONNX Runtime quantize_static, QDQ, per channel, every layer with weights",
            Precision.W8A8_DYNAMIC: "ONNX Runtime quantize_dynamic, per channel, MatMul and Gemm "
            "(8-bit convolutions run, but slower than float ones)",
            Precision.INTEGER: "I-ViT: only integers between the quantized image and the logits; DeiT- and Swin-style "
            "models",
            Precision.W4: "MatMulNBits in groups, float arithmetic; convolutions with 8-bit weights, as in w8",
        },
        calibrators=_CALIBRATORS,
        packages=("onnx", "onnxscript", "onnxruntime"),
        extra="onnx",
        write=write,
        open=open_runner,
        embedded=embedded,
    ),
)
