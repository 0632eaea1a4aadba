"""Norms and scales vanish into layers, where that is exact."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.norms import fold_norms
from pocketvit.passes.ane.program import aten
from pocketvit.passes.ane.projections import split_projections

from .subjects import Attention, changed, kinds, lively, on_tokens, tiny, tokens

Run = Callable[[nn.Module, Tensor], Tensor]


class Scale(nn.Module):
    """A factor for each channel: LayerScale."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(*shape) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def in_a_row(x: Tensor, *parts: nn.Module) -> Tensor:
    for part in parts:
        x = part(x)
    return x.flatten(1)


def levit(m: nn.Module, x: Tensor) -> Tensor:
    y = m.linear(x)
    return x + m.bn(y.flatten(0, 1)).reshape_as(y).relu()


# what is run, its parts, and the operations that must be gone
FOLDED: dict[str, tuple[Run, dict[str, nn.Module], set[str]]] = {
    "a batch norm behind a linear, through a reshape": (
        on_tokens(levit),
        tokens(linear=nn.Linear(32, 32, bias=False), bn=nn.BatchNorm1d(32)),
        {"batch_norm"},
    ),
    "a batch norm behind a convolution": (
        lambda m, x: in_a_row(x, m.conv, m.bn),
        {"conv": nn.Conv2d(3, 8, 3, 2, 1, bias=False), "bn": nn.BatchNorm2d(8)},
        {"batch_norm"},
    ),
    "a batch norm behind a depthwise convolution": (
        lambda m, x: in_a_row(x, m.conv, m.bn),
        {"conv": nn.Conv2d(3, 3, 3, 1, 1, groups=3), "bn": nn.BatchNorm2d(3)},
        {"batch_norm"},
    ),
    "a batch norm before a convolution of 1 x 1": (
        lambda m, x: in_a_row(x, m.bn, m.conv),
        {"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 8, 1)},
        {"batch_norm"},
    ),
    "a batch norm before two convolutions": (
        lambda m, x: in_a_row(m.one(m.bn(x)) * m.two(m.bn(x))),
        {"bn": nn.BatchNorm2d(3), "one": nn.Conv2d(3, 8, 1), "two": nn.Conv2d(3, 8, 1, bias=False)},
        {"batch_norm"},
    ),
    "a batch norm between two linears of a classifier": (
        lambda m, x: m.head(m.bn(x.mean((2, 3)))),
        {"bn": nn.BatchNorm1d(3), "head": nn.Linear(3, 10)},
        {"batch_norm"},
    ),
    "the scale of a residual branch": (
        on_tokens(lambda m, x: x + m.scale(m.linear(x))),
        tokens(linear=nn.Linear(32, 32), scale=Scale(32)),
        {"mul"},
    ),
    "the scale of a residual branch of maps": (
        lambda m, x: in_a_row(x + m.scale(m.conv(x))),
        {"conv": nn.Conv2d(3, 3, 3, 1, 1), "scale": Scale(3, 1, 1)},
        {"mul"},
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_it_vanishes(name: str) -> None:
    run, parts, gone = FOLDED[name]
    model = tiny(run, **parts)
    before, program = kinds(capture(model)), changed(model, fold_norms)
    assert all(before[kind] for kind in gone), f"nothing to fold: {before}"
    left = {kind: kinds(program)[kind] for kind in gone}
    assert not any(left.values()), f"{left} of {dict(before)} are left"


STAYS: dict[str, tuple[Run, dict[str, nn.Module], str]] = {
    "a batch norm with a shift before a padded convolution": (
        lambda m, x: in_a_row(x, m.bn, m.conv),
        {"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 8, 3, 1, 1)},
        "batch_norm",
    ),
    "a batch norm before a convolution padded to the same size": (
        lambda m, x: in_a_row(x, m.bn, m.conv),
        {"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 8, 3, padding="same")},
        "batch_norm",
    ),
    "a batch norm behind what others read too": (
        lambda m, x: in_a_row(m.bn(y := m.conv(x)) + y),
        {"conv": nn.Conv2d(3, 8, 1), "bn": nn.BatchNorm2d(8)},
        "batch_norm",
    ),
    "a batch norm before a layer and something else": (
        lambda m, x: in_a_row(m.conv(y := m.bn(x)) + y.mean(1, keepdim=True)),
        {"bn": nn.BatchNorm2d(3), "conv": nn.Conv2d(3, 8, 1)},
        "batch_norm",
    ),
    "a batch norm over what the linear has as tokens": (
        on_tokens(lambda m, x: m.bn(m.linear(x))),
        tokens(linear=nn.Linear(32, 32), bn=nn.BatchNorm1d(16)),
        "batch_norm",
    ),
    "a scale of pixels": (
        lambda m, x: in_a_row(x, m.conv, m.scale),
        {"conv": nn.Conv2d(3, 8, 1), "scale": Scale(8, 8)},
        "mul",
    ),
    "a scale behind an activation": (
        on_tokens(lambda m, x: x + m.scale(m.linear(x).relu())),
        tokens(linear=nn.Linear(32, 32), scale=Scale(32)),
        "mul",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_it_stays(name: str) -> None:
    run, parts, kind = STAYS[name]
    assert kinds(changed(tiny(run, **parts), fold_norms))[kind] == 1, "it is gone, which cannot be exact"


def test_the_scale_of_scores_folds_into_the_queries_once_they_have_a_layer() -> None:
    model = tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention()))
    assert kinds(changed(model, fold_norms))["mul"] == 1, "keys and values come from the same layer"
    assert not kinds(changed(model, split_projections, fold_norms))["mul"]


def test_the_scale_of_a_product_folds_into_its_first_factor() -> None:
    """MViT and others scale the scores, not the queries."""

    def middle(m: nn.Module, x: Tensor) -> Tensor:
        return (m.q(x) @ m.k(x).mT * 0.2 / 3).softmax(-1) @ x

    model = tiny(on_tokens(middle), **tokens(q=nn.Linear(32, 32), k=nn.Linear(32, 32)))
    assert not {"mul", "div"} & set(kinds(changed(model, fold_norms)))


def test_a_scale_without_a_shift_folds_into_a_padded_convolution() -> None:
    norm = nn.BatchNorm2d(3)
    model = tiny(lambda m, x: in_a_row(x, m.bn, m.conv), bn=norm, conv=nn.Conv2d(3, 8, 3, 1, 1))
    with torch.no_grad():
        norm.bias.zero_()
        norm.running_mean.zero_()
    assert not kinds(changed(model, fold_norms))["batch_norm"]


def test_a_layer_norm_keeps_its_division_only() -> None:
    def middle(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(x)
        return x + m.one(y) * m.two(y)

    model = tiny(on_tokens(middle), **tokens(norm=nn.LayerNorm(32), one=nn.Linear(32, 32), two=nn.Linear(32, 32)))
    (norm,) = [op for op in changed(model, fold_norms).ops if op.target is aten.layer_norm.default]
    assert norm.args[2:4] == (None, None), "its scale and shift are in the linears behind it"


def test_a_layer_norm_that_something_else_reads_keeps_its_scale() -> None:
    model = tiny(
        on_tokens(lambda m, x: m.one(y := m.norm(x)) + y), **tokens(norm=nn.LayerNorm(32), one=nn.Linear(32, 32))
    )
    (norm,) = [op for op in changed(model, fold_norms).ops if op.target is aten.layer_norm.default]
    assert norm.args[2] is not None


def test_weights_are_folded_in_float64() -> None:
    """A chain of norms and scales: folded one after the other in float32 it would lose digits each time."""
    parts = {"conv": nn.Conv2d(3, 64, 1), **{f"bn{i}": nn.BatchNorm2d(64) for i in range(8)}}
    model = tiny(lambda m, x: in_a_row(x, m.conv, *(getattr(m, f"bn{i}") for i in range(8))), **parts)
    program = changed(model, fold_norms)
    assert not kinds(program)["batch_norm"]


@pytest.mark.slow
def test_levit_has_no_batch_norm_left() -> None:
    model = lively("levit_128s")
    assert kinds(capture(model))["batch_norm"] > 50
    assert not kinds(changed(model, fold_norms, within=3e-6))["batch_norm"]
