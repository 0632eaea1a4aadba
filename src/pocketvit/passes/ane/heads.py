"""Attention one head at a time: a softmax and two products per head in place of one of each over all of them.

Apple's attention does so ("split_head"), which its code says reduces latency significantly. Whatever runs between the
cut into heads and their return to channels runs per head: scales, norms, position biases and masks with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .program import REDUCTIONS, Builder, Op, Program, aten, mapped, part, rewrite
from .projections import channel_axis, is_layer
from .rearrange import Rearrangement, Unaligned
from .steps import MAX_RANK

_MOST_HEADS = 64


def split_heads(program: Program) -> Program:
    """Every attention whose heads are cut from channels, and return to them, head by head."""
    seen: set[Op] = set()
    regions: list[_Region] = []
    readers = program.readers()
    for op in program.ops:
        if op.target is aten.softmax.int and op not in seen:
            found = (_region(op, axis, readers) for axis in range(len(op.sides) - 2))
            region = next((one for one in found if one is not None and not seen & set(one.axes)), None)
            if region is not None:
                regions.append(region)
                seen |= set(region.axes)
    return _split(program, regions)


class _Region:
    """Operations that run per head: each with the axis that its heads lie along. joins: what ends them."""

    def __init__(self, heads: int) -> None:
        self.heads = heads
        self.axes: dict[Op, int] = {}
        self.joins: list[Op] = []


def _region(softmax: Op, axis: int, readers: dict[Op, list[Op]]) -> _Region | None:
    """What runs per head with a softmax, if its heads lie along an axis and were cut from channels; else None."""
    if not 1 < softmax.sides[axis] <= _MOST_HEADS:
        return None
    region = _Region(softmax.sides[axis])
    cut_from_channels = False
    waiting = [(softmax, axis)]
    while waiting:
        op, axis = waiting.pop()
        if op in region.axes:
            if region.axes[op] != axis:
                return None
            continue
        if not _runs_per_head(op, axis):
            return None
        if not readers[op]:  # the result itself, which must stay whole
            return None
        region.axes[op] = axis
        for source in op.inputs:
            before = _axis_of(op, source, axis)
            if before is None or source.sides[before] != region.heads:
                continue
            if _runs_per_head(source, before):
                waiting.append((source, before))
            else:
                cut_from_channels |= _is_cut_from_channels(source, before)
        for reader in readers[op]:
            if reader.is_rearrangement:
                after = reader.args[1].axis_behind(axis)
                continues = after is not None and all(_runs_per_head(r, after) for r in readers[reader])
                if continues and readers[reader]:
                    waiting.append((reader, after))
                elif _join_axis(reader.args[1], axis) is not None:
                    region.joins.append(reader)
                else:
                    return None
            else:
                shift = len(reader.sides) - len(op.sides) if reader.shape is not None else -1
                if reader.shape is None or not _runs_per_head(reader, axis + shift):
                    return None
                waiting.append((reader, axis + shift))
    return region if region.joins and cut_from_channels else None


def _is_cut_from_channels(value: Op, axis: int) -> bool:
    """True for an axis that is a factor of a layer's channels, or of whatever else lies along a last axis."""
    if not value.is_rearrangement:
        return False
    source, wanted = value.args
    channels = channel_axis(source) if is_layer(source) else len(source.sides) - 1
    try:
        fine, groups = wanted.aligned()
    except Unaligned:
        return False
    return bool(groups[axis]) and all(fine.atoms[i].axis == channels for i in groups[axis])


def _runs_per_head(op: Op, axis: int) -> bool:
    """True where each step of an axis of the result is made of that step alone."""
    if op.shape is None or op.target is None or axis < 0:
        return False
    if op.is_rearrangement:
        source, wanted = op.args
        before = wanted.axis_before(axis)
        return before is not None and not is_layer(source) and _runs_per_head(source, before)
    if op.target is aten.softmax.int:
        return op.args[1] % len(op.sides) != axis
    if op.target is aten.layer_norm.default:
        return axis < len(op.sides) - len(op.args[1])
    if op.target is aten.matmul.default:
        return axis < len(op.sides) - 2
    if op.target in REDUCTIONS:
        return axis not in [a % len(op.sides) for a in op.args[1]] and len(op.args) > 2 and op.args[2] is True
    if op.target is aten.linalg_vector_norm.default:
        kept = len(op.args) > 3 and op.args[3] is True
        return kept and axis not in [a % len(op.sides) for a in op.args[2] or range(len(op.sides))]
    if op.target is aten.cat.default:
        return (op.args[1] if len(op.args) > 1 else 0) % len(op.sides) != axis
    return torch.Tag.pointwise in getattr(op.target, "tags", ())


def _axis_of(op: Op, source: Op, axis: int) -> int | None:
    """The axis of a source that an operation's axis is; None where the source has none, or one step."""
    if op.is_rearrangement:
        return op.args[1].axis_before(axis)
    if source.shape is None:
        return None
    before = axis - (len(op.sides) - len(source.sides))
    return before if before >= 0 else None


def _join_axis(wanted: Rearrangement, axis: int) -> int | None:
    """The axis of the result along which the results of the heads follow one another."""
    try:
        fine, groups = wanted.aligned()
    except Unaligned:
        return None
    own = [i for i, atom in enumerate(fine.atoms) if atom.axis == axis]
    if not own or not all(fine.atoms[i].is_whole for i in own):
        return None
    for place, group in enumerate(groups):
        if group[: len(own)] == own:
            return place if len(group) > len(own) else None
    return None


def _split(program: Program, regions: list[_Region]) -> Program:
    region_of = {op: region for region in regions for op in region.axes}
    join_of = {op: region for region in regions for op in region.joins}
    pieces: dict[Op, list[Op]] = {}

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op in join_of:
            region = join_of[op]
            source, wanted = op.args
            axis = region.axes[source]
            along = _join_axis(wanted, axis)
            without = _without(wanted, axis, along, region.heads)
            parts = [builder.move(piece, without, op.path) for piece in pieces[source]]
            return builder.call(aten.cat.default, parts, along, path=op.path)
        if op not in region_of:
            return builder.again(op, new)
        region = region_of[op]
        axis = region.axes[op]
        pieces[op] = [_piece(builder, op, axis, head, region, pieces, new) for head in range(region.heads)]
        return pieces[op][0]  # not used: whatever reads the operation is in the region, or joins it

    return rewrite(program, visit)


def _piece(
    builder: Builder,
    op: Op,
    axis: int,
    head: int,
    region: _Region,
    pieces: dict[Op, list[Op]],
    new: Callable[[Op], Any],
) -> Op:
    """One head's share of an operation, without the axis of heads."""
    if op.is_rearrangement:
        source, wanted = op.args
        return builder.move(pieces[source][head], _without(wanted, region.axes[source], None, 1), op.path)

    def share(value: Any) -> Any:
        if isinstance(value, Op):
            if value in pieces and value in region.axes:
                return pieces[value][head]
            return _leaf(builder, value, axis - (len(op.sides) - len(value.sides)), head, new)
        if isinstance(value, Tensor) and value.ndim and op.target is not aten.layer_norm.default:
            at = axis - (len(op.sides) - value.ndim)
            return value if at < 0 else value.select(at, head if value.shape[at] > 1 else 0)
        if isinstance(value, list):
            return [share(item) for item in value]
        return value

    args = tuple(share(argument) for argument in op.args)
    if op.target is aten.softmax.int:
        args = (args[0], _lower(op.args[1], axis, len(op.sides)), *args[2:])
    elif op.target is aten.linalg_vector_norm.default:
        args = (*args[:2], [_lower(a, axis, len(op.sides)) for a in op.args[2]], *args[3:])
    elif op.target in REDUCTIONS:
        args = (args[0], [_lower(a, axis, len(op.sides)) for a in op.args[1]], *args[2:])
    elif op.target is aten.cat.default:
        args = (args[0], _lower(op.args[1] if len(op.args) > 1 else 0, axis, len(op.sides)))
    return builder.call(op.target, *args, path=op.path, **mapped(op.kwargs, share))


def _leaf(builder: Builder, value: Op, axis: int, head: int, new: Callable[[Op], Any]) -> Op:
    """One head's share of what comes from outside."""
    if axis < 0:
        return new(value)
    index = head if value.sides[axis] > 1 else 0
    if value.is_rearrangement and value.sides[axis] > 1:
        source, wanted = value.args
        along = _cut_axis(wanted, axis)
        if along is not None and len(source.sides) <= MAX_RANK:
            count = value.sides[axis]
            sizes = (source.sides[along] // count,) * count
            one = builder.call(part, new(source), along, sizes, index, path=value.path)
            return builder.move(one, _of_part(wanted, axis, along), value.path)
        try:
            return builder.move(new(source), wanted.select(axis, index), value.path)
        except Unaligned:
            pass
    return builder.move(new(value), Rearrangement.identity(value.sides).select(axis, index), value.path)


def _cut_axis(wanted: Rearrangement, axis: int) -> int | None:
    """The axis of the source that falls into equal parts, one for each step of an axis of the result."""
    try:
        fine, groups = wanted.aligned()
    except Unaligned:
        return None
    (along,) = (
        {fine.atoms[i].axis for i in groups[axis]} if len({fine.atoms[i].axis for i in groups[axis]}) == 1 else (None,)
    )
    own = [i for i, atom in enumerate(fine.atoms) if atom.axis == along]
    whole = all(fine.atoms[i].is_whole for i in own)
    return along if whole and own[: len(groups[axis])] == groups[axis] else None


def _of_part(wanted: Rearrangement, axis: int, along: int) -> Rearrangement:
    """The same move of one part of the source, without the axis of the result that told the parts apart."""
    fine, groups = wanted.aligned()
    kept = [i for i in range(len(fine.atoms)) if i not in groups[axis]]
    side = wanted.source[along] // wanted.shape[axis]
    source = (*wanted.source[:along], side, *wanted.source[along + 1 :])
    order = tuple(kept.index(i) for i in fine.order if i in kept)
    shape = (*wanted.shape[:axis], *wanted.shape[axis + 1 :])
    return Rearrangement(source, tuple(fine.atoms[i] for i in kept), order, shape)


def _lower(number: int, axis: int, rank: int) -> int:
    """An axis' number once another axis is gone."""
    number %= rank
    return number - 1 if number > axis else number


def _without(wanted: Rearrangement, axis: int, along: int | None, heads: int) -> Rearrangement:
    """The same move of something without one axis.

    along: the axis of the result that shrinks for it; None where one of its own goes.
    """
    fine, groups = wanted.aligned()
    own = {i for i, atom in enumerate(fine.atoms) if atom.axis == axis}
    kept = [i for i in range(len(fine.atoms)) if i not in own]
    atoms = tuple(
        replace(fine.atoms[i], axis=fine.atoms[i].axis - (1 if fine.atoms[i].axis > axis else 0)) for i in kept
    )
    order = tuple(kept.index(i) for i in fine.order if i not in own)
    if along is None:
        gone = next(i for i, group in enumerate(groups) if group and set(group) == own)
        shape = (*wanted.shape[:gone], *wanted.shape[gone + 1 :])
    else:
        shape = (*wanted.shape[:along], wanted.shape[along] // heads, *wanted.shape[along + 1 :])
    return Rearrangement((*wanted.source[:axis], *wanted.source[axis + 1 :]), atoms, order, shape)
