"""Plans do what they were made for, in rank 5 at most, and cost no more than what a search over everything finds."""

from __future__ import annotations

import math
import random
from functools import cache
from itertools import permutations, product

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketvit.passes.ane.program import carry_out, rearrange
from pocketvit.passes.ane.rearrange import Rearrangement
from pocketvit.passes.ane.steps import MAX_RANK, Permute, Plan, Reshape, Slice, padded_bytes, plan

from .test_rearrange import chain, numbered, read


def check_steps(r: Rearrangement, how: Plan, x: Tensor, wanted: Tensor) -> None:
    """The steps give what is wanted, none has a rank above 5, and their bytes are what they read and write."""
    cost, y = 0, x
    for step in how.steps:
        before = y.shape
        y = carry_out(Plan((step,), 0), y)
        rank = max(len(before), y.ndim)
        assert rank <= MAX_RANK, f"{step} of {r} has rank {rank}"
        moves = not isinstance(step, Reshape) or (y.shape[-1:] != before[-1:])
        cost += moves * (padded_bytes(before) + padded_bytes(y.shape))
    assert torch.equal(y, wanted), f"{how} differs in {(y != wanted).sum()} places"
    assert how.bytes == cost, f"{how} says {how.bytes} bytes, its steps move {cost}"


@pytest.mark.parametrize("seed", [*range(16), *(pytest.param(s, marks=pytest.mark.slow) for s in range(16, 40))])
def test_a_chain_of_high_rank_is_carried_out_in_rank_5(seed: int) -> None:
    r, x, wanted = chain(seed)
    check_steps(r, plan(r), x, wanted)
    assert torch.equal(rearrange(x, r), wanted)


@pytest.mark.parametrize("seed", [*range(16), *(pytest.param(s, marks=pytest.mark.slow) for s in range(16, 40))])
def test_slices_are_carried_out_in_rank_5(seed: int) -> None:
    chance = random.Random(seed)
    sides = tuple(chance.choice((2, 3, 4, 6)) for _ in range(4))
    axes = chance.sample(range(4), 4)
    x = numbered(sides)
    axis = chance.randrange(4)
    start = chance.randrange(sides[axes[axis]])
    r, y = Rearrangement.identity(sides).permute(axes).select(axis, start), x.permute(axes).select(axis, start)
    other = chance.randrange(3)
    length = chance.randint(1, y.shape[other])
    r, y = r.keep(other, y.shape[other] - length, length), y.narrow(other, y.shape[other] - length, length)
    how = plan(r)
    check_steps(r, how, x, y)
    order = [isinstance(step, Slice) for step in how.steps if not isinstance(step, Reshape)]
    assert order == sorted(order, reverse=True), f"{how} moves what it cuts away later"


def test_every_second_row_is_one_strided_slice() -> None:
    r = Rearrangement.identity((1, 8, 32)).reshape((1, 4, 2, 32)).select(2, 1)
    assert [type(step) for step in plan(r).steps] == [Slice], plan(r)
    assert torch.equal(rearrange(numbered((1, 8, 32)), r), numbered((1, 8, 32))[:, 1::2])


def windows(side: int, w: int, c: int) -> Rearrangement:
    """Channels last, as Swin writes it."""
    r = Rearrangement.identity((1, side, side, c)).reshape((1, side // w, w, side // w, w, c))
    return r.permute((0, 1, 3, 2, 4, 5)).reshape(((side // w) ** 2, w * w, c))


def test_a_window_partition_is_one_transpose_of_rank_5() -> None:
    """Apple's relay in one step: height cut into windows beside width in windows of whole rows, channels last."""
    how = plan(windows(32, 8, 160))
    (transpose,) = [step for step in how.steps if isinstance(step, Permute)]
    assert len(transpose.axes) <= 5
    once = 32 * 32 * 160 * 2
    assert how.bytes == 2 * once == 655_360, f"{how.bytes} bytes, where one read and one write are {2 * once}"
    back = plan(windows(32, 8, 160).inverse())
    assert (back.bytes, back.transposes) == (655_360, 1)


def test_windows_of_maps_channels_first_cost_two_moves_and_a_little() -> None:
    """The six axes of third-party code: height windows, width windows, rows, columns, and channels last."""
    r = Rearrangement.identity((1, 160, 32, 32)).reshape((1, 160, 4, 8, 4, 8)).permute((0, 2, 4, 3, 5, 1))
    how = plan(r.reshape((16, 64, 160)))
    assert how.bytes <= 1_400_000, f"{how.bytes} bytes in {how.transposes} transposes"
    naive = 2 * padded_bytes((4, 4, 8, 8, 160)) + 2 * padded_bytes((160, 4, 8, 4, 8))
    assert how.bytes < naive / 2, f"{how.bytes} bytes; the axes one after the other are {naive}"


def test_padding_counts_whole_rows_of_64_bytes() -> None:
    assert [padded_bytes(shape) for shape in ((), (1,), (3, 32), (3, 33), (2, 5, 7))] == [64, 64, 192, 384, 640]


def test_what_moves_nothing_costs_nothing() -> None:
    r = Rearrangement.identity((1, 8, 8, 40)).reshape((64, 40))
    assert (plan(r).bytes, plan(r).transposes) == (0, 0)
    assert plan(Rearrangement.identity((3, 4))).steps == ()
    ones = Rearrangement.identity((1, 5, 1, 7)).permute((2, 1, 0, 3))
    assert (plan(ones).bytes, plan(ones).transposes) == (0, 0), "axes of one step move nothing"


@cache
def factorings(total: int, most: int) -> tuple[tuple[int, ...], ...]:
    """Every shape of so many elements, with so many axes at most, none of them 1."""
    if total == 1:
        return ((),)
    if most == 0:
        return ()
    first = [side for side in range(2, total + 1) if total % side == 0]
    return tuple((side, *rest) for side in first for rest in factorings(total // side, most - 1))


def reshaped(total: int, before: int, after: int) -> int:
    return 0 if before == after else padded_bytes((total // before, before)) + padded_bytes((total // after, after))


def transposes(total: int) -> list[tuple[NDArray[np.int64], int, int, int]]:
    """Every transpose of rank 5 at most: where each element comes from, its cost, last axes before and after."""
    found = []
    for shape in factorings(total, MAX_RANK):
        for axes in permutations(range(len(shape))):
            if axes != tuple(range(len(shape))):
                end = [shape[axis] for axis in axes]
                taken = np.arange(total).reshape(shape).transpose(axes).ravel()
                found.append((taken, padded_bytes(shape) + padded_bytes(end), shape[-1], end[-1]))
    return found


def least(wanted: NDArray[np.int64], start: int, end: int) -> int:
    """The fewest bytes that one or two transposes move, of all there are."""
    total = len(wanted)
    cheapest: dict[tuple[bytes, int, int], int] = {}  # by order, and last axes before and after
    for taken, cost, first, last in transposes(total):
        key = taken.tobytes(), first, last
        cheapest[key] = min(cost, cheapest.get(key, cost))
    best = math.inf
    by_order: dict[bytes, list[tuple[int, int, int]]] = {}
    for (order, first, last), cost in cheapest.items():
        by_order.setdefault(order, []).append((first, last, cost))
    for order, ways in by_order.items():
        taken = np.frombuffer(order, np.int64)
        if np.array_equal(taken, wanted):
            best = min(best, *(reshaped(total, start, a) + cost + reshaped(total, b, end) for a, b, cost in ways))
        rest = np.argsort(taken)[wanted]  # what has to come behind it: taken[rest] is wanted
        for (a, b, one), (c, d, two) in product(ways, by_order.get(rest.tobytes(), ())):
            best = min(best, reshaped(total, start, a) + one + reshaped(total, b, c) + two + reshaped(total, d, end))
    return int(best)


SMALL = [(3, 4, 2), (2, 32, 2), (6, 5, 4), (2, 2, 3, 2), (2, 3, 2, 4), (2, 2, 2, 16)]


@pytest.mark.parametrize("sides", SMALL, ids=str)
def test_no_other_one_or_two_transposes_are_cheaper(sides: tuple[int, ...]) -> None:
    """Against every transpose of rank 5 of as many elements, and every two of them."""
    worse = []
    for axes in permutations(range(len(sides))):
        r = Rearrangement.identity(sides).permute(axes)
        if not r.is_reshape:
            wanted = read(r, numbered(sides)).numpy().ravel()
            fewest, found = least(wanted, sides[-1], r.shape[-1]), plan(r).bytes
            if found > fewest:
                worse.append(f"{axes}: {found} bytes, {fewest} would do")
    assert not worse, f"{len(worse)} of {math.factorial(len(sides))} orders of {sides}: {'; '.join(worse)}"
