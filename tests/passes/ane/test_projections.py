"""Layers that are cut up become layers of their own, with the same rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.moves import merge_moves
from pocketvit.passes.ane.program import Program
from pocketvit.passes.ane.projections import split_projections

from .subjects import Attention, changed, kinds, name_of, on_tokens, tiny, tokens


def widths(program: Program, path: str) -> list[int]:
    return [len(op.args[1]) for op in program.ops if op.path == path and name_of(op) in ("linear", "conv2d")]


def test_queries_keys_and_values_get_a_layer_each() -> None:
    model = tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention()))
    assert widths(capture(model), "attn.qkv") == [96]
    program = changed(model, split_projections)
    assert widths(program, "attn.qkv") == [32, 32, 32]
    found = [op.args[1] for op in program.ops if op.path == "attn.qkv" and name_of(op) == "linear"]
    for weight in model.module.attn.qkv.weight.chunk(3):
        assert sum(torch.equal(weight, one) for one in found) == 1, "rows are chosen, not changed"


def test_heads_with_their_queries_keys_and_values_together_are_told_apart() -> None:
    """LeViT's rows: for each head its queries, keys and values, of different widths."""

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).view(1, 16, 2, 32).split([4, 4, 24], dim=3)
        scores = q.permute(0, 2, 1, 3) @ k.permute(0, 2, 3, 1)
        return m.proj((scores.softmax(-1) @ v.permute(0, 2, 1, 3)).transpose(1, 2).reshape(1, 16, 48))

    model = tiny(on_tokens(middle), **tokens(qkv=nn.Linear(32, 64, bias=False), proj=nn.Linear(48, 32)))
    merged = changed(model, lambda program: merge_moves(program, at_any_cost=True), split_projections)
    assert widths(merged, "qkv") == [8, 8, 48]


def test_a_convolution_is_cut_along_its_channels() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.conv(x).chunk(2, 1)
        return (a * b.sigmoid()).flatten(1)

    model = tiny(run, conv=nn.Conv2d(3, 8, 3, 2, 1))
    assert widths(changed(model, split_projections), "conv") == [4, 4]


def test_a_layer_whose_whole_is_read_too_stays_one() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (y[:, :4] + y[:, 4:] + y.mean(1, keepdim=True)).flatten(1)

    assert widths(changed(tiny(run, conv=nn.Conv2d(3, 8, 1)), split_projections), "conv") == [8]


def test_channels_that_two_read_in_two_ways_stay_in_one_layer() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (y[:, :6].mean(1) + y[:, 2:].mean(1)).flatten(1)

    assert widths(changed(tiny(run, conv=nn.Conv2d(3, 8, 1)), split_projections), "conv") == [8]


def test_a_cut_of_anything_but_channels_stays() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (y[:, :, :4] * y[:, :, 4:]).flatten(1)

    assert widths(changed(tiny(run, conv=nn.Conv2d(3, 8, 1)), split_projections), "conv") == [8]


def test_a_grouped_convolution_stays() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        a, b = m.conv(x).chunk(2, 1)
        return (a * b).flatten(1)

    program = changed(tiny(run, conv=nn.Conv2d(3, 6, 1, groups=3)), split_projections)
    assert widths(program, "conv") == [6]


def test_parts_that_nobody_reads_are_not_computed() -> None:
    def middle(m: nn.Module, x: Tensor) -> Tensor:
        q, k, _ = m.qkv(x).chunk(3, -1)
        return q * k

    program = changed(tiny(on_tokens(middle), **tokens(qkv=nn.Linear(32, 96))), split_projections)
    assert widths(program, "qkv") == [32, 32]
    assert kinds(program)["linear"] == 3
