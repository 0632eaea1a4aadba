"""The layouts that move the fewest padded bytes, as a minimum cut.

An operation costs what it reads and writes in its layout; where two that follow one another disagree, a copy comes in
between. The cheapest assignment is a minimum cut between "rows" and "channels first" (Kolmogorov and Zabih, "What
energy functions can be minimized via graph cuts?"). So transposes stand where they cost least, and the assignment that
leaves everything as it was is among those compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .layouts import (
    Layout,
    in_place,
    inputs,
    may_be_channels_first,
    moved,
    of_plan,
    own_bytes,
    reads_swapped,
    rows,
    traffic,
)
from .program import Op, Program, aten

_UNIT = 64  # bytes that the flow is counted in
_ROUNDS = 8  # of cuts with other layouts for the moves that clash; two or three settle them
_NEVER = 1 << 29  # units: more than any model moves


@dataclass(frozen=True, slots=True)
class Preference:
    """What is wanted besides few bytes. convolutions: share of a linear's traffic that it may cost to make it a 1x1
    convolution. key_first: keys are transposed before they are cut into heads, rather than inside each product.
    """

    convolutions: float
    key_first: bool


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
                for source in inputs(op):
                    if self.preference.key_first or not reads_swapped(op, source):
                        yield op, source

    def _costs(self, op: Op) -> list[list[int]]:
        wanted = op.args[1]
        return [[moved(wanted, before, after).weighed for after in Layout] for before in Layout]

    def solve(self) -> dict[Op, Layout]:
        for op in self.program.ops[1:]:
            if op.is_rearrangement:
                self._link(op)
            elif op in self.nodes:
                self._alone(op, [self._wanted(op, layout) for layout in Layout])
        self._copies()
        return self._assigned(self._source_side())

    def _wanted(self, op: Op, layout: Layout) -> int:
        bytes_ = own_bytes(op, layout)
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
            bytes_ = of_plan(in_place(source.sides, Layout.ROWS, Layout.CHANNELS_FIRST)).weighed
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
            self._wanted(op, layouts[op]) - own_bytes(op, layouts[op]) for op in self.nodes if not op.is_rearrangement
        )
        return extra + traffic(self.program, layouts, key_first=self.preference.key_first).weighed

    def suits(self, op: Op, layouts: Mapping[Op, Layout]) -> Layout:
        """The layout in which a move costs least beside its neighbours as they are."""
        copy = of_plan(in_place(op.sides, Layout.ROWS, Layout.CHANNELS_FIRST)).weighed

        def costs(layout: Layout) -> int:
            readers = [r for r in self.readers[op] if self.preference.key_first or not reads_swapped(r, op)]
            after = sum(
                moved(r.args[1], layout, layouts[r]).weighed
                if r.is_rearrangement
                else copy * (layouts[r] is not layout)
                for r in readers
            )
            return moved(op.args[1], layouts[op.args[0]], layout).weighed + after

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
