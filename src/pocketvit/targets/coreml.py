"""Core ML packages (.mlpackage, ML programs for iOS 16 and macOS 13 on); metadata in user_defined_metadata.

They run on Apple systems only. On others a saved package gets a structural check: it is read back from disk and its
interface, weights and number formats are compared with what it should hold.
"""

from __future__ import annotations

import dataclasses
import platform
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput, CannotRunHere, CheckFailed
from ..types import METADATA_KEY, Artifact, Precision, Runner
from . import TARGETS, Target
from ._reading import check_metadata_size, check_shapes, damage_reported, no_metadata
from ._runner import FileRunner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

# Folding batch norms into the weights before them removes a few percent of the elements. Tables spelt out at export
# (relative position biases, window masks) add some: a quarter to a Swin of 0.1 M, far less to one of the usual size.
_LEAST, _MOST = 0.9, 1.5


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Convert the torch.export program to an ML program, quantize weights where asked, save the package."""
    import coremltools as ct

    from ._coreml_program import layers, register_missing_operators
    from ._torch_program import capture

    register_missing_operators()
    full = draft.precision is Precision.FP32
    model = ct.convert(
        capture(module, draft.spec).run_decompositions({}),
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="image", shape=(1, *draft.spec.size), dtype=_float32())],
        outputs=[ct.TensorType(name="logits", dtype=_float32())],
        compute_precision=ct.precision.FLOAT32 if full else ct.precision.FLOAT16,
        minimum_deployment_target=ct.target.iOS16,  # the first with 8-bit weights
        skip_model_load=True,
    )
    artifact = draft
    if draft.precision is Precision.W8:
        model = _quantize_weights(model)
        artifact = dataclasses.replace(draft, quantized=layers(model.get_spec()))
    _describe(model, artifact)
    model.save(str(artifact.path))
    return artifact


def _float32() -> Any:
    import numpy as np

    return np.float32


def _quantize_weights(model: Any) -> Any:
    import coremltools.optimize.coreml as optimize

    config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    kinds = {"conv": config, "conv_transpose": config, "linear": config, "matmul": config}
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_type_configs=kinds))


def _describe(model: Any, artifact: Artifact) -> None:
    """Fill in what Xcode shows: a description, an author, the input and the output."""
    _, height, width = artifact.spec.size
    model.short_description = (
        f"{artifact.model} ({artifact.precision}){'' if artifact.trained else ', UNTRAINED'}: "
        f"classifies a {width}x{height} image into {artifact.classes} classes."
    )
    model.author = "pocketvit"
    model.input_description["image"] = (
        f"RGB in [0, 1], 1x3x{height}x{width}; normalisation is inside. {artifact.spec.interpolation} resize to "
        f"{artifact.spec.crop_pct:g} of the crop, {artifact.spec.crop_mode} crop."
    )
    model.output_description["logits"] = f"1x{artifact.classes}; softmax gives probabilities."
    model.user_defined_metadata[METADATA_KEY] = artifact.to_json()


def open_runner(artifact: Artifact, threads: int) -> Runner:
    """Compile and run with MLModel.predict, on macOS; Core ML chooses its own threads and processors.

    Never tried: the machines this was developed on run Linux.
    """
    if platform.system() != "Darwin":
        raise CannotRunHere(
            f"{artifact.path.name} is a Core ML package, which runs on Apple systems, not on {platform.system()}."
        )
    import coremltools as ct

    with damage_reported(artifact.path, "Core ML"):
        model = ct.models.MLModel(str(artifact.path))
        _check_interface(artifact, model.get_spec())

    def run_one(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.predict({"image": image})["logits"]

    return FileRunner(artifact, threads, run_one)


def structure(artifact: Artifact, elements: int) -> str:
    """Check a saved package without running it; return what was found in one sentence, raise CheckFailed otherwise.

    elements: parameters and buffers of the model it came from. The package must hold 0.9 to 1.5 times as many
    weights: batch norms fold into what precedes them, and position tables are spelt out.
    """
    from ._coreml_program import layers, stored_elements

    spec = _spec(artifact.path)
    _check_interface(artifact, spec)
    stored = stored_elements(spec)
    total = sum(stored.values())
    if not _LEAST * elements <= total <= _MOST * elements:
        raise CheckFailed(
            f"{artifact.path} holds {total} weights, {total / max(elements, 1):.2f} times the model's {elements}; "
            f"expected {_LEAST} to {_MOST}."
        )
    counted = layers(spec)
    dtype = {Precision.FP32: "FLOAT32", Precision.FP16: "FLOAT16", Precision.W8: "INT8"}[artifact.precision]
    share = stored.get(dtype, 0) / total
    # small tensors (indices, position tables, norms and biases next to 8-bit layers) keep their own types
    least = 0.5 if artifact.precision is Precision.W8 else 0.99
    if share < least:
        raise CheckFailed(
            f"{artifact.path} stores {share:.0%} of its weights as {dtype}, expected {least:.0%} or more."
        )
    if artifact.quantized is not None and artifact.quantized != counted:
        raise CheckFailed(f"{artifact.path} says {artifact.quantized} layers are quantized, but {counted} are.")
    quantized = f", {counted} layers quantized" if artifact.quantized is not None else ""
    return (
        f"ML program of {operations(spec)} operations, float32 1x3x{artifact.spec.size[1]}x{artifact.spec.size[2]} to "
        f"1x{artifact.classes}, {total} weights for the model's {elements}, {share:.0%} of them {dtype}{quantized}."
    )


def operations(spec: Any) -> int:
    """Number of operations other than constants."""
    from ._coreml_program import program

    return sum(op.type != "const" for op in program(spec))


def _check_interface(artifact: Artifact, spec: Any) -> None:
    if spec.WhichOneof("Type") != "mlProgram":
        raise CheckFailed(f"{artifact.path} holds a {spec.WhichOneof('Type')}, not an ML program.")
    if operations(spec) == 0:
        raise CheckFailed(f"{artifact.path} holds an ML program without operations.")
    ends = [*spec.description.input, *spec.description.output]
    if [end.name for end in ends] != ["image", "logits"]:
        raise CheckFailed(f"{artifact.path} maps {[end.name for end in ends]}, expected one 'image' to one 'logits'.")
    image, logits = (end.type.multiArrayType for end in ends)
    for end, array in zip(ends, (image, logits), strict=True):
        if array.dataType != array.FLOAT32:
            raise CheckFailed(f"{artifact.path} does not take its {end.name} as float32.")
    check_shapes(artifact, image.shape, logits.shape)


def embedded(path: Path) -> str:
    """Return the JSON from user_defined_metadata; the weights are not read."""
    text = _spec(path).description.metadata.userDefined.get(METADATA_KEY)
    if text is None:
        raise no_metadata(path)
    check_metadata_size(path, len(text))
    return text


def _spec(path: Path) -> Any:
    """Read the model description from a package on disk."""
    with warnings.catch_warnings(), damage_reported(path, "Core ML"):
        warnings.simplefilter("ignore")
        import coremltools as ct

        if not path.is_dir():
            raise BadInput(f"{path} is not a Core ML package: a package is a directory.")
        return ct.models.MLModel(str(path), skip_model_load=True).get_spec()


TARGETS.add(
    "coreml",
    Target(
        name="coreml",
        suffix=".mlpackage",
        precisions={
            Precision.FP32: "coremltools ML program, compute precision FLOAT32",
            Precision.FP16: "coremltools ML program, compute precision FLOAT16",
            Precision.W8: "coremltools linear_quantize_weights, symmetric per channel, on the FLOAT16 program",
        },
        packages=("coremltools",),
        extra="coreml",
        runs_on_linux=False,
        write=write,
        open=open_runner,
        embedded=embedded,
        structure=structure,
    ),
)
