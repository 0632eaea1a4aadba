"""The whole pass on whole models: the same outputs, less traffic, and the model passed in as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from itertools import product

import pytest
import torch
from torch import nn

from pocketvit.audits.ane import _exported
from pocketvit.errors import CheckFailed
from pocketvit.measure.ane.audit import Audit, audit
from pocketvit.models import Model, weights_sha256
from pocketvit.passes import ane as package
from pocketvit.passes.ane import OFF, TOLERANCE, Ane, ane
from pocketvit.passes.ane.capture import capture
from pocketvit.passes.ane.emit import Rewritten
from pocketvit.passes.ane.positions import Position
from pocketvit.passes.ane.rewriting import rewrite

from .subjects import Attention, benchmark, expected, images, lively, on_tokens, relative, tiny, tokens

SWIN = {"depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "img_size": 112, "window_size": 7}
SUBJECTS: dict[str, Callable[[], Model]] = {
    "test_vit": lambda: lively("test_vit"),
    "deit of 3 blocks": lambda: lively("deit_tiny_patch16_224", depth=3),
    "small swin": lambda: lively("swin_tiny_patch4_window7_224", **SWIN),
    "test_efficientnet": lambda: lively("test_efficientnet"),
    "levit_128s": lambda: lively("levit_128s"),
    "deit_tiny_patch16_224": lambda: lively("deit_tiny_patch16_224"),
    "swin_tiny_patch4_window7_224": lambda: lively("swin_tiny_patch4_window7_224"),
    "mobilevit_xxs": lambda: lively("mobilevit_xxs"),
    "vit_relpos_small_patch16_224": lambda: lively("vit_relpos_small_patch16_224"),
    "tiny_moat_0": lambda: lively("tiny_moat_0"),
}
SLOW = list(SUBJECTS)[4:]
FEWER_TRANSPOSES = {
    "deit of 3 blocks", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mobilevit_xxs",
}  # fmt: skip
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SUBJECTS]


@dataclass(frozen=True)
class Case:
    """A model before and after the pass. was: the hash of its weights, and its logits for `x`, before the pass."""

    model: Model
    rewritten: Model
    x: torch.Tensor
    was: tuple[str, torch.Tensor]
    before: Audit
    after: Audit


@cache
def case(name: str) -> Case:
    model = SUBJECTS[name]()
    x = images(model, 2)
    was = weights_sha256(model.module), expected(model, x)
    rewritten = ane(model)
    return Case(model, rewritten, x, was, audit(_exported(model)), audit(_exported(rewritten)))


@pytest.mark.parametrize("name", EVERY)
def test_the_outputs_are_the_same(name: str) -> None:
    found = relative(expected(case(name).rewritten, case(name).x), case(name).was[1])
    assert found <= TOLERANCE, f"{name} is off by {found:.1e} of its largest logit"


@pytest.mark.parametrize("name", EVERY)
def test_the_model_passed_in_stays_as_it_was(name: str) -> None:
    sha256, logits = case(name).was
    assert weights_sha256(case(name).model.module) == sha256
    assert torch.equal(expected(case(name).model, case(name).x), logits)
    assert case(name).rewritten.name == f"{case(name).model.name}+ane"
    assert case(name).rewritten.spec == case(name).model.spec


@pytest.mark.parametrize("name", EVERY)
def test_padded_traffic_does_not_rise(name: str) -> None:
    before, after = case(name).before, case(name).after
    assert after.padded_bytes <= before.padded_bytes, f"{before.padded_bytes:,} bytes, {after.padded_bytes:,} after"
    assert after.transposes <= before.transposes, f"{before.transposes} transposes, {after.transposes} after"
    assert after.highest_rank <= 5
    if name in FEWER_TRANSPOSES:
        assert after.transposes < before.transposes, f"{before.transposes} transposes before and after"


@pytest.mark.parametrize("name", EVERY)
def test_findings_that_the_pass_is_for_are_gone(name: str) -> None:
    before, after = (Counter(f.rule for f in one.findings) for one in (case(name).before, case(name).after))
    gone = {rule: after[rule] for rule in ("rank", "norm", "qkv")}
    assert not any(gone.values()), f"{gone} are left of {dict(before)}"


@pytest.mark.slow
def test_levit_had_batch_norms_that_nothing_folded() -> None:
    """And lost more than two thirds of its traffic with them."""
    found = case("levit_128s")
    assert sum(f.rule == "norm" for f in found.before.findings) > 40
    assert not [f for f in found.after.findings if f.kind == "batch_norm"]
    ratio = found.before.padded_bytes / found.after.padded_bytes
    assert ratio > 3, f"{ratio:.2f} times less traffic"


def test_deit_runs_as_convolutions_with_one_softmax_per_head() -> None:
    rules = Counter(f.rule for f in case("deit of 3 blocks").after.findings)
    assert (rules["layout"], rules["softmax"]) == (0, 0), rules


def subject() -> Model:
    """Something for every part of the pass: a batch norm, Q, K and V in one, heads, linears."""

    def middle(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return x + m.attn(m.bn(m.linear(x).flatten(0, 1)).reshape_as(x))

    parts = {"linear": nn.Linear(32, 32), "bn": nn.BatchNorm1d(32), "attn": Attention()}
    return tiny(on_tokens(middle), (3, 32, 32), **tokens(**parts))


@pytest.mark.parametrize(("layouts", "heads", "norms"), list(product([True, False], repeat=3)))
def test_every_part_can_be_left_out(layouts: bool, heads: bool, norms: bool) -> None:
    """And does what it is for: convolutions, one softmax per head, no batch norm."""
    model = subject()
    rewritten = ane(model, Ane(layouts=layouts, heads=heads, norms=norms))
    x = images(model)
    found = relative(expected(rewritten, x), expected(model, x))
    assert found <= TOLERANCE, f"off by {found:.1e}"
    kinds = Counter(op.kind for op in _exported(rewritten))
    if norms:
        assert not kinds["batch_norm"], kinds
    if heads and layouts:
        assert kinds["softmax"] == 4, kinds
    if not heads:
        assert kinds["softmax"] == 1, kinds
    if not layouts:
        assert kinds["conv"] == 1, "the embedding alone is a convolution"


def test_with_nothing_on_the_model_is_copied() -> None:
    model = subject()
    found = ane(model, OFF)
    assert found.name == model.name
    assert type(found.module) is type(model.module)
    assert found.module is not model.module
    assert weights_sha256(found.module) == weights_sha256(model.module)


def test_the_config_has_no_field_that_is_not_tested_here() -> None:
    assert [field.name for field in fields(Ane)] == ["layouts", "heads", "norms", "position"]
    assert Ane() == Ane(layouts=True, heads=True, norms=True, position=Position.KEEP)


def test_a_rewrite_that_computes_something_else_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check at the end is real: a wrong weight of one layer stops it."""

    def wrong(*args: object, **options: object) -> Rewritten:
        module = rewrite(*args, **options)
        with torch.no_grad():
            next(p for n, p in module.named_parameters() if "proj" in n).mul_(1.01)
        return module

    monkeypatch.setattr(package, "rewrite", wrong)
    with pytest.raises(CheckFailed, match=r"tiny\+ane differs from the model by .* of its largest logit.*not taken"):
        ane(subject())


def moat(size: int, window: int) -> Model:
    torch.manual_seed(0)
    return tiny(benchmark("third_party_moat").ThirdPartyMoat(window), (3, size, size))


@pytest.mark.slow
def test_a_third_partys_moat_computes_the_same_in_rank_5() -> None:
    """Windows of six axes, channels first, and a bias for each head: none of it ours."""
    model = moat(128, 4)
    rewritten = ane(model)
    x = images(model)
    found = relative(expected(rewritten, x), expected(model, x))
    assert found <= TOLERANCE, f"off by {found:.1e}"
    before, after = audit(_exported(model)), audit(_exported(rewritten))
    assert (before.highest_rank, after.highest_rank) == (6, after.highest_rank)
    assert after.highest_rank <= 5, f"rank {after.highest_rank}"
    assert after.layout_copies < before.layout_copies / 2, (
        f"{before.layout_copies} copies, {after.layout_copies} after"
    )


@pytest.mark.slow
def test_a_third_partys_moat_at_512_pixels_loses_its_copies() -> None:
    model = moat(512, 8)
    module = rewrite(capture(model), layouts=True, heads=True, norms=True)
    rewritten = Model(name="moat", module=module, spec=model.spec, trained=False, classes=10)
    before, after = audit(_exported(model)), audit(_exported(rewritten))
    assert before.highest_rank == 6
    assert after.highest_rank <= 5, f"rank {after.highest_rank}"
    ratio = before.padded_bytes / after.padded_bytes
    assert ratio >= 3.3, f"{before.padded_bytes:,} bytes fall to {after.padded_bytes:,}, {ratio:.2f} times"
    copies = before.layout_copies / after.layout_copies
    assert copies >= 4, f"{before.layout_copies} copies fall to {after.layout_copies}, {copies:.1f} times"


def test_models_from_capture_on_are_independent_of_the_order_they_are_made_in() -> None:
    """The same model gives the same module: nothing is kept from one run to the next."""
    model = subject()
    first, second = (rewrite(capture(model), layouts=True, heads=True, norms=True) for _ in range(2))
    assert str(first.body.code) == str(second.body.code)
    assert weights_sha256(first) == weights_sha256(second)
