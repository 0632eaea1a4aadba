"""Models of a few lines with what is easily got wrong: each keeps its outputs, with several rewrites on and off."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pocketvit.errors import BadInput
from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.rewriting import rewrite

from .subjects import expected, images, relative, tiny

Run = Callable[[nn.Module, Tensor], Tensor]


def on_tokens(use: Run) -> Run:
    """(1, 16, 16) tokens, made by a layer and read by another."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        return m.head(use(m, m.stem(x).flatten(2).transpose(1, 2)).flatten(1))

    return run


def parts(wide: int = 256, **more: nn.Module) -> dict[str, nn.Module]:
    return {"stem": nn.Conv2d(3, 16, 2, 2), "linear": nn.Linear(16, 16), "head": nn.Linear(wide, 10), **more}


def learnt_queries(m: nn.Module, x: Tensor) -> Tensor:
    keys = m.linear(x)[:, None]
    return F.scaled_dot_product_attention(m.latent.weight[None, None], keys, keys)


def masked_by_the_image(m: nn.Module, x: Tensor) -> Tensor:
    seen = (x[..., 0] > x[..., 0].mean()).view(1, 1, 1, 16)
    q = m.linear(x).view(1, 16, 4, 4).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q, attn_mask=seen).transpose(1, 2).reshape(1, 16, 16)


def heads_that_leave(m: nn.Module, x: Tensor) -> Tensor:
    q = m.linear(x).view(1, 16, 4, 4).transpose(1, 2)
    return ((q @ q.transpose(-1, -2)).softmax(-1) @ q).mean((2, 3))


ODD: dict[str, tuple[Run, dict[str, nn.Module]]] = {
    "two expansions that add up": (
        on_tokens(lambda m, x: (x.mean(1, True).expand(-1, 16, -1) + x.amax(1, True).expand(-1, 16, -1)).cumsum(1)),
        parts(),
    ),
    "a product with itself, scaled": (on_tokens(lambda m, x: ((y := m.linear(x)) @ y) * 0.5), parts()),
    "a part of nothing": (on_tokens(lambda m, x: torch.cat(m.linear(x).split([10, 0, 6], 1), 1)), parts()),
    "a norm with a shift and no scale": (
        on_tokens(lambda m, x: F.layer_norm(m.linear(x), (16,), None, m.linear.bias)),
        parts(),
    ),
    "a mask that the image decides": (on_tokens(masked_by_the_image), parts()),
    "learnt queries": (on_tokens(learnt_queries), parts(32, latent=nn.Embedding(2, 16))),
    "an einsum of three": (
        on_tokens(lambda m, x: torch.einsum("bnc,ck,bnk->bnk", x, m.linear.weight, x)),
        parts(),
    ),
    "a number that is expanded": (on_tokens(lambda m, x: x + x.mean().expand(1, 16, 1)), parts()),
    "a bias that the image decides": (
        on_tokens(lambda m, x: F.linear(x, m.linear.weight, x.mean((0, 1)))),
        parts(),
    ),
    "two expressions of one layer, a row and heads": (
        on_tokens(lambda m, x: (y := m.linear(x)).view(1, 16, 4, 4).softmax(-1) @ y[0, 0, :4]),
        parts(64),
    ),
    "maps that a reshape cannot cut": (
        lambda m, x: m.head(m.stem(x).reshape(1, 16, 4, 4).reshape(1, 8, 32).relu().flatten(1)),
        parts(),
    ),
    "a value that is chosen by a comparison": (on_tokens(lambda m, x: torch.where(x > 0.5, x, -x)), parts()),
    "the answer from within attention": (
        lambda m, x: heads_that_leave(m, m.stem(x).flatten(2).transpose(1, 2)) * 2,
        parts(),
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_outputs_stay(name: str) -> None:
    run, modules = ODD[name]
    torch.manual_seed(0)
    model = tiny(run, **modules)
    x = images(model)
    wanted = expected(model, x)
    for layouts, heads, norms in ((True, True, True), (False, True, False), (True, False, False)):
        with torch.no_grad():
            found = rewrite(capture(model), layouts=layouts, heads=heads, norms=norms)(x)
        off = relative(found, wanted)
        assert off <= 1e-5, f"layouts {layouts}, heads {heads}, norms {norms}: off by {off:.1e}"


class Counting(nn.Module):
    """Writes into a buffer of its own while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(192, 10)
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(1)
        return self.linear(x.flatten(1))


def test_what_a_model_notes_down_is_not_its_answer() -> None:
    model = tiny(Counting())
    x = images(model)
    assert relative(rewrite(capture(model), layouts=True, heads=True, norms=True)(x), expected(model, x)) <= 1e-5


class Named(nn.Module):
    """Modules under the names that constants would have."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 16, 16))
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.add = nn.Sequential(nn.Linear(16, 16))
        self.constants = nn.Linear(16, 16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.constants(self.add(x).relu()).mean(1))


def test_no_name_is_taken_twice() -> None:
    model = tiny(Named())
    x = images(model)
    assert relative(rewrite(capture(model), layouts=True, heads=True, norms=True)(x), expected(model, x)) <= 1e-5


REFUSED: dict[str, tuple[Run, str]] = {
    "noise": (lambda m, x: m.linear(x + torch.randn_like(x)), "draws random numbers"),
    "dropout that is always on": (lambda m, x: m.linear(F.dropout(x, 0.5)), "draws random numbers"),
    "two answers": (lambda m, x: (m.linear(x), x), "does not return one tensor"),  # type: ignore[dict-item,return-value]
    "an answer without the image": (lambda m, x: m.linear.weight, "does not return one tensor"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused(name: str) -> None:
    run, says = REFUSED[name]
    with pytest.raises(BadInput, match=rf"tiny cannot be rewritten: .*{says}.* as it was\."):
        capture(tiny(run, linear=nn.Linear(8, 8)))


def test_a_head_of_zeros_hides_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits of zeros agree with anything, so the check gives such a head weights."""
    import pocketvit.passes.ane as package
    from pocketvit.errors import CheckFailed

    run, modules = ODD["a norm with a shift and no scale"]
    model = tiny(run, **modules)
    nn.init.zeros_(model.module.head.weight)
    nn.init.zeros_(model.module.head.bias)
    assert package.ane(model).name == "tiny+ane"

    def wrong(program: object, **how: bool) -> nn.Module:
        module = rewrite(program, **how)  # type: ignore[arg-type]
        with torch.no_grad():
            next(p for name, p in module.named_parameters() if "stem" in name).mul_(1.5)
        return module

    monkeypatch.setattr(package, "rewrite", wrong)
    with pytest.raises(CheckFailed, match="differs from the model by"):
        package.ane(model)
