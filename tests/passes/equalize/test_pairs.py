"""Which channels may be scaled, and which may not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pocketvit.models import Model
from pocketvit.passes.equalize.pairs import Kind, Survey, survey
from pocketvit.passes.equalize.running import captured

from ..ane.subjects import Attention, tiny


class Tokens(nn.Module):
    """(B, 16, 12) tokens of an 8 x 8 image, a norm, and what is under test."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(12)
        self.function = function
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, 2).flatten(2).transpose(1, 2)
        return self.function(self, x).mean(1)


def found(model: Model) -> Survey:
    module, program = captured(model)
    return survey(program, module)


def told(survey: Survey) -> list[tuple[str, str, int, int]]:
    """(kind, name, channels, of them shiftable)."""
    return [(p.kind.value, p.name, int(p.channels.sum()), int(p.shiftable.sum())) for p in survey.pairs]


def head(inputs: int = 12, *, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, 10, bias=bias)


MOVES: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], dict[str, nn.Module], int]] = {
    "windows": (
        lambda m, x: m.head(
            F.pad(m.norm(x).view(-1, 4, 4, 12).roll((1, 2), (1, 2)), (0, 0, 0, 2))
            .view(-1, 2, 2, 3, 2, 12).permute(0, 1, 3, 2, 4, 5).reshape(-1, 24, 12)
        ),
        {"head": head()},
        0,  # zeros are padded, and zeros cannot be shifted
    ),
    "channels first": (
        lambda m, x: m.head(m.norm(x).transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2),
        {"head": nn.Conv2d(12, 10, 2)},
        12,
    ),
    "padded convolution": (
        lambda m, x: m.head(m.norm(x).transpose(1, 2).unflatten(2, (4, 4))).flatten(2).transpose(1, 2),
        {"head": nn.Conv2d(12, 12, 3, padding=1, groups=12)},
        0,
    ),
    "several layers": (
        lambda m, x: (lambda y: m.head(y) + m.other(y[:, :1]))(m.norm(x)),
        {"head": head(), "other": head()},
        12,
    ),
    "tokens that are averaged": (lambda m, x: m.head(m.norm(x).mean(1, keepdim=True)), {"head": head()}, 12),
    "no bias": (lambda m, x: m.head(m.norm(x)), {"head": head(bias=False)}, 0),
    "channels beside others": (
        lambda m, x: m.head(torch.cat([m.norm(x), m.norm_of_other(x)], dim=-1)),
        {"head": head(24), "norm_of_other": nn.LayerNorm(12)},
        12,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(MOVES))
def test_channels_are_followed_through_moves(name: str) -> None:
    function, parts, shiftable = MOVES[name]
    pairs = found(tiny(Tokens(function, **parts))).pairs
    norm = next(pair for pair in pairs if pair.name == "norm")
    assert norm.kind is Kind.NORM
    assert int(norm.channels.sum()) == 12
    assert int(norm.shiftable.sum()) == shiftable
    assert {a.weight for a in norm.reach.absorbers} == {f"module.{n}.weight" for n in parts if "norm" not in n}


REFUSED: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "a shortcut": (lambda m, x: (lambda y: m.head(y + m.fc(y)))(m.norm(x)), "add"),
    "a function": (lambda m, x: m.head(F.gelu(m.norm(x))), "gelu"),
    "channels mixed": (lambda m, x: m.head(m.norm(x).view(-1, 12, 16).transpose(1, 2)), "a sum over channels"),
    "a product with itself": (lambda m, x: (lambda y: m.head(y * y.flip(1)))(m.norm(x)), "a product with itself"),
    "tokens from elsewhere": (lambda m, x: m.head(torch.cat([x[:, :1], m.norm(x)], 1)), "a sum over channels"),
    "padded with ones": (lambda m, x: m.head(F.pad(m.norm(x), (0, 0, 0, 2), value=1.0)), "pad"),
    "softmax": (lambda m, x: m.head(m.norm(x).softmax(-1)), "softmax"),
    "written in place": (lambda m, x: m.head(x.clone().index_put((torch.tensor([0]),), m.norm(x))), "index_put"),
    "the output": (lambda m, x: (lambda y: m.head(y).sum() + y)(m.norm(x)), "add"),
    "a number of its own": (lambda m, x: m.head(m.norm(x) - 1), "sub"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_channels_that_go_elsewhere_are_left_alone(name: str) -> None:
    function, why = REFUSED[name]
    survey = found(tiny(Tokens(function, head=head(), fc=nn.Linear(12, 12))))
    assert "norm" not in [pair.name for pair in survey.pairs], told(survey)
    assert why in survey.stops, survey.stops


def test_values_are_told_from_queries_and_keys() -> None:
    attention = Attention(12, 4)
    assert ("value", "attn.qkv", 12, 0) in told(found(tiny(Tokens(lambda m, x: m.attn(m.norm(x)), attn=attention))))
    fused = Tokens(lambda m, x: m.attn(m.norm(x)), attn=Fused())
    survey = found(tiny(fused))
    assert told(survey) == [("norm", "norm", 12, 12), ("value", "attn.qkv", 12, 0)]
    assert survey.pairs[1].channels.nonzero().flatten().tolist() == list(range(24, 36)), "the last third are values"
    assert survey.stops["attention scores"]


class Fused(Attention):
    def __init__(self) -> None:
        super().__init__(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).reshape(-1, 16, 3, 4, 3).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(-1, 16, 12))


def test_attention_over_channels_is_left_alone() -> None:
    def cross_covariance(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = m.qkv(x).transpose(1, 2).chunk(3, 1)
        return m.proj((((q @ k.transpose(1, 2)).softmax(-1)) @ v).transpose(1, 2))

    survey = found(tiny(Tokens(cross_covariance, qkv=nn.Linear(12, 36), proj=head())))
    assert told(survey) == []
    assert survey.stops["a sum over channels"]


def test_a_value_that_is_read_twice_is_left_alone() -> None:
    def with_shortcut(m: nn.Module, x: Tensor) -> Tensor:
        v = m.v(x)
        return m.proj((x @ x.transpose(1, 2)).softmax(-1) @ v) + v

    assert told(found(tiny(Tokens(with_shortcut, v=nn.Linear(12, 12), proj=nn.Linear(12, 12))))) == []


def test_tied_and_twice_used_weights_are_left_alone() -> None:
    tied = Tokens(lambda m, x: m.head(m.norm(x)) + m.again(x), head=head(), again=head())
    assert told(found(tiny(tied))) == [("norm", "norm", 12, 12)]
    tied.again.weight = tied.head.weight
    assert told(found(tiny(tied))) == []
    twice = Tokens(lambda m, x: m.head(m.norm(x)) + m.head(x), head=head())
    assert told(found(tiny(twice))) == []
    unused = Tokens(lambda m, x: m.head(m.norm(x)), head=head(), other=head())
    unused.other.weight = unused.head.weight  # of a head that only training reads
    assert told(found(tiny(unused))) == []


def test_norms_of_every_kind_are_found() -> None:
    def images(norm: nn.Module) -> list[tuple[str, str, int, int]]:
        module = nn.Sequential(nn.Conv2d(3, 12, 1), norm, nn.Conv2d(12, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return told(found(tiny(module)))

    assert images(nn.GroupNorm(3, 12)) == [("norm", "1", 12, 12)]
    assert images(nn.BatchNorm2d(12)) == [("norm", "1", 12, 12)]
    assert images(nn.BatchNorm2d(12, affine=False)) == []
    assert images(nn.Identity()) == [("layer", "0", 12, 12)]
    root = Tokens(lambda m, x: m.head(m.rms(x)), rms=nn.RMSNorm(12), head=head())
    assert told(found(tiny(root))) == [("norm", "rms", 12, 0)]
