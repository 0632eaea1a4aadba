"""The module that comes out: names, batches, export, and the norm over channels."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from pocketvit.models import Model, create
from pocketvit.passes.ane import Ane, ane
from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.emit import ChannelNorm, Rewritten, emit
from pocketvit.passes.ane.layouts import rows
from pocketvit.passes.ane.steps import MAX_RANK

from .subjects import expected, images, lively, on_tokens, relative, tiny, tokens


@pytest.fixture(scope="module")
def vit() -> tuple[Model, Model]:
    model = lively("test_vit")
    return model, ane(model)


def test_three_images_are_three_single_ones(vit: tuple[Model, Model]) -> None:
    model, rewritten = vit
    x = images(model, 3)
    with torch.no_grad():
        together = rewritten.module(x)
        single = torch.cat([rewritten.module(one[None]) for one in x])
    assert together.shape == (3, 10)
    assert torch.equal(together, single), f"off by {relative(together, single):.1e}"
    assert (found := relative(together, expected(model, x))) <= 1e-5, f"off by {found:.1e}"


def test_layers_keep_their_names(vit: tuple[Model, Model]) -> None:
    model, rewritten = vit
    graph = rewritten.module.body
    names = {name for name, part in graph.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    was = {name for name, part in model.module.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)}
    assert {re.sub(r"_\d+$", "", name) for name in names} == was, names ^ was
    qkv = {name for name in names if name.startswith("blocks.0.attn.qkv")}
    assert qkv == {"blocks.0.attn.qkv", "blocks.0.attn.qkv_1", "blocks.0.attn.qkv_2"}, qkv


def test_it_exports_and_gives_the_same(vit: tuple[Model, Model]) -> None:
    model, rewritten = vit
    x = images(model)
    with torch.no_grad():
        program = torch.export.export(rewritten.module, (torch.zeros_like(x),))
        found = relative(program.module()(x), expected(model, x))
    assert found <= 1e-5, f"off by {found:.1e}"
    ranks = [node.meta["val"].ndim for node in program.graph.nodes if isinstance(node.meta.get("val"), Tensor)]
    assert max(ranks) <= MAX_RANK, f"rank {max(ranks)}"


def test_nothing_is_shared_with_the_model(vit: tuple[Model, Model]) -> None:
    model, rewritten = vit
    own = {part.data_ptr() for part in (*model.module.parameters(), *model.module.buffers())}
    made = {part.data_ptr() for part in (*rewritten.module.parameters(), *rewritten.module.buffers())}
    assert not own & made


def test_it_is_ready_to_be_run(vit: tuple[Model, Model]) -> None:
    assert not any(part.training for part in vit[1].module.modules())


def test_all_that_is_learnt_stays_learnable() -> None:
    """Weights of layers and norms; a class token and position embeddings are constants of the graph."""
    rewritten = ane(create("test_vit", num_classes=10), Ane(norms=False))
    assert all(parameter.requires_grad for parameter in rewritten.module.parameters())
    x = images(rewritten)
    rewritten.module(x).square().sum().backward()
    without = [name for name, parameter in rewritten.module.named_parameters() if parameter.grad is None]
    assert not without, f"no gradient reaches {without}"


def plainly(model: Model) -> tuple[Rewritten, float]:
    module = emit(program := capture(model), rows(program))
    x = images(model)
    with torch.no_grad():
        return module, relative(module(x), expected(model, x))


def test_operations_that_are_not_known_stay_as_they_were() -> None:
    """Pooling, interpolation, dilated and transposed convolutions, group norms, gathers."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(m.gaps(x)).abs().sqrt()
        y = nn.functional.max_pool2d(y, 2) + nn.functional.avg_pool2d(y, 2)
        y = nn.functional.interpolate(m.up(y), scale_factor=2, mode="bilinear")
        return torch.cat([y.roll(1, 2), y.clamp(0, 1)], 1).cumsum(1).flatten(1)

    parts = {"gaps": nn.Conv2d(3, 8, 3, padding=2, dilation=2), "norm": nn.GroupNorm(2, 8)}
    module, found = plainly(tiny(run, **parts, up=nn.ConvTranspose2d(8, 4, 2, 2)))
    assert found <= 2e-6, f"off by {found:.1e}"
    assert [type(part) for part in module.modules() if isinstance(part, nn.Conv2d)] == [nn.Conv2d]


def test_a_choice_of_two_values_by_a_third_stays_as_it_was() -> None:
    """Its condition is of booleans, which are no floats."""
    _, found = plainly(tiny(lambda m, x: torch.where(x > 0.5, x, -x).flatten(1)))
    assert found == 0, f"off by {found:.1e}"


def test_convolutions_keep_their_strides_pads_and_groups() -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(m.same(m.depthwise(m.wide(x))).mean((2, 3)))

    model = tiny(
        run,
        wide=nn.Conv2d(3, 8, (3, 5), (2, 1), (1, 2)),
        depthwise=nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
        same=nn.Conv2d(8, 8, 3, padding="same"),
        head=nn.Linear(8, 10),
    )
    module, found = plainly(model)
    assert found <= 2e-6, f"off by {found:.1e}"
    kept = ("kernel_size", "stride", "groups")
    for name in ("wide", "depthwise", "same"):
        before, after = getattr(model.module, name), getattr(module.body, name)
        assert [getattr(before, one) for one in kept] == [getattr(after, one) for one in kept], name


def test_two_calls_of_one_layer_are_two_layers() -> None:
    model = tiny(on_tokens(lambda m, x: m.twice(m.twice(x).relu())), **tokens(twice=nn.Linear(32, 32)))
    module, found = plainly(model)
    assert found <= 2e-6, f"off by {found:.1e}"
    assert {"twice", "twice_1"} <= {name for name, _ in module.body.named_children()}


@pytest.mark.parametrize("scaled", [True, False])
def test_the_norm_over_channels_is_a_layer_norm(scaled: bool) -> None:
    norm = nn.LayerNorm(24, eps=1e-3, elementwise_affine=scaled)
    if scaled:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 24, 1, 50) * 3 + 1
    with torch.no_grad():
        ours = ChannelNorm(1e-3, norm.weight, norm.bias)(x)
        wanted = norm(x.squeeze(2).mT).mT.unsqueeze(2)
    assert (found := relative(ours, wanted)) <= 1e-6, f"off by {found:.1e}"


def test_constants_of_every_shape_are_turned_with_their_operation() -> None:
    """A position embedding of (1, S, C), a scale of C, a number, and a bias of (S, 1)."""
    embedding, scale, column = torch.randn(1, 16, 32), torch.rand(32), torch.randn(16, 1)
    model = tiny(
        on_tokens(lambda m, x: m.two(((m.one(x) + embedding) * scale - column).relu() / 3)),
        **tokens(one=nn.Linear(32, 32), two=nn.Linear(32, 32)),
    )
    rewritten = ane(model, Ane(norms=False))
    x = images(model)
    with torch.no_grad():
        found = relative(rewritten.module(x), expected(model, x))
    assert found <= 3e-6, f"off by {found:.1e}"
