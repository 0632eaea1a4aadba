"""A model as a graph: captured with torch.export, and its layers, the operators that carry weights, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

    from ..types import InputSpec

# operators that may carry weights, and which of their arguments could be one
LAYERS = {
    "linear": (1,), "convolution": (1,), "conv1d": (1,), "conv2d": (1,), "conv_transpose2d": (1,),
    "mm": (0, 1), "bmm": (0, 1), "matmul": (0, 1), "addmm": (1, 2),
}  # fmt: skip
KEEPS_WEIGHTS = {
    "permute", "permute_copy", "transpose", "t", "t_copy", "view", "view_copy", "reshape", "unsqueeze",
    "unsqueeze_copy", "squeeze", "squeeze_copy", "expand", "expand_copy", "clone", "_clone_dim_order", "_to_copy",
}  # fmt: skip
_OWN = "module."  # under which `Deployable` holds the user's model


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One operator that carries weights.

    name: the module that holds the weight, in the user's own model ("blocks.0.attn.qkv"). weight: name of the tensor
    in the captured module's state dict. node: name of the node in the graph. kind: the operator ("linear", "conv2d").
    shape: of the weight. operand: which argument of the operator it is. macs: multiplications for one image.
    """

    name: str
    weight: str
    node: str
    kind: str
    shape: tuple[int, ...]
    operand: int
    macs: int

    @property
    def given(self) -> int:
        """Which argument the activation is."""
        return 3 - self.operand if self.kind == "addmm" else 1 - self.operand


def capture(module: nn.Module, spec: InputSpec) -> ExportedProgram:
    """Export `module` for one image of the spec's size."""
    with torch.no_grad():
        return torch.export.export(module, (torch.zeros(1, *spec.size),))


def layers(program: ExportedProgram) -> tuple[Layer, ...]:
    """Every convolution, linear and product with a constant, in the order they are computed."""
    signature = program.graph_signature
    constants: Mapping[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    found = []
    for node in program.graph.nodes:
        kind = operator(node)
        for index in LAYERS.get(kind, ()):
            weight = _constant(node.args[index], constants)
            if weight is None:
                continue
            shape = tuple(node.args[index].meta["val"].shape)
            found.append(
                Layer(
                    name=owner(weight),
                    weight=weight,
                    node=node.name,
                    kind=kind,
                    shape=shape,
                    operand=index,
                    macs=math.prod(node.meta["val"].shape) * _products(kind, shape, index),
                )
            )
            break
    return tuple(found)


def owner(weight: str) -> str:
    """The module that holds a tensor, in the user's own model ("module.head.weight" gives "head")."""
    return weight.removeprefix(_OWN).rpartition(".")[0] or weight


def operator(node: Node) -> str:
    """Operator name without namespace and overload ('aten.linear.default' -> 'linear'); empty for a placeholder."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.split("::")[-1]


def _products(kind: str, shape: tuple[int, ...], index: int) -> int:
    """Multiplications for each number of the result."""
    if kind == "linear" or kind.startswith("conv"):
        return math.prod(shape[1:])
    return shape[-1] if index == 0 else shape[-2]


def _constant(argument: Any, constants: Mapping[str, str]) -> str | None:
    """Name of the tensor behind an operand, seen through what only reshapes it; None for an activation."""
    while isinstance(argument, torch.fx.Node) and argument.op == "call_function":
        if operator(argument) not in KEEPS_WEIGHTS:
            return None
        argument = argument.args[0]
    return constants.get(argument.name) if isinstance(argument, torch.fx.Node) else None
