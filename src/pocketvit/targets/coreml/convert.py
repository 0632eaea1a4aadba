"""From a module to a saved package: torch.export, coremltools, weight quantization, operators coremltools lacks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...types import METADATA_KEY, Artifact, Precision, Quantized
from .package import Package
from .program import Op, Program
from .values import Value

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_LAYERS = {"conv": "weight", "conv_transpose": "weight", "linear": "weight", "matmul": "y"}
_KEEPS_WEIGHTS = {"transpose", "reshape", "cast", "squeeze", "expand_dims", "identity"}


def convert(program: ExportedProgram, draft: Artifact) -> None:
    """Write a decomposed `program` as draft.path in the draft's precision; it does not yet say what it is."""
    import coremltools as ct

    _register_missing_operators()
    full = draft.precision is Precision.FP32
    pipeline = ct.PassPipeline.DEFAULT
    if draft.precision is Precision.W8:
        # a constant that a norm and a layer share, as equal zeros of untrained models are, cannot be quantized for one
        pipeline.remove_passes({"common::const_deduplication"})
    model = ct.convert(
        program,
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="image", shape=(1, *draft.spec.size), dtype=np.float32)],
        outputs=[ct.TensorType(name="logits", dtype=np.float32)],
        compute_precision=ct.precision.FLOAT32 if full else ct.precision.FLOAT16,
        minimum_deployment_target=ct.target.iOS16,  # the first with 8-bit weights
        pass_pipeline=pipeline,
        skip_model_load=True,
    )
    if draft.precision is Precision.W8:
        model = _quantize_weights(model)
    model.save(str(draft.path))
    # beside the package's own content coremltools leaves a map for ExecuTorch's debugger, which nothing here reads
    (draft.path / "executorch_debug_handle_mapping.json").unlink(missing_ok=True)


def _quantize_weights(model: Any) -> Any:
    import coremltools.optimize.coreml as optimize

    config = optimize.OpLinearQuantizerConfig(mode="linear_symmetric", weight_threshold=0)
    kinds = {"conv": config, "conv_transpose": config, "linear": config, "matmul": config}
    return optimize.linear_quantize_weights(model, optimize.OptimizationConfig(op_type_configs=kinds))


def describe(package: Package, artifact: Artifact) -> None:
    """Fill in what Xcode shows (a description, an author, the input and the output) and what pocketvit reads."""
    _, height, width = artifact.spec.size
    description = package.spec.description
    description.metadata.shortDescription = (
        f"{artifact.model} ({artifact.precision}){'' if artifact.trained else ', UNTRAINED'}: "
        f"classifies a {width}x{height} image into {artifact.classes} classes."
    )
    description.metadata.author = "pocketvit"
    description.input[0].shortDescription = (
        f"RGB in [0, 1], 1x3x{height}x{width}; normalisation is inside. {artifact.spec.interpolation} resize to "
        f"{artifact.spec.crop_pct:g} of the crop, {artifact.spec.crop_mode} crop."
    )
    description.output[0].shortDescription = f"1x{artifact.classes}; softmax gives probabilities."
    description.metadata.userDefined[METADATA_KEY] = artifact.to_json()


def _register_missing_operators() -> None:
    """Teach coremltools `alias` (the same tensor under another name: Swin) and `addcmul` (x + v a b: ConvNeXt V2)."""
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.frontend.torch.ops import _get_inputs, _get_kwinputs
    from coremltools.converters.mil.frontend.torch.torch_op_registry import _TORCH_OPS_REGISTRY, register_torch_op

    if "alias" in _TORCH_OPS_REGISTRY:
        return

    @register_torch_op
    def alias(context: Any, node: Any) -> None:
        (x,) = _get_inputs(context, node, expected=1)
        context.add(Builder.identity(x=x, name=node.name))

    @register_torch_op
    def addcmul(context: Any, node: Any) -> None:
        x, a, b = _get_inputs(context, node, expected=3)
        value = _get_kwinputs(context, node, "value", default=[None])[0]
        product = Builder.mul(x=a, y=b)
        if value is not None:
            product = Builder.mul(x=product, y=value)
        context.add(Builder.add(x=x, y=product, name=node.name))


def layers(program: Program) -> Quantized:
    """Count convolutions, linears and products with a constant whose weights are unpacked from integers, of all."""
    producers = {output.name: op for op in program.block.ops for output in op.outputs}
    kinds = []
    for op in program.block.ops:
        if op.kind in _LAYERS:
            producer = _origin(op.inputs[_LAYERS[op.kind]][0], producers)
            if producer is not None:
                kinds.append(producer.kind.startswith("constexpr"))
    return Quantized(layers=sum(kinds), of=len(kinds))


def _origin(name: str | Value, producers: Mapping[str, Op]) -> Op | None:
    """Constant behind a value, or None for an activation."""
    while isinstance(name, str) and (op := producers.get(name)) is not None:
        if op.kind not in _KEEPS_WEIGHTS:
            return op if op.kind == "const" or op.kind.startswith("constexpr") else None
        (name,) = op.inputs["x"]
    return None
