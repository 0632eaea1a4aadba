"""Attention head by head, and what stays whole."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.heads import split_heads
from pocketvit.passes.ane.norms import fold_norms
from pocketvit.passes.ane.program import Program
from pocketvit.passes.ane.projections import split_projections

from .subjects import Attention, changed, kinds, lively, name_of, on_tokens, tiny, tokens


def softmaxes(program: Program) -> list[tuple[int, ...]]:
    return [op.sides for op in program.ops if name_of(op) == "softmax"]


def test_every_head_has_a_softmax_and_two_products_of_its_own() -> None:
    model = tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention(heads=4)))
    program = changed(model, split_projections, split_heads)
    assert softmaxes(program) == [(1, 16, 16)] * 4
    assert kinds(program)["matmul"] == 8
    (join,) = [op for op in program.ops if name_of(op) == "cat"]
    assert [source.sides for source in join.inputs] == [(1, 16, 8)] * 4, "what the heads give is joined as channels"
    assert max(len(op.sides) for op in program.ops if op.path == "attn" and op.shape) == 3


def test_a_block_of_timm_runs_head_by_head() -> None:
    model = lively("test_vit")
    before, program = kinds(capture(model)), changed(model, fold_norms, split_projections, split_heads)
    assert (before["softmax"], kinds(program)["softmax"]) == (6, 12)
    assert all(len(shape) == 3 for shape in softmaxes(program)), softmaxes(program)


@pytest.mark.parametrize("name", ["swin", pytest.param("levit", marks=pytest.mark.slow)])
def test_whole_models_run_head_by_head(name: str) -> None:
    """Swin's shifted windows with their masks and biases, and LeViT's heads with keys narrower than values."""
    if name == "levit":
        model, heads = lively("levit_128s"), [4] * 3 + [6] * 4 + [8] * 4
    else:
        small = {"depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "img_size": 112, "window_size": 7}
        model, heads = lively("swin_tiny_patch4_window7_224", **small), [2] * 2 + [4] * 2
    before = [shape[1] for shape in softmaxes(capture(model)) if len(shape) == 4]
    program = changed(model, fold_norms, split_projections, split_heads, within=3e-6)
    assert len(before) == len(heads), before
    assert len(softmaxes(program)) > len(before)
    if name == "swin":
        assert len(softmaxes(program)) == sum(heads), softmaxes(program)


def windows(shift: int, mask: bool) -> nn.Module:
    """One block of Swin: windows of 2 x 2 in 4 x 4 patches, shifted, with a bias for each head and a mask for each
    window.
    """
    bias = torch.randn(1, 4, 4, 4)
    hidden = torch.where(torch.rand(4, 1, 4, 4) > 0.3, 0.0, -100.0)

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        x = torch.roll(x.view(1, 4, 4, 32), (-shift, -shift), (1, 2)) if shift else x.view(1, 4, 4, 32)
        x = x.view(1, 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5).reshape(4, 4, 32)
        q, k, v = m.qkv(x).reshape(4, 4, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) + bias
        if mask:
            scores = (scores.view(1, 4, 4, 4, 4) + hidden[None]).view(4, 4, 4, 4)
        x = m.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(4, 4, 32))
        x = x.view(1, 2, 2, 2, 2, 32).permute(0, 1, 3, 2, 4, 5).reshape(1, 4, 4, 32)
        return (torch.roll(x, (shift, shift), (1, 2)) if shift else x).reshape(1, 16, 32)

    model = tiny(on_tokens(middle), **tokens(qkv=nn.Linear(32, 96), proj=nn.Linear(32, 32)))
    return model


@pytest.mark.parametrize(("shift", "mask"), [(0, False), (1, True)])
def test_biases_and_masks_are_cut_up_with_the_heads(shift: int, mask: bool) -> None:
    program = changed(windows(shift, mask), split_projections, split_heads)
    assert softmaxes(program) == [(4, 4, 4)] * 4
    biases = [a for op in program.ops if name_of(op) == "add" for a in op.args if isinstance(a, Tensor)]
    assert len(biases) == (8 if mask else 4), "each head adds its own bias, and the mask"
    assert all(len(bias.shape) <= 4 and bias.numel() <= 64 for bias in biases), [bias.shape for bias in biases]


def test_heads_that_are_normed_first_run_apart_too() -> None:
    """Queries and keys with a layer norm each, as in larger ViTs."""

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return ((m.q_norm(q) @ m.k_norm(k).mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    model = tiny(on_tokens(middle), **tokens(qkv=nn.Linear(32, 96), q_norm=nn.LayerNorm(8), k_norm=nn.LayerNorm(8)))
    program = changed(model, split_projections, split_heads)
    assert (kinds(program)["softmax"], kinds(program)["layer_norm"]) == (4, 8)


def test_one_key_and_value_for_all_heads_is_read_by_each() -> None:
    def middle(m: nn.Module, x: Tensor) -> Tensor:
        q = m.q(x).reshape(1, 16, 4, 8).transpose(1, 2)
        k, v = m.kv(x)[:, None].chunk(2, -1)
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    model = tiny(on_tokens(middle), **tokens(q=nn.Linear(32, 32), kv=nn.Linear(32, 16)))
    assert softmaxes(changed(model, split_projections, split_heads)) == [(1, 16, 16)] * 4


def test_talking_heads_stay_whole() -> None:
    """They are mixed before the softmax and behind it (arXiv 2003.02436, as in CaiT): none can run alone."""
    model = tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention(talking=True)))
    assert softmaxes(changed(model, split_projections, split_heads)) == [(1, 4, 16, 16)]


def test_one_head_and_attention_without_heads_stay_as_they_are() -> None:
    one = tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention(heads=1)))
    assert len(softmaxes(changed(one, split_heads))) == 1

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        return (m.q(x) @ x.mT).softmax(-1) @ x

    assert softmaxes(changed(tiny(on_tokens(middle), **tokens(q=nn.Linear(32, 32))), split_heads)) == [(1, 16, 16)]


def test_windows_are_not_taken_for_heads() -> None:
    """The first axis of a softmax over windows is cut from tokens, not from channels."""

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        y = m.q(x).reshape(1, 4, 4, 32)
        return ((y @ y.mT).softmax(-1) @ y).reshape(1, 16, 32)

    program = changed(tiny(on_tokens(middle), **tokens(q=nn.Linear(32, 32))), split_heads)
    assert softmaxes(program) == [(1, 4, 4, 4)]


def test_a_softmax_over_the_heads_stays_whole() -> None:
    def middle(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).reshape(1, 16, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        return ((q @ k.mT).softmax(1) @ v).transpose(1, 2).flatten(2)

    program = changed(tiny(on_tokens(middle), **tokens(qkv=nn.Linear(32, 96))), split_heads)
    assert softmaxes(program) == [(1, 4, 16, 16)]
