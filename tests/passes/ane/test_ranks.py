"""Arithmetic on many axes runs in rank 5, whatever its operands broadcast."""

from __future__ import annotations

import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.passes.ane import ane
from pocketvit.passes.ane.ranks import lower_ranks

from .subjects import changed, expected, images, kinds, name_of, relative, tiny

SIX = (-1, 3, 2, 4, 2, 4)  # windows of an image
OPERANDS = {
    "a number": torch.tensor(0.3),
    "one for each of the last axis": torch.rand(4),
    "one for each of two axes": torch.rand(3, 2, 1, 1, 1),
    "all of them": torch.rand(1, 3, 2, 4, 2, 4),
    "a middle": torch.rand(4, 2, 1),
}


@pytest.mark.parametrize("name", OPERANDS)
def test_it_computes_the_same_in_rank_5(name: str) -> None:
    other = OPERANDS[name]
    model = tiny(lambda m, x: ((x.reshape(SIX) + other).relu() * 2 - other).flatten(1))
    program = changed(model, lower_ranks, within=0)
    ranks = {name_of(op): len(op.sides) for op in program.ops if not op.is_rearrangement}
    assert max(ranks.values()) <= 5, ranks
    rewritten, x = ane(model), images(model)
    assert relative(expected(rewritten, x), expected(model, x)) == 0


def test_two_values_of_which_one_is_broadcast() -> None:
    model = tiny(lambda m, x: (x.reshape(SIX) * x.mean((2, 3)).reshape(-1, 3, 1, 1, 1, 1)).flatten(1))
    program = changed(model, lower_ranks, within=0)
    assert max(len(op.sides) for op in program.ops if name_of(op) == "mul") <= 5
    assert kinds(program)["mul"] == 1


def test_lower_ranks_stay_as_they_are() -> None:
    model = tiny(lambda m, x: (x.reshape(1, 3, 2, 4, 8) + 1).flatten(1))
    assert [op.sides for op in changed(model, lower_ranks).ops][-2] == (1, 3, 2, 4, 8)


def test_axes_that_are_broadcast_by_turns() -> None:
    turns = torch.rand(2, 1, 2, 1, 2, 1)
    model = tiny(lambda m, x: (x.mean(1).reshape(-1, 2, 2, 2, 2, 2, 2) + turns).flatten(1))
    x = images(model)
    assert (found := relative(expected(ane(model), x), expected(model, x))) == 0, f"off by {found:.1e}"


def test_what_cannot_run_in_rank_5_is_refused() -> None:
    with pytest.raises(BadInput, match=r"softmax on tensors of rank 7.*The model is as it was"):
        ane(tiny(lambda m, x: x.mean(1).reshape(-1, 2, 2, 2, 2, 2, 2).softmax(2).flatten(1)))
