"""From an exported torch program to records: the graph before conversion, where every module path is still known."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from ...errors import CheckFailed
from .graph import OpRecord, Tensor
from .lowering import REMOVED, lower
from .simplify import simplify

_DTYPES = {torch.bool: "bool", torch.int64: "int32", torch.int32: "int32", torch.int8: "int8", torch.uint8: "uint8"}
_WEIGHT_BYTES = 2  # of an element, as the 16-bit package stores it


def torch_records(program: ExportedProgram, wrapper: str = "module") -> tuple[OpRecord, ...]:
    """The operations that a 16-bit package of `program` would hold, each with its module and line of code.

    wrapper: attribute under which the model sits in what was exported; it is left out of the paths. Operations on
    constants alone are computed at conversion and left out. Casts to and from 16 bits stand at both ends. Raises
    CheckFailed for control flow.
    """
    graph = program.run_decompositions({}).graph
    walker = _Walker(set(program.graph_signature.user_inputs), wrapper)
    for node in graph.nodes:
        walker.visit(node)
    return simplify(walker.ops)


class _Walker:
    """Walks the nodes in order, following which values are constants and which are other names of one value."""

    def __init__(self, images: set[str], wrapper: str) -> None:
        self.images = images
        self.wrapper = wrapper
        self.ops: list[OpRecord] = []
        self.values: dict[Node, tuple[Tensor, ...]] = {}  # of activations; a node that is missing is a constant
        self.counted: set[Node] = set()

    def visit(self, node: Node) -> None:
        if node.op == "placeholder" and node.name in self.images:
            self._cast_in(node)
        elif node.op == "output":
            for result in (value for value in node.all_input_nodes if value in self.values):
                self._cast_out(result)
        elif node.op == "call_function" and any(argument in self.values for argument in node.all_input_nodes):
            self._call(node)

    def _cast_in(self, node: Node) -> None:
        (inside,) = _tensors(node)
        if not inside.is_float:
            self.values[node] = (inside,)
            return
        outside = replace(inside, name=f"{node.name}/fp32", dtype="fp32")
        self.values[node] = (inside,)
        self.ops.append(OpRecord(kind="cast", name=node.name, inputs=(outside,), outputs=(inside,)))

    def _cast_out(self, node: Node) -> None:
        for value in self.values[node]:
            if value.is_float:
                outside = replace(value, name=f"{value.name}/fp32", dtype="fp32")
                self.ops.append(OpRecord(kind="cast", name=outside.name, inputs=(value,), outputs=(outside,)))

    def _call(self, node: Node) -> None:
        operator = _operator(node)
        if operator.startswith("_assert"):
            return
        if any(argument.op == "get_attr" for argument in node.all_input_nodes):
            raise CheckFailed(f"The model holds a nested graph ({operator}), which an audit cannot look into.")
        if operator == "getitem":
            source, position = node.args[0], node.args[1]
            self.values[node] = (self.values[source][position],)  # type: ignore[index]
            return
        inputs = tuple(
            t for argument in node.all_input_nodes if argument in self.values for t in self.values[argument]
        )
        outputs = _tensors(node)
        nothing_changes = operator in {"expand", "slice", "pad", "constant_pad_nd", "view", "_unsafe_view"}
        if operator in REMOVED or (nothing_changes and inputs[0].shape == outputs[0].shape):
            self.values[node] = (inputs[0],)
            return
        self.values[node] = outputs
        weights = self._weights(node)
        for step in lower(operator, node, inputs, outputs):
            self.ops.append(
                OpRecord(
                    kind=step.kind,
                    name=step.outputs[0].name,
                    inputs=step.inputs,
                    outputs=step.outputs,
                    module=self._module(node),
                    located="module",
                    source=_line(node),
                    weight_bytes=weights,
                    axes=step.axes,
                    dilated=step.dilated,
                    rolled=step.rolled,
                )
            )
            weights = 0

    def _weights(self, node: Node) -> int:
        """Bytes of the constants that this node is the first to read."""
        new = [n for n in node.all_input_nodes if n not in self.values and n not in self.counted]
        self.counted.update(new)
        return sum(math.prod(side or 1 for side in t.shape) * _WEIGHT_BYTES for n in new for t in _tensors(n))

    def _module(self, node: Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        path = str(next(reversed(stack.values()))[0]) if stack else ""
        if path in ("", self.wrapper):  # code of the model itself, or around it
            return "(model)"
        return path.removeprefix(f"{self.wrapper}.")


def _operator(node: Node) -> str:
    """Name without namespace and overload; an in-place form counts as the plain one."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def _tensors(node: Node) -> tuple[Tensor, ...]:
    value = node.meta.get("val")
    several: Iterable[Any] = value if isinstance(value, list | tuple) else [value]
    tensors = [item for item in several if isinstance(item, torch.Tensor)]
    names = [node.name] if len(tensors) == 1 else [f"{node.name}_{i}" for i in range(len(tensors))]
    return tuple(
        Tensor(
            name,
            tuple(side if isinstance(side, int) else None for side in tensor.shape),
            _DTYPES.get(tensor.dtype, "fp16" if tensor.dtype.is_floating_point else "int32"),
        )
        for name, tensor in zip(names, tensors, strict=True)
    )


def _line(node: Node) -> str:
    """File and line of the model's own code that made the node: the innermost frame outside torch.nn."""
    found = ""
    for line in (node.meta.get("stack_trace") or "").splitlines():
        words = line.split('"')
        path = words[1].replace("\\", "/") if len(words) == 3 else ""
        # a graph of torch.fx is code without a file
        if (
            line.lstrip().startswith("File ")
            and path
            and "/torch/nn/" not in path
            and not path.startswith("<eval_with")
        ):
            found = f"{PurePath(words[1]).name}:{words[2].split(',')[1].split()[-1]}"
    return found
