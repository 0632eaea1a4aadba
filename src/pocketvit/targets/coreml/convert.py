"""From a module to a saved float package: torch.export, coremltools, operators that coremltools lacks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ...types import METADATA_KEY, Artifact, Precision
from .layers import number_nodes, take_names
from .package import Package

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# the oldest system whose operations a precision needs: 8-bit weights, 8-bit activations, scales for groups of weights
_OLDEST = {Precision.W8A8: "iOS17", Precision.W4: "iOS18"}


def convert(program: ExportedProgram, draft: Artifact, *, full: bool | None = None) -> dict[str, str]:
    """Write a decomposed `program` as draft.path, in floats; it does not yet say what it is.

    full: in float32, as a draft of fp32 is; a quantized precision starts from float16. Returns the name of the
    layer, in the user's model, of each operation that carries weights.
    """
    import coremltools as ct

    _register_missing_operators()
    number_nodes(program)
    full = draft.precision is Precision.FP32 if full is None else full
    pipeline = ct.PassPipeline.DEFAULT
    if draft.precision.is_quantized:
        # a constant that a norm and a layer share, as equal zeros of untrained models are, cannot be quantized for one
        pipeline.remove_passes({"common::const_deduplication"})
    model = ct.convert(
        program,
        convert_to="mlprogram",
        inputs=[ct.TensorType(name="image", shape=(1, *draft.spec.size), dtype=np.float32)],
        outputs=[ct.TensorType(name="logits", dtype=np.float32)],
        compute_precision=ct.precision.FLOAT32 if full else ct.precision.FLOAT16,
        minimum_deployment_target=getattr(ct.target, _OLDEST.get(draft.precision, "iOS16")),
        pass_pipeline=pipeline,
        skip_model_load=True,
    )
    model.save(str(draft.path))
    return take_names(draft.path, program)


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
