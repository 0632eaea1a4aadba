"""Arithmetic on tensors of rank 6 and more, on tensors of rank 5: axes that every operand treats alike become one.

Moves need no such thing: their steps are planned in rank 5 (steps.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .program import REDUCTIONS, Builder, Op, Program, rewrite
from .rearrange import Rearrangement, Shape
from .steps import MAX_RANK


def lower_ranks(program: Program) -> Program:
    """Sums and what goes value by value, with as few axes as their operands' shapes allow where they have too many."""

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op.shape is None or len(op.shape) <= MAX_RANK:
            return builder.again(op, new)
        if op.target in REDUCTIONS and len(op.args) > 2 and op.args[2] is True:
            return _reduced(builder, op, new)
        if torch.Tag.pointwise not in getattr(op.target, "tags", ()):
            return builder.again(op, new)
        runs = _runs([shape for shape in map(_shape, op.args) if shape is not None], op.shape)

        def lowered(value: Any) -> Any:
            shape = _shape(value)
            if shape is None or not shape:
                return new(value) if isinstance(value, Op) else value
            full = (1,) * (len(op.sides) - len(shape)) + shape
            merged = tuple(math.prod(full[axis] for axis in run) for run in runs)
            if isinstance(value, Tensor):
                return value.reshape(merged)
            return builder.move(new(value), Rearrangement.identity(shape).reshape(merged), op.path)

        result = builder.call(op.target, *map(lowered, op.args), path=op.path, **op.kwargs)
        return builder.move(result, Rearrangement.identity(result.sides).reshape(op.sides), op.path)

    return rewrite(program, visit)


def _reduced(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
    """A sum, mean or maximum over runs of axes, each of which is one axis."""
    x, axes = op.args[0], {axis % len(op.sides) for axis in op.args[1]}
    runs: list[list[int]] = []
    for axis in range(len(op.sides)):
        if runs and (runs[-1][-1] in axes) == (axis in axes):
            runs[-1].append(axis)
        else:
            runs.append([axis])
    merged = [math.prod(x.sides[axis] for axis in run) for run in runs]
    given = builder.move(new(x), Rearrangement.identity(x.sides).reshape(merged), op.path)
    over = [place for place, run in enumerate(runs) if run[0] in axes]
    result = builder.call(op.target, given, over, *op.args[2:], path=op.path, **op.kwargs)
    return builder.move(result, Rearrangement.identity(result.sides).reshape(op.sides), op.path)


def _shape(value: Any) -> Shape | None:
    if isinstance(value, Op):
        return value.shape
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _runs(shapes: Sequence[Shape], whole: Shape) -> list[list[int]]:
    """Neighbouring axes that can be one: in every operand both are there, or both are broadcast."""
    full = [(1,) * (len(whole) - len(shape)) + shape for shape in shapes]
    runs: list[list[int]] = []
    for axis in range(len(whole)):
        alike = bool(runs) and all(_alike(shape, whole, runs[-1], axis) for shape in full)
        if alike:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    return runs


def _alike(shape: Shape, whole: Shape, run: list[int], axis: int) -> bool:
    """Whether an operand has all steps of a run of axes and of the next one, or one step of each."""
    axes = [a for a in (*run, axis) if whole[a] > 1]
    return all(shape[a] == whole[a] for a in axes) or all(shape[a] == 1 for a in axes)
