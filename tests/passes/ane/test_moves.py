"""Moves of moves become one, and slices that make up a whole become one split."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketvit.passes.ane.moves import merge_moves, share_cuts
from pocketvit.passes.ane.program import Builder, Program, aten
from pocketvit.passes.ane.rearrange import Rearrangement

from .subjects import changed, error, kinds, name_of, on_tokens, tiny, tokens


def test_a_move_that_is_computed_with_as_well_stays() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = x.relu().permute(0, 2, 3, 1)
        return y.permute(0, 2, 1, 3).exp() + y.tanh()

    program = changed(tiny(run), merge_moves)
    moves = [op for op in program.ops if op.is_rearrangement]
    assert len(moves) == 2, kinds(program)
    assert moves[1].inputs == [moves[0]], "the value is there in any case, and nearer"


def test_a_move_that_only_moves_read_is_read_through() -> None:
    builder = Builder()
    image = builder.image((1, 3, 8, 8))
    first = builder.move(image, Rearrangement.identity((1, 3, 8, 8)).permute((0, 2, 3, 1)))
    back = builder.move(first, Rearrangement.identity((1, 8, 8, 3)).permute((0, 3, 1, 2)))
    result = builder.call(aten.relu.default, back)
    assert kinds(merge_moves(Program(builder.ops, result))) == {"image": 1, "relu": 1}, "there and back is nothing"


def test_moves_without_a_common_refinement_stay_apart() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = x.flatten(1)[:, :6].reshape(2, 3).t().reshape(2, 3).t()
        return y.exp()

    model = tiny(run)
    program = changed(model, merge_moves)
    assert kinds(program)["rearrange"] >= 2, kinds(program)
    assert error(program, model) == 0


def parts_of(cuts: list[tuple[int, int]]) -> Program:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = x.relu()
        return torch.cat([y[..., a:b].exp() * (i + 1) for i, (a, b) in enumerate(cuts)], -1).flatten(1)

    return changed(tiny(run), share_cuts)


def test_slices_that_make_up_the_whole_are_one_split() -> None:
    program = parts_of([(0, 2), (2, 3), (3, 8)])
    parts = [op for op in program.ops if name_of(op) == "part"]
    assert [op.args[1:] for op in parts] == [(3, (2, 1, 5), index) for index in range(3)]
    assert not any(op.is_rearrangement and not op.args[1].is_whole for op in program.ops)


def test_slices_with_a_gap_an_overlap_or_an_end_left_out_stay_slices() -> None:
    for cuts in ([(0, 2), (3, 8)], [(0, 4), (3, 8)], [(0, 4), (4, 7)], [(0, 8)]):
        assert "part" not in kinds(parts_of(cuts)), cuts


def test_queries_keys_and_values_out_of_one_value_are_one_split() -> None:
    """timm cuts them as axis 2 of five, each with a permute of its own."""

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).relu().reshape(1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return ((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2)

    program = changed(tiny(on_tokens(middle), **tokens(qkv=nn.Linear(32, 96))), share_cuts)
    parts = [op for op in program.ops if name_of(op) == "part"]
    assert len(parts) == 3, kinds(program)
    assert len({op.args[0] for op in parts}) == 1, "they are cut from one value"
