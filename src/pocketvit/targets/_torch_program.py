"""From an nn.Module to an exported program of one image: capturing, casting, PyTorch's own quantization, counting."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.graph import KEEPS_WEIGHTS, LAYERS, capture, operator
from ..types import InputSpec, Quantized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.export import ExportedProgram

_BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}


class Cast(nn.Module):
    """Runs a module in another float type, between a float32 image and float32 logits."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.module = module
        self.dtype = dtype

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Map float32 (1, C, H, W) to float32 (1, classes)."""
        return self.module(image.to(self.dtype)).float()


def cast(module: nn.Module, dtype: str) -> nn.Module:
    """Return a copy of `module` with weights and arithmetic in `dtype` (float16, bfloat16)."""
    kind = getattr(torch, dtype)
    return Cast(copy.deepcopy(module).to(kind), kind).eval()


def quantize(
    module: nn.Module, spec: InputSpec, quantizer: Any, calibration: NDArray[np.float32] | None
) -> ExportedProgram:
    """Quantize after training with PyTorch 2 export (torchao): observe the calibration images, convert, export again.

    Without calibration (dynamic ranges) one grey image is run, so that the weights' ranges are taken.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        captured = capture(module, spec).module()
        _shield_shared_convolutions(captured)
        prepared = prepare_pt2e(captured, quantizer)
        for image in torch.full((1, *spec.size), 0.5) if calibration is None else torch.from_numpy(calibration):
            prepared(image[None])
        converted = convert_pt2e(prepared)
        _drop_unused_weights(converted)
        return torch.export.export(converted, (torch.zeros(1, *spec.size),))


def _shield_shared_convolutions(module: torch.fx.GraphModule) -> None:
    """Put a copy between a batch norm and a convolution that others read as well.

    torchao folds a norm into the convolution before it without asking who else reads that, and would normalise the
    shortcut of a block that starts with a norm (MOAT's). It does not look through a copy, which backends drop.
    """
    for norm in [node for node in module.graph.nodes if operator(node) in _BATCH_NORMS]:
        before = norm.args[0]
        if operator(before).startswith("conv") and len(before.users) > 1:
            with module.graph.inserting_after(before):
                copied = module.graph.call_function(torch.ops.aten.clone.default, (before,))
            copied.meta = {"val": before.meta["val"]}  # not where it came from, or it would count as the convolution's
            norm.replace_input_with(before, copied)
    module.recompile()


def _drop_unused_weights(module: torch.fx.GraphModule) -> None:
    """Remove the float weights that conversion replaced; they would be saved along with the integers."""
    used = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers()) if name not in used]:
        owner, _, attribute = name.rpartition(".")
        delattr(module.get_submodule(owner), attribute)


def count_quantized(program: ExportedProgram) -> Quantized:
    """Count convolutions, linears and products with a constant whose weights are integers, of all of them."""
    images = set(program.graph_signature.user_inputs)
    kinds = []
    for node in program.graph.nodes:
        operands = [node.args[i] for i in LAYERS.get(operator(node), ())]
        stored = [kind for operand in operands if (kind := _stored(operand, images)) is not None]
        kinds += [any(stored)] if stored else []
    return Quantized(layers=sum(kinds), of=len(kinds))


def _stored(argument: Any, images: set[str]) -> bool | None:
    """Whether a constant is stored as integers (behind a dequantize); None for an activation."""
    integer = False
    while isinstance(argument, torch.fx.Node) and argument.op == "call_function":
        name = operator(argument)
        if name.startswith("dequantize_per_"):
            integer = True
        elif name not in KEEPS_WEIGHTS:
            return None
        argument = argument.args[0]
    if not isinstance(argument, torch.fx.Node) or argument.name in images:
        return None
    return integer
