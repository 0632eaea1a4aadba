"""Moves in a row as one, and several slices of one value as one split."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .program import Builder, Op, Program, part, rewrite
from .rearrange import Rearrangement, Unaligned
from .steps import Cut, cut, plan


def merge_moves(program: Program, *, at_any_cost: bool = False) -> Program:
    """Moves of moves as one move each, where what lies between is not computed with, and no more bytes are moved.

    at_any_cost: more bytes as well, for what is about to be cut out of a layer instead.
    """
    readers = program.readers()
    merged: dict[Op, tuple[Op, Rearrangement]] = {}  # by move: what it reads in the end, and how
    passing: set[Op] = set()
    for op in program.ops:
        if not op.is_rearrangement:
            continue
        source, wanted = op.args
        if source in passing:
            source, wanted = merged[source][0], merged[source][1].then(wanted)
        merged[op] = source, wanted
        if op is not program.result and all(reader.is_rearrangement for reader in readers[op]):
            behind = [reader.args[1] for reader in readers[op]]
            least = math.inf if at_any_cost else _bytes(wanted) + sum(map(_bytes, behind))
            together = _at_once(wanted, behind)
            if together <= least and together < math.inf:
                passing.add(op)

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if not op.is_rearrangement:
            return builder.again(op, new)
        source, wanted = merged[op]
        return builder.move(new(source), wanted, op.path)

    return rewrite(program, visit)


def _at_once(wanted: Rearrangement, behind: list[Rearrangement]) -> float:
    """Bytes of moves that each do with one move what two did; infinite where one cannot."""
    try:
        return sum(_bytes(wanted.then(after)) for after in behind)
    except Unaligned:
        return math.inf


def _bytes(wanted: Rearrangement) -> float:
    """Bytes of a move; infinite where it cannot be taken by itself."""
    try:
        return plan(wanted).bytes
    except Unaligned:
        return math.inf


@dataclass(frozen=True, slots=True)
class _Share:
    """One move's part of a split of its source."""

    cut: Cut
    axis: int
    sizes: tuple[int, ...]
    index: int


def share_cuts(program: Program) -> Program:
    """Moves that between them take all of a value, each a range of the same axis, as parts of one split."""
    by_source: dict[tuple[Op, tuple[int, ...]], dict[Op, Cut]] = {}
    for op in program.ops:
        if op.is_rearrangement and not op.args[1].is_whole:
            try:
                found = cut(op.args[1])
            except Unaligned:
                continue
            by_source.setdefault((op.args[0], found.shape), {})[op] = found
    shares: dict[Op, _Share] = {}
    for cuts in by_source.values():
        shares |= _shared(cuts)

    wholes: dict[tuple[Op, tuple[int, ...]], Op] = {}

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        if op not in shares:
            return builder.again(op, new)
        source, share = op.args[0], shares[op]
        key = source, share.cut.shape
        if key not in wholes:
            wholes[key] = builder.move(new(source), Rearrangement.identity(source.sides).reshape(key[1]), op.path)
        one = builder.call(part, wholes[key], share.axis, share.sizes, share.index, path=op.path)
        return builder.move(one, share.cut.left, op.path)

    return rewrite(program, visit)


def _shared(cuts: dict[Op, Cut]) -> dict[Op, _Share]:
    """For moves out of one value: their parts of a split, where their ranges make up one axis."""
    shape = next(iter(cuts.values())).shape
    partial = {one.axis for found in cuts.values() for one in found.slices if one.length < shape[one.axis]}
    if len(partial) != 1:
        return {}
    (axis,) = partial
    ranges = sorted({(found.slices[axis].start, found.slices[axis].length) for found in cuts.values()})
    at = 0
    for start, length in ranges:
        if start != at:
            return {}
        at += length
    if len(ranges) < 2 or at != shape[axis] or any(found.slices[axis].step != 1 for found in cuts.values()):
        return {}
    sizes = tuple(length for _, length in ranges)
    places = {start: index for index, (start, _) in enumerate(ranges)}
    return {op: _Share(found, axis, sizes, places[found.slices[axis].start]) for op, found in cuts.items()}
