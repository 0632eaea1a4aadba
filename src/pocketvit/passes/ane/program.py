"""A model as a list of operations on single images, which the rewrites of this package read and write.

It is torch.export's graph with less to look at: constants are tensors among the arguments, and whatever moves data
without computing is one operation, a Rearrangement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .rearrange import Rearrangement, Shape
from .steps import Permute, Plan, Reshape, Slice, plan

aten = torch.ops.aten
# of a value and its axes, which capture.py makes keep their places with one step
REDUCTIONS = {aten.mean.dim, aten.sum.dim_IntList, aten.amax.default}


@dataclass(eq=False, slots=True)
class Op:
    """One operation.

    target: a torch operator, `rearrange`, or None for the image. args: Ops, constant tensors, plain values and lists
    of them. shape, dtype: of the result; no shape where that is several tensors. path: of the module it came from, ""
    for the model's own code.
    """

    target: Callable[..., Any] | None
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    shape: Shape | None
    path: str = ""
    dtype: torch.dtype = torch.float32

    @property
    def where(self) -> str:
        """Its module in words, for messages."""
        return f"Module '{self.path}'" if self.path else "The model's own code"

    @property
    def inputs(self) -> list[Op]:
        """The operations it reads, in order, each as often as it is read."""
        return list(_ops((self.args, self.kwargs)))

    @property
    def is_rearrangement(self) -> bool:
        """True where data is moved only."""
        return self.target is rearrange

    @property
    def sides(self) -> Shape:
        """The shape, of a single result."""
        assert self.shape is not None
        return self.shape


def _ops(value: Any) -> Iterator[Op]:
    if isinstance(value, Op):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _ops(item)
    elif isinstance(value, dict):
        yield from _ops(list(value.values()))


def mapped(value: Any, change: Callable[[Op], Any]) -> Any:
    """`value` with each Op inside it changed."""
    if isinstance(value, Op):
        return change(value)
    if isinstance(value, list | tuple):
        return type(value)(mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    return value


def rearrange(x: Tensor, wanted: Rearrangement) -> Tensor:
    """Move data as `wanted` says, in steps of rank 5 at most."""
    return carry_out(plan(wanted), x)


def part(x: Tensor, axis: int, sizes: tuple[int, ...], index: int) -> Tensor:
    """One of the parts, of these sizes, that an axis falls into; all of them together are one operation."""
    return x.split(sizes, axis)[index]


def swap(x: Tensor) -> Tensor:
    """A matrix that a product reads with its axes swapped, which takes a flag and moves nothing."""
    return x.transpose(-1, -2)


def carry_out(how: Plan, x: Tensor) -> Tensor:
    """Take the steps of a plan."""
    for step in how.steps:
        match step:
            case Reshape(shape):
                x = x.reshape(shape)
            case Permute(axes):
                x = x.permute(axes)
            case Slice(axis, start, _, every):
                x = aten.slice.Tensor(x, axis, start, step.end, every)
    return x


@dataclass(slots=True)
class Program:
    """ops in order, from the image to the result."""

    ops: list[Op]
    result: Op

    @property
    def image(self) -> Op:
        """What is given."""
        return self.ops[0]

    def readers(self) -> dict[Op, list[Op]]:
        """By operation, those that read it; every operation is a key."""
        found: dict[Op, list[Op]] = {op: [] for op in self.ops}
        for op in self.ops:
            for source in dict.fromkeys(op.inputs):
                found[source].append(op)
        return found

    def without_unused(self) -> Program:
        """The same without what the result does not depend on."""
        needed = {self.image, self.result}
        for op in reversed(self.ops):
            if op in needed:
                needed.update(op.inputs)
        return Program([op for op in self.ops if op in needed], self.result)


@dataclass(slots=True)
class Builder:
    """Writes a new program, operation by operation."""

    ops: list[Op] = field(default_factory=list)

    def image(self, shape: Shape) -> Op:
        """The input."""
        self.ops.append(Op(None, (), {}, shape))
        return self.ops[-1]

    def call(self, target: Callable[..., Any] | None, *args: Any, path: str = "", **kwargs: Any) -> Op:
        """An operation; what shape it gives is found by running it on tensors without data."""
        assert target is not None
        found = target(*mapped_to_meta(args), **mapped_to_meta(kwargs))
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        self.ops.append(Op(target, args, kwargs, shape, path, getattr(found, "dtype", torch.float32)))
        return self.ops[-1]

    def move(self, x: Op, wanted: Rearrangement, path: str = "") -> Op:
        """A rearrangement of x; nothing where nothing moves."""
        if wanted.is_reshape and wanted.shape == wanted.source:
            return x
        self.ops.append(Op(rearrange, (x, wanted), {}, wanted.shape, path, x.dtype))
        return self.ops[-1]

    def again(self, op: Op, new: Callable[[Op], Any]) -> Op:
        """A copy of an operation that reads what `new` gives for what it read."""
        args, kwargs = mapped(op.args, new), mapped(op.kwargs, new)
        if op.is_rearrangement:
            return self.move(args[0], args[1], op.path)
        self.ops.append(Op(op.target, args, kwargs, op.shape, op.path, op.dtype))
        return self.ops[-1]


def mapped_to_meta(value: Any) -> Any:
    """Arguments with every tensor, and every operation's result, replaced by one without data."""
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, list | tuple):
        return type(value)(mapped_to_meta(item) for item in value)
    if isinstance(value, dict):
        return {key: mapped_to_meta(item) for key, item in value.items()}
    if isinstance(value, Op):
        if value.shape is None:
            assert value.target is not None
            return value.target(*mapped_to_meta(value.args), **mapped_to_meta(value.kwargs))
        return torch.empty(value.shape, dtype=value.dtype, device="meta")
    return value


def evaluate(program: Program, image: Tensor) -> Tensor:
    """Run a program as it stands."""
    values: dict[Op, Any] = {program.image: image}
    for op in program.ops[1:]:
        assert op.target is not None
        values[op] = op.target(*mapped(op.args, values.__getitem__), **mapped(op.kwargs, values.__getitem__))
    return values[program.result]


def rewrite(program: Program, visit: Callable[[Builder, Op, Callable[[Op], Any]], Op]) -> Program:
    """A new program, made by calling `visit` for each operation in order with what has become of those before it."""
    builder = Builder()
    new: dict[Op, Op] = {program.image: builder.image(program.image.sides)}
    for op in program.ops[1:]:
        new[op] = visit(builder, op, new.__getitem__)
    return Program(builder.ops, new[program.result]).without_unused()
