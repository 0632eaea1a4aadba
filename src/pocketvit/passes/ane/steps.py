"""The cheapest way to carry out a rearrangement in steps of rank 5 at most.

Core ML takes tensors of rank 5, and the Neural Engine pads the last axis to 64 bytes (Apple, "Deploying Transformers
on the Apple Neural Engine", principle 1). So of all ways to get from one shape to another the one that moves the
fewest padded bytes is searched: a window partition comes out as Apple's relay of rank 5, with channels last, and no
reshape moves anything.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise, permutations

from .rearrange import Atom, Rearrangement, Shape, Unaligned

MAX_RANK = 5
LANES = 32  # 16-bit values in 64 bytes
_BYTES = 2  # of a 16-bit value
_MENDED = 6  # neighbours that a transpose of rank 5 can bring together at most
_EXACT = 6  # atoms up to which the search finds the least


@dataclass(frozen=True, slots=True)
class Reshape:
    """Read as another shape."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Permute:
    """Put the axes in another order."""

    axes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Slice:
    """Keep `length` steps of an axis, every `step`-th from `start` on."""

    axis: int
    start: int
    length: int
    step: int = 1

    @property
    def end(self) -> int:
        """One behind the last step that is kept."""
        return self.start + (self.length - 1) * self.step + 1


Step = Reshape | Permute | Slice


@dataclass(frozen=True, slots=True)
class Plan:
    """steps: what to do in turn. bytes: padded bytes that they read and write; what only renames axes moves none."""

    steps: tuple[Step, ...]
    bytes: int

    @property
    def transposes(self) -> int:
        """How many of the steps change the order."""
        return sum(isinstance(step, Permute) for step in self.steps)


def padded_bytes(shape: Sequence[int]) -> int:
    """Bytes of 16-bit values with the last axis padded to 64 bytes."""
    last = shape[-1] if shape else 1
    return math.prod(shape[:-1]) * -(-last // LANES) * LANES * _BYTES


@lru_cache(maxsize=4096)
def plan(wanted: Rearrangement) -> Plan:
    """The cheapest steps of rank 5 at most that do what `wanted` says. Raises Unaligned where none can."""
    steps: list[Step] = []
    cost = 0
    shape, left = wanted.source, wanted
    if not wanted.is_whole:
        pieces = cut(wanted)
        left = pieces.left
        steps += [Reshape(pieces.shape)] if pieces.shape != shape else []
        cost += _reshaped(shape, pieces.shape)
        shape = pieces.shape
        for one in sorted(pieces.slices, key=lambda one: one.length / pieces.shape[one.axis]):
            if one.length < shape[one.axis]:
                after = (*shape[: one.axis], one.length, *shape[one.axis + 1 :])
                steps.append(one)
                cost += padded_bytes(shape) + padded_bytes(after)
                shape = after
    moves = _Moves((), _reshaped(shape, left.shape)) if left.is_reshape else _order(left, shape)
    for before, axes in moves.steps:
        steps += [Reshape(before)] if before != shape else []
        steps.append(Permute(axes))
        shape = tuple(before[axis] for axis in axes)
    if shape != wanted.shape:
        steps.append(Reshape(wanted.shape))
    return Plan(tuple(steps), cost + moves.bytes)


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left of a rearrangement once its slices are taken.

    shape: that the source is read as. slices: one for each axis of it, whole ones included. left: what then remains.
    """

    shape: Shape
    slices: tuple[Slice, ...]
    left: Rearrangement


@lru_cache(maxsize=4096)
def cut(wanted: Rearrangement) -> Cut:
    """Slices first, so that less is moved later. Raises Unaligned where they need a rank above 5."""
    shape, slices = _slices(wanted)
    ranks = {atom: rank for rank, atom in enumerate(sorted(wanted.order))}
    left = Rearrangement.identity([one.length for one in slices])
    left = left.reshape([wanted.atoms[i].length for i in sorted(wanted.order)])
    left = left.permute([ranks[i] for i in wanted.order]).reshape(wanted.shape)
    return Cut(shape, slices, left)


def _slices(wanted: Rearrangement) -> tuple[Shape, tuple[Slice, ...]]:
    """A shape of the source in which what is kept is one range of every axis, and those ranges."""
    axes = range(len(wanted.source))
    found = [_slice(axis, [atom for atom in wanted.atoms if atom.axis == axis]) for axis in axes]
    known = tuple(one for one in found if one is not None)
    if len(known) == len(found) <= MAX_RANK:
        return wanted.source, known
    shape: list[int] = []
    slices: list[Slice] = []
    joins = False
    for atom in wanted.merged().atoms:
        if joins and atom.is_whole:
            shape[-1] *= atom.size
            slices[-1] = Slice(len(shape) - 1, 0, shape[-1])
        else:
            shape.append(atom.size)
            slices.append(Slice(len(shape) - 1, atom.start, atom.length))
        joins = atom.is_whole
    if len(shape) > MAX_RANK:
        raise Unaligned
    return tuple(shape), tuple(slices)


def _slice(axis: int, atoms: Sequence[Atom]) -> Slice | None:
    """What one axis keeps, as a slice; None where it is none."""
    start, length, step = 0, 1, 1
    for place, atom in enumerate(atoms):
        if length > 1 and not atom.is_whole:
            if any(inner.length > 1 for inner in atoms[place:]):
                return None
            step *= atom.size
        start, length = start * atom.size + atom.start, length * atom.length
    return Slice(axis, start, length, step)


def _reshaped(before: Shape, after: Shape) -> int:
    """Bytes that a reshape moves: none where the last axis stays, as rows keep their order and their padding."""
    same = before[-1:] == after[-1:] or math.prod(before) == 1
    return 0 if same else padded_bytes(before) + padded_bytes(after)


@dataclass(frozen=True, slots=True)
class _Moves:
    steps: tuple[tuple[Shape, tuple[int, ...]], ...]  # the shape to read, the axes to permute
    bytes: int


def _order(wanted: Rearrangement, start: Shape) -> _Moves:
    """The cheapest transposes from `start` to the order and last axis that are wanted.

    A* over the orders of the atoms together with the length of the last axis. A move is a transpose of rank 5 at most:
    blocks of neighbours trade places, and what stands before and after them stays.
    """
    lengths, goal = _atoms(wanted, start)
    last = wanted.shape[-1] if wanted.shape else 1
    total = math.prod(lengths)
    state = (tuple(range(len(lengths))), start[-1] if start else 1)
    best = {state: 0}
    came: dict[tuple[tuple[int, ...], int], tuple[tuple[tuple[int, ...], int], Shape, tuple[int, ...]]] = {}
    haste = 1 if len(lengths) <= _EXACT else 2  # a longer search than that is not worth the last few bytes
    queue: list[tuple[int, int, tuple[tuple[int, ...], int]]] = [(0, 0, state)]
    count = 0
    done: set[tuple[tuple[int, ...], int]] = set()
    final = (goal, -1)
    while queue:
        _, _, state = heapq.heappop(queue)
        if state in done:
            continue
        done.add(state)
        if state == final:
            break
        order, width = state
        options: Iterator[tuple[tuple[tuple[int, ...], int], int, Shape, tuple[int, ...]]]
        if order == goal:
            flat = (total // width, width), (total // last, last)
            options = iter([(final, _reshaped(*flat), (), ())])
        else:
            options = _moves(order, width, lengths, goal)
        for after, cost, shape, axes in options:
            reached = best[state] + cost
            if reached < best.get(after, reached + 1):
                best[after] = reached
                came[after] = (state, shape, axes)
                count += 1
                least = math.ceil(_breaks(after[0], goal) / _MENDED) * haste * 2 * _BYTES * total
                heapq.heappush(queue, (reached + least, count, after))
    steps = []
    state = final
    while state in came:
        state, shape, axes = came[state]
        if axes:
            steps.append((shape, axes))
    return _Moves(tuple(reversed(steps)), best[final])


def _atoms(wanted: Rearrangement, start: Shape) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths of the fewest atoms that still tell the last axis of either end apart, and the order wanted of them."""
    fine, groups = wanted.aligned()
    last_in = {i for i, atom in enumerate(fine.atoms) if atom.axis == len(start) - 1}
    last_out = set(groups[-1]) if groups else set()
    lengths: list[list[int]] = []  # of merged atoms: the fine ones in each
    for i in range(len(fine.atoms)):
        before = lengths[-1][-1] if lengths else None
        together = (
            before is not None
            and fine.order.index(i) == fine.order.index(before) + 1
            and (i in last_in) == (before in last_in)
            and (i in last_out) == (before in last_out)
        )
        if together:
            lengths[-1].append(i)
        else:
            lengths.append([i])
    firsts = [run[0] for run in lengths]
    goal = tuple(sorted(range(len(lengths)), key=lambda run: fine.order.index(firsts[run])))
    return tuple(math.prod(fine.atoms[i].length for i in run) for run in lengths), goal


def _breaks(order: tuple[int, ...], goal: tuple[int, ...]) -> int:
    """How many neighbours in `order` are none in `goal`, the two ends included."""
    after = dict(zip((-1, *goal), (*goal, -1), strict=True))
    return sum(after[a] != b for a, b in zip((-1, *order), (*order, -1), strict=True))


def _moves(
    order: tuple[int, ...], width: int, lengths: tuple[int, ...], goal: tuple[int, ...]
) -> Iterator[tuple[tuple[tuple[int, ...], int], int, Shape, tuple[int, ...]]]:
    """Every exchange of blocks that mends a break, with what it costs, the shape it reads and the axes it permutes."""
    n = len(order)
    breaks = _breaks(order, goal)
    total = math.prod(lengths)

    def product(begin: int, end: int) -> int:
        return math.prod(lengths[i] for i in order[begin:end])

    for a in range(n):
        for d in range(a + 2, n + 1):
            most = MAX_RANK - (a > 0) - (d < n) - 1 if n <= _EXACT else 1
            for cuts in (some for count in range(1, most + 1) for some in combinations(range(a + 1, d), count)):
                edges = (a, *cuts, d)
                blocks = [order[x:y] for x, y in pairwise(edges)]
                sides = [product(x, y) for x, y in pairwise(edges)]
                head = (product(0, a),) if a else ()
                room = MAX_RANK - len(head) - len(blocks)
                tails: list[tuple[int, ...]] = [()] if d == n else [(product(d, n),)]
                if d < n and room > 1:
                    tails += [(product(d, e), product(e, n)) for e in range(d + 1, n)]
                for way in permutations(range(len(blocks))):
                    if way == tuple(range(len(blocks))):
                        continue
                    new = (*order[:a], *(i for block in way for i in blocks[block]), *order[d:])
                    if _breaks(new, goal) >= breaks:
                        continue
                    for tail in tails:
                        if len(head) + len(blocks) + len(tail) > MAX_RANK:
                            continue
                        before = (*head, *sides, *tail)
                        axes = (
                            *range(len(head)),
                            *(len(head) + block for block in way),
                            *range(len(head) + len(blocks), len(before)),
                        )
                        after = tuple(before[axis] for axis in axes)
                        cost = padded_bytes(before) + padded_bytes(after)
                        cost += _reshaped((total // width, width), before)
                        yield (new, after[-1]), cost, before, axes
