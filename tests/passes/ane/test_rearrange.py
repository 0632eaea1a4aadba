"""The algebra of moves, held against torch's own reshape, permute, select and narrow."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import Tensor

from pocketvit.passes.ane.rearrange import Atom, Rearrangement, Unaligned


def read(r: Rearrangement, x: Tensor) -> Tensor:
    """What a rearrangement means, by its definition; of any rank."""
    x = x.reshape([atom.size for atom in r.atoms])
    for axis, atom in enumerate(r.atoms):
        x = x.narrow(axis, atom.start, atom.length)
    dropped = [i for i in range(len(r.atoms)) if i not in r.order]
    assert all(r.atoms[i].length == 1 for i in dropped), r
    return x.permute([*r.order, *dropped]).reshape(r.shape)


def numbered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape)).reshape(shape)


def groups(chance: random.Random, sides: list[int], most: int) -> tuple[int, ...]:
    """Neighbours multiplied, so that at most so many are left."""
    cuts = sorted(chance.sample(range(1, len(sides)), chance.randint(0, most - 1)))
    return tuple(math.prod(sides[a:b]) for a, b in zip([0, *cuts], [*cuts, len(sides)], strict=True))


def chain(seed: int) -> tuple[Rearrangement, Tensor, Tensor]:
    """reshape, permute, reshape with 6 to 8 axes in between: as one, what goes in, and what torch makes of it."""
    chance = random.Random(seed)
    sides = [chance.choice((1, 2, 2, 3, 4)) for _ in range(chance.randint(6, 8))]
    axes = chance.sample(range(len(sides)), len(sides))
    x = numbered(groups(chance, sides, 5))
    end = groups(chance, [sides[axis] for axis in axes], 5)
    found = Rearrangement.identity(x.shape).reshape(sides).permute(axes).reshape(end)
    return found, x, x.reshape(sides).permute(axes).reshape(end)


@pytest.mark.parametrize("seed", range(40))
def test_a_chain_is_what_torch_makes_of_it_and_has_a_way_back(seed: int) -> None:
    r, x, wanted = chain(seed)
    assert torch.equal(read(r, x), wanted), f"{r} differs in {(read(r, x) != wanted).sum()} places"
    assert torch.equal(read(r.inverse(), wanted), x), f"the way back of {r} is another"
    assert torch.equal(read(r.merged(), x), wanted), "with merged atoms it is another"
    assert r.is_reshape == torch.equal(wanted.flatten(), x.flatten()), f"{r} is a reshape: {r.is_reshape}"


@pytest.mark.parametrize("seed", range(40))
def test_two_in_a_row_are_one(seed: int) -> None:
    first, x, between = chain(seed)
    chance = random.Random(1000 + seed)
    axes = chance.sample(range(between.ndim), between.ndim)
    axis = chance.randrange(between.ndim)
    start = chance.randrange(between.shape[axis])
    for second, wanted in (
        (Rearrangement.identity(between.shape).permute(axes), between.permute(axes)),
        (Rearrangement.identity(between.shape).select(axis, start), between.select(axis, start)),
        (first.inverse(), x),
    ):
        try:
            both = first.then(second)
        except Unaligned:
            continue
        found = read(both, x)
        assert torch.equal(found, wanted), f"{first} then {second} differs in {(found != wanted).sum()} places"
    assert first.then(first.inverse()).is_reshape, "there and back again moves something"


@pytest.mark.parametrize("seed", range(40))
def test_ranges_and_single_steps_agree_with_torch(seed: int) -> None:
    """Of one axis after another, behind a permutation that torch does too."""
    chance = random.Random(seed)
    sides = [chance.choice((2, 3, 4, 6)) for _ in range(4)]
    axes = chance.sample(range(4), 4)
    x = numbered(tuple(sides))
    r, y = Rearrangement.identity(sides).permute(axes), x.permute(axes)
    for _ in range(3):
        axis = chance.randrange(y.ndim)
        start = chance.randrange(y.shape[axis])
        if chance.random() < 0.5 and y.ndim > 1:
            r, y = r.select(axis, start - y.shape[axis]), y.select(axis, start)
        else:
            length = chance.randint(1, y.shape[axis] - start)
            r, y = r.keep(axis, start, length), y.narrow(axis, start, length)
    assert r.shape == tuple(y.shape)
    assert torch.equal(read(r, x), y), f"{r} differs in {(read(r, x) != y).sum()} places"
    assert r.is_whole == (y.numel() == x.numel())


def test_a_range_of_an_axis_of_several_atoms_is_cut_where_they_allow_it() -> None:
    x = numbered((4, 3, 2))
    joined = Rearrangement.identity((4, 3, 2)).permute((1, 0, 2)).reshape((12, 2))
    found = read(joined.keep(0, 4, 8), x)
    assert torch.equal(found, x.permute(1, 0, 2).reshape(12, 2)[4:12]), found
    with pytest.raises(Unaligned):
        joined.keep(0, 3, 4)  # half of one row and half of the next are no range of any atom


@pytest.mark.parametrize(
    ("sides", "axes", "end"),
    [((2, 3), (1, 0), (2, 3)), ((2, 3), (1, 0), (2, 3, 1)), ((3, 2, 5), (1, 0, 2), (3, 2, 5))],
)
def test_cuts_without_a_common_refinement_are_unaligned(
    sides: tuple[int, ...], axes: tuple[int, ...], end: tuple[int, ...]
) -> None:
    """6 as 2 x 3 with the factors exchanged, and as 2 x 3 again: no atoms are runs of both."""
    r = Rearrangement.identity((math.prod(sides),)).reshape(sides).permute(axes).reshape(end)
    with pytest.raises(Unaligned):
        r.aligned()
    with pytest.raises(Unaligned):
        r.permute(range(len(end)))


def test_6_as_2_by_3_and_as_3_by_2_without_a_permute_between_is_fine() -> None:
    r = Rearrangement.identity((6,)).reshape((2, 3)).reshape((3, 2)).permute((1, 0))
    assert torch.equal(read(r, torch.arange(6)), torch.arange(6).reshape(3, 2).T)
    with pytest.raises(Unaligned):
        Rearrangement.identity((2, 3)).reshape((3, 2)).permute((1, 0))  # here the axes are atoms already


def test_what_was_left_out_cannot_be_brought_back() -> None:
    with pytest.raises(ValueError, match="cannot be brought back"):
        Rearrangement.identity((4, 3)).select(0, 1).inverse()


def test_an_atom_is_cut_where_its_range_is_whole_steps_only() -> None:
    assert Atom(0, 12, 4, 8).cut(2) == (Atom(0, 3, 1, 2), Atom(0, 4, 0, 4))
    with pytest.raises(Unaligned):
        Atom(0, 12, 3, 8).cut(2)


def test_an_axis_is_followed_through_a_move() -> None:
    r = Rearrangement.identity((2, 6, 5)).reshape((2, 2, 3, 5)).permute((3, 0, 1, 2)).reshape((5, 2, 6))
    assert [r.axis_before(axis) for axis in range(3)] == [2, 0, 1]
    assert [r.axis_behind(axis) for axis in range(3)] == [1, 2, 0]
    swapped = Rearrangement.identity((6,)).reshape((2, 3)).permute((1, 0)).reshape((6,))
    assert swapped.axis_before(0) is None, "whole, but in another order"
    assert Rearrangement.identity((6, 4)).keep(0, 0, 3).axis_before(0) is None, "not whole"
