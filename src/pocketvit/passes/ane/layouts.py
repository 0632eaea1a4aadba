"""Which operations run channels first: the choice that moves the fewest padded bytes, found as a minimum cut.

Every tensor of tokens has two layouts: rows, as the model wrote it, with channels last; or (B, C, 1, S), channels
first, in which a linear layer is a 1x1 convolution (Apple, "Deploying Transformers on the Apple Neural Engine",
principle 1). An operation costs what it reads and writes in its layout; where two that follow one another disagree, a
copy comes in between. The cheapest assignment of layouts to operations is a minimum cut between "rows" and "channels
first" (Kolmogorov and Zabih, "What energy functions can be minimized via graph cuts?"). So transposes stand where
they cost least, and the assignment that leaves everything as it was is among those compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from .program import REDUCTIONS, Op, Program, aten, part, swap
from .rearrange import Rearrangement, Shape, Unaligned
from .steps import MAX_RANK, Plan, padded_bytes, plan

_UNIT = 64  # bytes that the flow is counted in
_PER_COPY = 4096  # bytes that one more transpose counts as, so that few large ones win over many small ones
_ROUNDS = 8  # of cuts with other layouts for the moves that clash; two or three settle them
_NEVER = 1 << 29  # units: more than any model moves


class Layout(IntEnum):
    """How a tensor lies in memory."""

    ROWS = 0
    CHANNELS_FIRST = 1


@dataclass(frozen=True, slots=True)
class Preference:
    """What is wanted besides few bytes. convolutions: share of a linear's traffic that it may cost to make it a 1x1
    convolution. key_first: keys are transposed before they are cut into heads, rather than inside each product.
    """

    convolutions: float
    key_first: bool


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
        moved = arrangement(wanted.source, before).inverse().then(wanted)
        return plan(moved.then(arrangement(wanted.shape, after)))
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


def choose(program: Program, preference: Preference) -> dict[Op, Layout]:
    """A layout for every operation.

    Keys go into a product the other way round than queries, so that attention closes a circle in which no assignment
    pleases every link. There a move is given a layout first, the rest follows by a cut, and the move then takes what
    suits its neighbours, until nothing changes.
    """
    best: dict[Op, Layout] = {}
    least = None
    for start in Layout:
        fixed: dict[Op, Layout] = {}
        for _ in range(_ROUNDS):
            cut = _Cut(program, preference, fixed, start)
            found = cut.solve()
            total = cut.total(found)
            if least is None or total < least:
                best, least = found, total
            fixed = {op: cut.suits(op, found) for op in cut.clashing}
            if fixed == cut.fixed or total > least:
                break
    return best


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
            total = _sum(total, _moved(op.args[1], layouts[op.args[0]], layouts[op]))
            continue
        total = _sum(total, Traffic(_own(op, layouts[op]), 0))
        for source in _inputs(op):
            differs = layouts[source] is not layouts[op]
            if differs and (key_first or not reads_swapped(op, source)):
                copies.add((source, layouts[op]))
    if layouts[program.result] is not Layout.ROWS:
        copies.add((program.result, Layout.ROWS))
    for op, layout in copies:
        total = _sum(total, _of(in_place(op.sides, layouts[op], layout)))
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
            found = least = _moved(wanted, Layout.ROWS, Layout.ROWS)
            if feeds_products(op, readers):
                least = min(found, _moved(swapped(wanted), Layout.ROWS, Layout.ROWS), key=lambda one: one.weighed)
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


def _of(how: Plan) -> Traffic:
    return Traffic(how.bytes, how.transposes)


def _inputs(op: Op) -> list[Op]:
    return [source for source in dict.fromkeys(op.inputs) if source.shape is not None]


def _own(op: Op, layout: Layout) -> int:
    """Padded bytes that an operation reads and writes."""
    if op.target is swap:
        return 0
    if op.target is part:  # all parts together read the whole once
        source, _, sizes, index = op.args
        read = padded_bytes(stored(source.sides, layout)) * sizes[index] // sum(sizes)
        return read + padded_bytes(stored(op.sides, layout))
    ends = [source.sides for source in _inputs(op)] + ([op.shape] if op.shape is not None else [])
    return sum(padded_bytes(stored(shape, layout)) for shape in ends)


def _moved(wanted: Rearrangement, before: Layout, after: Layout) -> Traffic:
    found = conversion(wanted, before, after)
    if found is not None:
        return _of(found)
    middle = conversion(wanted, Layout.ROWS, Layout.ROWS)
    if middle is None:
        raise Unaligned
    ends = in_place(wanted.source, before, Layout.ROWS), in_place(wanted.shape, Layout.ROWS, after)
    return _sum(_sum(_of(ends[0]), _of(middle)), _of(ends[1]))


class _Cut:
    """The flow network: one node for each operation that has a choice, and two for each value that may be copied."""

    def __init__(self, program: Program, preference: Preference, fixed: Mapping[Op, Layout], start: Layout) -> None:
        self.program = program
        self.preference = preference
        self.readers = program.readers()
        self.free = self._free()
        self.clashing: set[Op] = set()
        self.flipped = self._signs()
        self.fixed = {op: fixed.get(op, start) for op in self.clashing}
        self.nodes = {op: place + 2 for place, op in enumerate(self.flipped)}  # 0 is the source, 1 the sink
        self.count = len(self.nodes) + 2
        self.edges: list[tuple[int, int, int]] = []

    def _signs(self) -> dict[Op, bool]:
        """For every free operation, whether its layouts trade names, so that no link is cheaper between different
        names than between the same. Moves for which that cannot be are clashing.
        """
        group = self._groups(self.free)
        moves: dict[Op, list[tuple[Op, Op, bool]]] = {}
        for op in self.free:
            if op.is_rearrangement and op.args[0] in group:
                costs = self._costs(op)
                opposed = costs[0][0] + costs[1][1] > costs[0][1] + costs[1][0]
                a, b = group[op.args[0]], group[op]
                moves.setdefault(a, []).append((op, b, opposed))
                moves.setdefault(b, []).append((op, a, opposed))
        signs: dict[Op, bool] = {}
        for start in dict.fromkeys(group.values()):
            waiting = [start] if start not in signs else []
            signs.setdefault(start, False)
            while waiting:
                here = waiting.pop(0)
                for op, there, opposed in moves.get(here, ()):
                    if there not in signs:
                        signs[there] = signs[here] ^ opposed
                        waiting.append(there)
                    elif signs[there] != signs[here] ^ opposed:
                        self.clashing.add(op)
        return {op: signs[group[op]] for op in self.free if op not in self.clashing}

    def _free(self) -> list[Op]:
        """Operations that have a choice. Maps do where a layer or norm over their last axis is among those they must
        agree with: of what convolutions read, the last axis is no channels.
        """
        able = [op for op in self.program.ops if may_be_channels_first(op)]
        group = self._groups(able)
        over_last = {group[op] for op in able if op.target in (aten.linear.default, aten.layer_norm.default)}
        return [op for op in able if len(op.sides) == 3 or op.is_rearrangement or group[op] in over_last]

    def _groups(self, ops: list[Op]) -> dict[Op, Op]:
        """For each operation, the one that stands for all that must agree with it or pay for a copy."""
        neighbours: dict[Op, list[Op]] = {op: [] for op in ops}
        for op, source in self._direct():
            if op in neighbours and source in neighbours:
                neighbours[op].append(source)
                neighbours[source].append(op)
        group: dict[Op, Op] = {}
        for start in ops:
            waiting = [start] if start not in group else []
            while waiting:
                op = waiting.pop()
                if op not in group:
                    group[op] = start
                    waiting += neighbours[op]
        return group

    def _direct(self) -> Iterator[tuple[Op, Op]]:
        """Readers that compute, and what they read, where the two layouts must agree or a copy is made."""
        for op in self.program.ops[1:]:
            if not op.is_rearrangement:
                for source in _inputs(op):
                    if self.preference.key_first or not reads_swapped(op, source):
                        yield op, source

    def _costs(self, op: Op) -> list[list[int]]:
        wanted = op.args[1]
        return [[_moved(wanted, before, after).weighed for after in Layout] for before in Layout]

    def solve(self) -> dict[Op, Layout]:
        for op in self.program.ops[1:]:
            if op.is_rearrangement:
                self._link(op)
            elif op in self.nodes:
                self._alone(op, [self._wanted(op, layout) for layout in Layout])
        self._copies()
        return self._assigned(self._source_side())

    def _wanted(self, op: Op, layout: Layout) -> int:
        bytes_ = _own(op, layout)
        if op.target is aten.linear.default and layout is Layout.ROWS:
            return int(bytes_ * (1 + self.preference.convolutions))
        return bytes_

    def _alone(self, op: Op, costs: list[int]) -> None:
        """What each layout of one operation costs."""
        first, second = (costs[1], costs[0]) if self.flipped[op] else (costs[0], costs[1])
        least = min(first, second)
        self._edge(0, self.nodes[op], second - least)
        self._edge(self.nodes[op], 1, first - least)

    def _link(self, op: Op) -> None:
        """What a move costs between each two layouts."""
        source = op.args[0]
        costs = self._costs(op)
        if op not in self.nodes and source not in self.nodes:
            return
        if source not in self.nodes:
            self._alone(op, costs[self._fixed(source)])
        elif op not in self.nodes:
            self._alone(source, [row[self._fixed(op)] for row in costs])
        else:
            if self.flipped[source]:
                costs = [costs[1], costs[0]]
            if self.flipped[op]:
                costs = [[row[1], row[0]] for row in costs]
            a, b = self.nodes[source], self.nodes[op]
            self._signed(a, costs[1][0] - costs[0][0])
            self._signed(b, costs[1][1] - costs[1][0])
            self._edge(a, b, costs[0][1] + costs[1][0] - costs[0][0] - costs[1][1])

    def _signed(self, node: int, second: int) -> None:
        """What a node on the sink's side costs more than on the source's."""
        if second > 0:
            self._edge(0, node, second)
        else:
            self._edge(node, 1, -second)

    def _copies(self) -> None:
        """One copy serves all readers of a value in the layout that is not its own."""
        readers: dict[Op, list[Op | None]] = {}
        for op, source in self._direct():
            readers.setdefault(source, []).append(op)
        readers.setdefault(self.program.result, []).append(None)  # who called the model wants rows
        for source, those in readers.items():
            if not 3 <= len(source.sides) <= 4 or (
                source not in self.nodes and not any(r in self.nodes for r in those)
            ):
                continue
            bytes_ = _of(in_place(source.sides, Layout.ROWS, Layout.CHANNELS_FIRST)).weighed
            for flipped in {self.flipped[op] for op in (source, *those) if op in self.flipped}:
                alike = [r for r in those if r not in self.flipped or self.flipped[r] == flipped]
                if source in self.flipped and self.flipped[source] != flipped:
                    continue
                at = self._node(source, flipped)
                on_sink, on_source = self.count, self.count + 1
                self.count += 2
                self._edge(at, on_sink, bytes_)
                self._edge(on_source, at, bytes_)
                for reader in alike:
                    node = int(flipped) if reader is None else self._node(reader, flipped)
                    self._edge(on_sink, node, _NEVER * _UNIT)
                    self._edge(node, on_source, _NEVER * _UNIT)

    def _fixed(self, op: Op) -> Layout:
        return self.fixed.get(op, Layout.ROWS)

    def _node(self, op: Op, flipped: bool) -> int:
        """The node of an operation, or the terminal that stands for the layout it is bound to."""
        return self.nodes.get(op, int(self._fixed(op) ^ flipped))

    def total(self, layouts: Mapping[Op, Layout]) -> int:
        """What an assignment costs, what is wanted besides bytes included."""
        extra = sum(
            self._wanted(op, layouts[op]) - _own(op, layouts[op]) for op in self.nodes if not op.is_rearrangement
        )
        return extra + traffic(self.program, layouts, key_first=self.preference.key_first).weighed

    def suits(self, op: Op, layouts: Mapping[Op, Layout]) -> Layout:
        """The layout in which a move costs least beside its neighbours as they are."""
        copy = _of(in_place(op.sides, Layout.ROWS, Layout.CHANNELS_FIRST)).weighed

        def costs(layout: Layout) -> int:
            readers = [r for r in self.readers[op] if self.preference.key_first or not reads_swapped(r, op)]
            after = sum(
                _moved(r.args[1], layout, layouts[r]).weighed
                if r.is_rearrangement
                else copy * (layouts[r] is not layout)
                for r in readers
            )
            return _moved(op.args[1], layouts[op.args[0]], layout).weighed + after

        return min(Layout, key=costs)

    def _edge(self, begin: int, end: int, bytes_: int) -> None:
        if begin != end and bytes_ > 0 and (begin, end) != (1, 0):
            self.edges.append((begin, end, min(-(-bytes_ // _UNIT), _NEVER)))

    def _source_side(self) -> set[int]:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import breadth_first_order, maximum_flow

        if not self.edges:
            return {0}
        begins, ends, capacities = (np.array(part) for part in zip(*self.edges, strict=True))
        shape = (self.count, self.count)
        network = coo_array((capacities.astype(np.int64), (begins, ends)), shape=shape).tocsr()
        network.data = np.minimum(network.data, _NEVER).astype(np.int32)
        network = network.astype(np.int32)
        left = (network - maximum_flow(network, 0, 1).flow).tocsr()
        left.data[left.data < 0] = 0
        left.eliminate_zeros()
        return set(breadth_first_order(left, 0, return_predecessors=False).tolist())

    def _assigned(self, side: set[int]) -> dict[Op, Layout]:
        layouts = rows(self.program) | self.fixed
        for op, node in self.nodes.items():
            layouts[op] = Layout(int((node not in side) ^ self.flipped[op]))
        return layouts
