"""Relative position biases replaced by smaller forms (A3 of the mission's systems): the function changes.

A relative position bias is a table per head, added to the scores of every window. Single-head: one table for all
heads, their mean. LePE: no table, and a depthwise 3x3 convolution of the values added to what attention gives (CSWin,
arXiv 2107.00652, equations 5 and 6); it starts at zero, to be learnt by fine-tuning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from .program import Builder, Op, Program, aten, rewrite
from .rearrange import Rearrangement

_MASKED = -50.0  # a bias below it is a mask, which stays: a learnt table never is


class Position(StrEnum):
    """What becomes of relative position biases."""

    KEEP = "keep"
    SINGLE_HEAD = "relative_single_head"
    LEPE = "lepe"


def replace_positions(program: Program, position: Position, name: str) -> Program:
    """The program with every bias that differs by head replaced. Raises BadInput where there is none."""
    readers = program.readers()
    biased = {op: bias for op in program.ops if (bias := _bias(op, readers)) is not None}
    if not biased:
        raise BadInput(f"{name} adds no relative position bias to its attention, so there is none to replace.")
    products = {product for op in biased for product in _products(op, readers)}
    if position is Position.LEPE:
        for op in biased:
            _side(op)

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op in biased:
            (scores,), bias = op.inputs, biased[op]
            if position is Position.SINGLE_HEAD:
                shared = bias.mean(-3, keepdim=True)
                return builder.call(op.target, new(scores), shared, path=op.path)
            mask = torch.where(bias < _MASKED, bias, 0.0)
            if not mask.any():
                return new(scores)
            return builder.call(op.target, new(scores), mask, path=op.path)
        if op in products and position is Position.LEPE:
            return _with_lepe(builder, op, new)
        return builder.again(op, new)

    return rewrite(program, visit)


def _bias(op: Op, readers: dict[Op, list[Op]]) -> Tensor | None:
    """The constant that an addition gives to the scores of attention, a different one for each head; else None."""
    if op.target is not aten.add.Tensor or op.shape is None or len(op.shape) < 3 or not _products(op, readers):
        return None
    constants = [a for a in op.args[:2] if isinstance(a, Tensor) and a.ndim >= 3]
    if len(constants) != 1 or constants[0].shape[-3] != op.shape[-3] or op.shape[-3] == 1:
        return None
    if tuple(constants[0].shape[-2:]) != op.shape[-2:] or bool((constants[0] == constants[0][..., :1, :, :]).all()):
        return None
    return constants[0]


def _products(op: Op, readers: dict[Op, list[Op]]) -> list[Op]:
    """The products of a softmax of this with the values, behind nothing but additions and moves."""
    found: list[Op] = []
    waiting = list(readers[op])
    while waiting:
        reader = waiting.pop()
        if reader.target is aten.softmax.int:
            found += [after for after in readers[reader] if after.target is aten.matmul.default]
        elif reader.target is aten.add.Tensor or reader.is_rearrangement:
            waiting += readers[reader]
    return found


def _side(op: Op) -> int:
    """The side of the square window whose scores these are."""
    tokens = op.sides[-1]
    side = math.isqrt(tokens)
    if side * side != tokens or op.sides[-2] != tokens:
        raise BadInput(
            f"{op.where} attends over {op.sides[-2]} x {tokens} tokens, which are no square window; its "
            "position bias cannot become LePE. Choose relative_single_head."
        )
    return side


def _with_lepe(builder: Builder, product: Op, new: Callable[[Op], Any]) -> Op:
    """A product with values (..., heads, S, d) plus their depthwise convolution over the window."""
    values = new(product.args[1])
    *batch, heads, tokens, width = values.sides
    side, count = math.isqrt(tokens), math.prod(batch)
    same = Rearrangement.identity(values.sides).reshape((count, heads, tokens, width))
    maps = builder.move(values, same.permute((0, 1, 3, 2)).reshape((count, heads * width, side, side)), product.path)
    weight = torch.zeros(heads * width, 1, 3, 3)
    local = builder.call(
        aten.conv2d.default, maps, weight, None, [1, 1], [1, 1], [1, 1], heads * width, path=product.path
    )
    back = Rearrangement.identity(local.sides).reshape((count, heads, width, tokens)).permute((0, 1, 3, 2))
    attended = builder.again(product, new)
    return builder.call(
        aten.add.Tensor, attended, builder.move(local, back.reshape(attended.sides)), path=product.path
    )
