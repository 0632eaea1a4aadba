"""The two layouts that an operation can run in, and what a program moves in them.

Every tensor of tokens has two layouts: rows, as the model wrote it, with channels last; or (B, C, 1, S), channels
first, in which a linear layer is a 1x1 convolution (Apple, "Deploying Transformers on the Apple Neural Engine",
principle 1). cut.py chooses between them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import torch
from torch import Tensor

from .program import REDUCTIONS, Op, Program, aten, part, swap
from .rearrange import Rearrangement, Shape, Unaligned
from .steps import MAX_RANK, Plan, padded_bytes, plan

_PER_COPY = 4096  # bytes that one more transpose counts as, so that few large ones win over many small ones


class Layout(IntEnum):
    """How a tensor lies in memory."""

    ROWS = 0
    CHANNELS_FIRST = 1


@lru_cache(maxsize=4096)
def arrangement(shape: Shape, layout: Layout) -> Rearrangement:
    """From a tensor as the program has it to how it lies in memory."""
    same = Rearrangement.identity(shape)
    if layout is Layout.ROWS or not 3 <= len(shape) <= 4:
        extra = len(shape) - MAX_RANK
        return same if extra <= 0 else same.reshape((math.prod(shape[: extra + 1]), *shape[extra + 1 :]))
    channels_first = same.permute((0, len(shape) - 1, *range(1, len(shape) - 1)))
    return channels_first.reshape((shape[0], shape[-1], 1, math.prod(shape[1:-1])))


def stored(shape: Shape, layout: Layout) -> Shape:
    """The shape in memory."""
    return arrangement(shape, layout).shape


@lru_cache(maxsize=8192)
def conversion(wanted: Rearrangement, before: Layout, after: Layout) -> Plan | None:
    """The steps of a move between two layouts; None where they cannot be taken at once."""
    try:
        given = arrangement(wanted.source, before).inverse().then(wanted)
        return plan(given.then(arrangement(wanted.shape, after)))
    except Unaligned:
        return None


def in_place(shape: Shape, before: Layout, after: Layout) -> Plan:
    """The steps from one layout to the other."""
    found = conversion(Rearrangement.identity(shape), before, after)
    assert found is not None
    return found


def may_be_channels_first(op: Op) -> bool:
    """True for an operation that can run in either layout."""
    if op.shape is None or op.target in (None, swap) or not 3 <= len(op.shape) <= 4:
        return False
    rank = len(op.shape)
    if op.is_rearrangement:
        return True
    if not all(_fits(source, op) for source in op.inputs):
        return False
    if op.target is aten.linear.default:
        return isinstance(op.args[0], Op) and isinstance(op.args[1], Tensor)
    if op.target is aten.layer_norm.default:
        return len(op.args[1]) == 1 and _is_divisible(op.args[2] if len(op.args) > 2 else None)
    if op.target is aten.softmax.int:
        return rank == 3 or op.args[1] % rank == 3
    if op.target in REDUCTIONS:
        axes = {axis % rank for axis in op.args[1]}
        return len(op.args) > 2 and op.args[2] is True and (rank == 3 or axes in ({3}, {1, 2}))
    if op.target is aten.matmul.default:
        return rank == 3 and all(isinstance(source, Op) and len(source.sides) == 3 for source in op.args)
    if op.target is part:
        return rank == 3 or op.args[1] == 3
    if op.target is aten.cat.default:
        return rank == 3 or (op.args[1] if len(op.args) > 1 else 0) % rank == 3
    return torch.Tag.pointwise in getattr(op.target, "tags", ()) and not _has_odd_constant(op)


def _fits(source: Op, op: Op) -> bool:
    """True where a source can be read channels first: of the same rank, and with rows that broadcast as one."""
    if source.shape is None or len(source.shape) != len(op.sides):
        return False
    if op.target in (aten.matmul.default, aten.cat.default, part) or len(op.sides) == 3:
        return True
    return source.shape[1:3] in (op.sides[1:3], (1, 1)) or op.target in REDUCTIONS


def _is_divisible(scale: Tensor | None) -> bool:
    """Whether a shift can be divided by the scale, as Core ML's pattern of a norm over channels has it."""
    return scale is None or float(scale.abs().min()) > 1e-2 * float(scale.abs().max())


def _has_odd_constant(op: Op) -> bool:
    return any(isinstance(a, Tensor) and a.ndim > len(op.sides) for a in op.args)


def reads_swapped(op: Op, source: Op) -> bool:
    """True where an operation reads a source in either layout without a copy: a matrix product takes flags for it."""
    return op.target is aten.matmul.default and len(source.sides) == 3


def rows(program: Program) -> dict[Op, Layout]:
    """Every operation as the model wrote it."""
    return dict.fromkeys(program.ops, Layout.ROWS)


@dataclass(frozen=True, slots=True)
class Traffic:
    """bytes: padded, of everything that is read and written. transposes: copies that change the order of axes."""

    bytes: int
    transposes: int

    @property
    def weighed(self) -> int:
        """Bytes, with a little for each transpose."""
        return self.bytes + _PER_COPY * self.transposes


def traffic(program: Program, layouts: Mapping[Op, Layout], *, key_first: bool = False) -> Traffic:
    """What a program moves in these layouts. key_first: as in Preference."""
    total = Traffic(0, 0)
    copies: set[tuple[Op, Layout]] = set()
    for op in program.ops[1:]:
        if op.is_rearrangement:
            total = _sum(total, moved(op.args[1], layouts[op.args[0]], layouts[op]))
            continue
        total = _sum(total, Traffic(own_bytes(op, layouts[op]), 0))
        for source in inputs(op):
            differs = layouts[source] is not layouts[op]
            if differs and (key_first or not reads_swapped(op, source)):
                copies.add((source, layouts[op]))
    if layouts[program.result] is not Layout.ROWS:
        copies.add((program.result, Layout.ROWS))
    for op, layout in copies:
        total = _sum(total, of_plan(in_place(op.sides, layouts[op], layout)))
    return total


def least_traffic(program: Program) -> Traffic:
    """The least that a program can be said to move as the model wrote it.

    Runtimes cut all parts out of one value in one operation, which reads it once, and transpose them in one. A matrix
    product reads either operand with its axes swapped.
    """
    total = traffic(program, rows(program))
    readers = program.readers()
    reads: dict[Op, list[int]] = {}
    transposes: dict[Op, int] = {}
    spared = 0
    for op in program.ops:
        if op.is_rearrangement:
            source, wanted = op.args
            found = least = moved(wanted, Layout.ROWS, Layout.ROWS)
            if feeds_products(op, readers):
                least = min(found, moved(swapped(wanted), Layout.ROWS, Layout.ROWS), key=lambda one: one.weighed)
            spared += found.bytes - least.bytes
            transposes[source] = max(transposes.get(source, 0), least.transposes)
            if not wanted.is_whole:
                reads.setdefault(source, []).append(min(least.bytes, padded_bytes(source.sides)))
    again = sum(sum(those) - max(those) for those in reads.values())
    return Traffic(total.bytes - spared - again, sum(transposes.values()))


def feeds_products(op: Op, readers: Mapping[Op, list[Op]]) -> bool:
    """True where nothing but matrix products reads a matrix."""
    return (
        len(op.sides) > 1 and bool(readers[op]) and all(reader.target is aten.matmul.default for reader in readers[op])
    )


def swapped(wanted: Rearrangement) -> Rearrangement:
    """The same move with the last two axes of the result in the other order."""
    rank = len(wanted.shape)
    return wanted.permute([*range(rank - 2), rank - 1, rank - 2])


def _sum(a: Traffic, b: Traffic) -> Traffic:
    return Traffic(a.bytes + b.bytes, a.transposes + b.transposes)


def of_plan(how: Plan) -> Traffic:
    """What the steps of a plan move."""
    return Traffic(how.bytes, how.transposes)


def inputs(op: Op) -> list[Op]:
    """What an operation reads, each once, without those of several results."""
    return [source for source in dict.fromkeys(op.inputs) if source.shape is not None]


def own_bytes(op: Op, layout: Layout) -> int:
    """Padded bytes that an operation reads and writes."""
    if op.target is swap:
        return 0
    if op.target is part:  # all parts together read the whole once
        source, _, sizes, index = op.args
        read = padded_bytes(stored(source.sides, layout)) * sizes[index] // sum(sizes)
        return read + padded_bytes(stored(op.sides, layout))
    ends = [source.sides for source in inputs(op)] + ([op.shape] if op.shape is not None else [])
    return sum(padded_bytes(stored(shape, layout)) for shape in ends)


def moved(wanted: Rearrangement, before: Layout, after: Layout) -> Traffic:
    """What a move between two layouts moves, by way of rows where it cannot be taken at once."""
    found = conversion(wanted, before, after)
    if found is not None:
        return of_plan(found)
    middle = conversion(wanted, Layout.ROWS, Layout.ROWS)
    if middle is None:
        raise Unaligned
    ends = in_place(wanted.source, before, Layout.ROWS), in_place(wanted.shape, Layout.ROWS, after)
    return _sum(_sum(of_plan(ends[0]), of_plan(middle)), of_plan(ends[1]))
