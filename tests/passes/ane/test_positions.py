"""Relative position biases replaced by smaller forms: what changes, what does not, and that it can be learnt."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pocketvit.errors import BadInput
from pocketvit.models import Model, create
from pocketvit.passes.ane import Ane, ane
from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.positions import Position, replace_positions
from pocketvit.passes.ane.program import evaluate

from .subjects import expected, images, kinds, name_of, on_tokens, relative, tiny, tokens

SWIN = {"depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "img_size": 112, "window_size": 7}


class Biased(nn.Module):
    """Attention of 4 heads over tokens, with a bias for each head."""

    def __init__(self, tokens: int, table: Tensor | None = None) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)
        self.table = nn.Parameter(torch.randn(1, 4, tokens, tokens) if table is None else table)

    def forward(self, x: Tensor) -> Tensor:
        B, S, C = x.shape
        q, k, v = self.qkv(x).reshape(B, S, 3, 4, C // 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) / 3 + self.table
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, S, C))


def biased(table: Tensor | None = None, rows: int = 8) -> Model:
    torch.manual_seed(0)
    count = rows // 2 * 4
    return tiny(
        on_tokens(lambda m, x: x + m.attn(m.norm(x))),
        (3, rows, 8),
        **tokens(norm=nn.LayerNorm(32), attn=Biased(count, table)),
    )


def swin() -> Model:
    model = create("swin_tiny_patch4_window7_224", num_classes=10, **SWIN)
    return with_tables(model, lambda table: table.normal_())


def with_tables(model: Model, change: Callable[[Tensor], object]) -> Model:
    """A copy with every position table changed."""
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if "table" in name:
                change(parameter)
    return replace(model, module=module)


def zeroed(model: Model) -> Model:
    return with_tables(model, lambda table: table.zero_())


def distance(model: Model, position: Position, wanted: Tensor) -> float:
    found = ane(model, Ane(position=position))
    return relative(expected(found, images(model)), wanted)


@pytest.mark.parametrize("position", [Position.SINGLE_HEAD, Position.LEPE])
def test_the_name_says_that_the_model_has_to_be_fine_tuned(position: Position) -> None:
    assert ane(biased(), Ane(position=position)).name == f"tiny+ane ({position}: fine-tune it)"
    assert ane(biased()).name == "tiny+ane"


def test_lepe_starts_as_no_position_at_all() -> None:
    model = biased()
    x = images(model)
    assert (found := distance(model, Position.LEPE, expected(zeroed(model), x))) <= 3e-6, f"off by {found:.1e}"
    assert (found := distance(model, Position.LEPE, expected(model, x))) > 1e-3, (
        f"the bias mattered by {found:.1e} only"
    )


def test_a_single_head_gives_every_head_the_mean_table() -> None:
    model = biased()
    mean = with_tables(model, lambda table: table.copy_(table.mean(1, keepdim=True).expand_as(table)))
    x = images(model)
    found = distance(model, Position.SINGLE_HEAD, expected(mean, x))
    assert found <= 3e-6, f"off by {found:.1e}"
    assert distance(model, Position.SINGLE_HEAD, expected(model, x)) > 1e-3


def test_tables_that_are_the_same_already_are_no_heads_tables() -> None:
    """What is added alike to every head is a mask, or one table already."""
    same = torch.randn(1, 1, 16, 16).expand(1, 4, 16, 16).clone()
    with pytest.raises(BadInput, match="adds no relative position bias"):
        ane(biased(same), Ane(position=Position.LEPE))


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet"])
@pytest.mark.parametrize("position", [Position.SINGLE_HEAD, Position.LEPE])
def test_a_model_without_a_relative_position_bias_is_refused(name: str, position: Position) -> None:
    with pytest.raises(BadInput, match=f"{name} adds no relative position bias to its attention"):
        ane(create(name, num_classes=10), Ane(position=position))


def test_tokens_that_are_no_square_cannot_have_lepe() -> None:
    model = biased(rows=4)
    with pytest.raises(BadInput, match=r"'attn' attends over 8 x 8 tokens.*relative_single_head"):
        ane(model, Ane(position=Position.LEPE))
    ane(model, Ane(position=Position.SINGLE_HEAD))


def test_every_bias_of_swin_is_replaced_and_its_masks_stay() -> None:
    """Swin's masks forbid what the shift brought together, and no position embedding may undo that."""
    model = swin()
    x = images(model)
    program = replace_positions(capture(model), Position.LEPE, "swin")
    with torch.no_grad():
        found = relative(evaluate(program, x), expected(zeroed(model), x))
    assert found <= 3e-6, f"off by {found:.1e}"
    convolutions = [op for op in program.ops if name_of(op) == "conv2d" and op.args[1].shape[1:] == (1, 3, 3)]
    assert len(convolutions) == 4, kinds(program)
    assert not any(op.args[1].any() for op in convolutions), "they start at zero"


def test_the_whole_pass_gives_swin_lepe() -> None:
    model = swin()
    assert (found := distance(model, Position.LEPE, expected(zeroed(model), images(model)))) <= 1e-5, f"{found:.1e}"


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", pytest.param("tiny_moat_0", marks=pytest.mark.slow)])
def test_other_families_have_biases_too(name: str) -> None:
    arguments = {"depth": 2} if "vit" in name else {}
    model = create(name, num_classes=10, **arguments)
    before = capture(model)
    program = replace_positions(before, Position.LEPE, name)
    more = kinds(program)["conv2d"] - kinds(before)["conv2d"]
    assert more == kinds(before)["softmax"], f"{more} of {kinds(before)['softmax']} attentions got one"


@pytest.mark.parametrize("position", [Position.SINGLE_HEAD, Position.LEPE])
def test_fine_tuning_brings_it_back_to_the_model(position: Position) -> None:
    """Steps towards the logits that the model gave: what was replaced is made up for."""
    model = biased()
    module = copy.deepcopy(ane(model, Ane(position=position)).module)
    x = images(model, 4)
    wanted = expected(model, x)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(module(x), wanted)
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0], f"from {losses[0]:.2e} to {losses[-1]:.2e}"


def test_the_new_form_is_among_what_is_learnt() -> None:
    model = biased()
    x = images(model)
    module = ane(model, Ane(position=Position.LEPE)).module
    local = [p for p in module.parameters() if p.shape[1:] == (1, 3, 3)]
    assert sum(p.shape[0] for p in local) == 32, [p.shape for p in local]
    nn.functional.mse_loss(module(x), expected(model, x)).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in local), "no gradient reaches LePE"
