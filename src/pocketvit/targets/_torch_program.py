"""From an nn.Module to an exported program of one image: casting, naming layers, quantizing, counting."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..models.graph import LAYERS, Layer, capture, layers, operator
from ..types import InputSpec, Quantized

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node

_BATCH_NORMS = {"batch_norm", "_native_batch_norm_legit_no_training"}
_INTEGERS = {torch.int8, torch.uint8}
_NAME = "pocketvit_layer"  # in a node's "custom" metadata, which exporting, decomposing and lowering pass on


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


def named(module: nn.Module, spec: InputSpec) -> tuple[GraphModule, tuple[Layer, ...]]:
    """Capture `module` as a graph whose layers' nodes carry their names, see `name_of`, and its layers."""
    program = capture(module, spec)
    found = layers(program)
    nodes = {node.name: node for node in program.graph.nodes}
    for layer in found:
        nodes[layer.node].meta["custom"] = {_NAME: layer.name}
    captured = program.module()
    _shield_shared_convolutions(captured)
    return captured, found


def name_of(node: Node) -> str | None:
    """The layer that this node computes, or a part of; None for all others."""
    return (node.meta.get("custom") or {}).get(_NAME)


def layer_nodes(graph: torch.fx.Graph) -> list[Any]:
    """The nodes that compute a named layer, in order."""
    return [node for node in graph.nodes if operator(node) in LAYERS and name_of(node) is not None]


def observed(module: GraphModule, spec: InputSpec, quantizer: Any, calibration: NDArray[np.float32] | None) -> Any:
    """Quantize after training with PyTorch 2 export (torchao): observe the calibration images, convert.

    Without calibration (dynamic ranges) one grey image is run, so that the weights' ranges are taken.
    """
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    with torch.no_grad():
        prepared = prepare_pt2e(module, quantizer)
        for image in torch.full((1, *spec.size), 0.5) if calibration is None else torch.from_numpy(calibration):
            prepared(image[None])
        return convert_pt2e(prepared)


def exported(module: GraphModule, spec: InputSpec) -> ExportedProgram:
    """Export a rewritten graph again, without the weights it no longer uses."""
    _drop_unused_weights(module)
    with torch.no_grad():
        return torch.export.export(module, (torch.zeros(1, *spec.size),))


def _shield_shared_convolutions(module: GraphModule) -> None:
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


def _drop_unused_weights(module: GraphModule) -> None:
    """Remove the float weights that were replaced; they would be saved along with the integers."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    called = {node.target for node in module.graph.nodes if node.op == "call_module"}
    for name in [name for name, _ in (*module.named_parameters(), *module.named_buffers())]:
        owner, _, attribute = name.rpartition(".")
        if name not in read and owner not in called:
            delattr(module.get_submodule(owner), attribute)


def quantized_layers(program: ExportedProgram) -> dict[str, bool]:
    """For each named layer in a program: whether its weight is stored as integers."""
    images = set(program.graph_signature.user_inputs)
    moving: set[Node] = set()  # what depends on the image
    found: dict[str, bool] = {}
    for node in program.graph.nodes:
        if node.name in images or not moving.isdisjoint(node.all_input_nodes):
            moving.add(node)
    for node in layer_nodes(program.graph):
        constants = [node.args[i] for i in LAYERS[operator(node)] if node.args[i] not in moving]
        name = name_of(node) or ""
        found[name] = found.get(name, True) and any(_of_integers(constant) for constant in constants)
    return found


def _of_integers(constant: Node) -> bool:
    """Whether any stored tensor that a constant is computed from holds integers."""
    if not constant.all_input_nodes:
        return getattr(constant.meta.get("val"), "dtype", None) in _INTEGERS
    return any(_of_integers(part) for part in constant.all_input_nodes)


def count(layers: Iterable[Layer], integers: Mapping[str, bool], reasons: Mapping[str, str], rest: str) -> Quantized:
    """Count the layers whose weights are integers; the others by name, with the reason known, or else `rest`."""
    names = list(dict.fromkeys(layer.name for layer in layers))  # two products with one weight are one layer
    kept = {name: reasons.get(name, rest) for name in names if not integers.get(name, False)}
    return Quantized(layers=len(names) - len(kept), of=len(names), kept=kept)
