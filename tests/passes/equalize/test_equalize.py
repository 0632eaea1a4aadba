"""Equalised models compute the same, and survive 8 bits where the model did not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pocketvit.data import open_data, sample
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.models import EagerRunner, Model, weights_sha256
from pocketvit.passes import apply, parse_passes, same_function
from pocketvit.passes.equalize import OFF, Equalize, exactness, rewriting
from pocketvit.passes.equalize.rewriting import LIMIT, Editor

from ..ane.subjects import benchmark, tiny
from .subjects import SMALL, decibels, in_8_bits, photos

SMOOTH, RANGES, BOTH = Equalize(), Equalize(smooth=None, reparameterize=True), Equalize(reparameterize=True)
# pairs of each model: norms before layers, and values before projections
PAIRS = {"deit": 13, "swin": 14, "mobilevit": 16, "moat": 12, "cait": 11, "convnext": 13, "levit": 2}
SLOW = {"levit", "convnext"}
EVERY = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in SMALL]


@cache
def small(name: str) -> Model:
    return SMALL[name]()


def error(found: Model, model: Model, images: np.ndarray) -> float:
    expected = EagerRunner(model)(images)
    return float(np.linalg.norm(EagerRunner(found)(images) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name", EVERY)
def test_outputs_stay_and_so_does_the_model_passed_in(name: str) -> None:
    model = small(name)
    before, images = weights_sha256(model.module), photos(model, 2)
    found = apply(model, [BOTH], images)
    assert found.name == f"{model.name}+equalize ({PAIRS[name]} pairs)"
    assert weights_sha256(model.module) == before, "the pass changed the model it was given"
    others = photos(model, 5)[2:]  # not those that ranges were measured on
    off = error(found, model, others)
    assert off <= 1e-5, f"{name} is off by {off:.1e}"
    changed = [n for n, p in found.module.named_parameters() if not torch.equal(p, model.module.get_parameter(n))]
    assert len(changed) > PAIRS[name], f"only {changed} changed"
    assert all(p.dtype == model.module.get_parameter(n).dtype for n, p in found.module.named_parameters())


@pytest.mark.parametrize("config", [Equalize(smooth=0.0), Equalize(smooth=1.0)], ids=str)
def test_every_strength_keeps_the_outputs(config: Equalize) -> None:
    model = small("cait")
    off = error(apply(model, [config], photos(model, 2)), model, photos(model, 5)[2:])
    assert off <= 1e-5, f"off by {off:.1e}"


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("deit", SMOOTH),
        ("deit", BOTH),
        pytest.param("mobilevit", SMOOTH, marks=pytest.mark.slow),
        pytest.param("moat", BOTH, marks=pytest.mark.slow),
    ],
)
def test_outliers_that_ruin_8_bits_are_taken_back(name: str, config: Equalize) -> None:
    """The same function with channels 30 times too large: equalising must give back nearly all that they cost."""
    model = small(name)
    images = sample(open_data("digits"), model.spec, 40)  # of few images, ranges say little about others
    seen, images = images[:32], images[32:]
    ruined = benchmark("equalize").with_outliers(model)
    off = error(ruined, model, images)
    assert off <= 1e-5, f"outliers change the function by {off:.1e}"
    as_it_was = decibels(in_8_bits(model, seen), model, images)
    cost = decibels(in_8_bits(ruined, seen), model, images)
    back = decibels(in_8_bits(apply(ruined, [config], seen), seen), model, images)
    said = f"{as_it_was:.1f} dB as it was, {cost:.1f} with outliers, {back:.1f} equalised"
    assert cost < as_it_was - 6, said
    assert back > as_it_was - 3, said


def test_smoothing_shares_outliers_as_the_paper_says() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 10))
    model = tiny(module)
    images = photos(model)
    found = apply(model, [Equalize(smooth=0.3)], images)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (model.spec.mean, model.spec.std))
    x = module[:2]((torch.from_numpy(images) - mean) / std)
    wanted = x.abs().amax(0) ** 0.3 / module[2].weight.abs().amax(0) ** 0.7
    wanted = wanted / wanted.log().mean().exp()
    torch.testing.assert_close(found.module[2].weight, module[2].weight * wanted, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.module[1].weight, module[1].weight / wanted, rtol=1e-4, atol=1e-6)
    assert torch.equal(found.module[2].bias, module[2].bias), "nothing is shifted"


def test_reparameterized_channels_have_one_range() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 10))
    model = tiny(module)
    images = photos(model)
    found = apply(model, [RANGES], images)
    seen: list[Tensor] = []
    found.module[1].register_forward_hook(lambda _, __, x: seen.append(x))
    EagerRunner(found)(images)
    low, high = seen[0].amin(0), seen[0].amax(0)
    assert (low - low.mean()).abs().max() < 1e-4 * (high - low).mean()
    assert (high - high.mean()).abs().max() < 1e-4 * (high - low).mean()


def test_dead_channels_and_huge_ones_keep_scales_in_bounds() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 10))
    model = tiny(module)
    with torch.no_grad():
        module[1].weight[:3], module[1].bias[:3] = 0, 0  # never anything but zero
        module[2].weight[:, 3:6] = 0  # never read
        module[1].weight[6], module[1].bias[6] = 1e9, 0
    for config in (SMOOTH, RANGES):
        found = apply(model, [config], photos(model))
        ratio = (found.module[2].weight / module[2].weight)[:, 6:]
        assert ratio.isfinite().all()
        assert ratio.min() >= 0.999 / LIMIT, f"{ratio.min()}"
        assert ratio.max() <= 1.001 * LIMIT, f"{ratio.max()}"
        assert all(p.isfinite().all() for p in found.module.parameters())


def test_layers_with_relu_between_are_equalised() -> None:
    first = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=4), nn.BatchNorm2d(16), nn.ReLU()]
    pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    model = tiny(nn.Sequential(*first, nn.MaxPool2d(2), nn.Conv2d(16, 8, 1), *pooled))
    found = apply(model, [Equalize(cross_layer=True)], photos(model))
    assert found.name == "tiny+equalize (3 pairs)"
    off = error(found, model, photos(model, 8))
    assert off <= 1e-5, f"off by {off:.1e}"


class Gated(nn.Module):
    """fc1(x) gate(x), where the gate alone passes a function; then fc2."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(192, 48), nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        value, gate = self.fc1(x.flatten(1)).chunk(2, -1)
        return self.fc2(value * nn.functional.silu(gate))


def test_a_gate_lets_the_gated_half_through() -> None:
    torch.manual_seed(0)
    model = tiny(Gated())
    found = apply(model, [Equalize(smooth=None, cross_layer=True)], photos(model))
    was, is_now = model.module.fc1.weight, found.module.fc1.weight
    assert not torch.equal(is_now[:24], was[:24])
    assert torch.equal(is_now[24:], was[24:]), "the gate's own half goes into a SiLU"


@pytest.mark.parametrize(
    ("middle", "says"),
    [
        (nn.GELU(), r"nothing to equalise by cross_layer.*gelu \(1x\).*does not let a scale through"),
        (nn.SiLU(), r"silu \(1x\)"),
        (nn.Hardswish(), r"hardswish \(1x\)"),
    ],
)
def test_what_lets_no_scale_through_is_named(middle: nn.Module, says: str) -> None:
    model = tiny(nn.Sequential(nn.Flatten(), nn.Linear(192, 16), middle, nn.Linear(16, 10)))
    with pytest.raises(BadInput, match=says):
        apply(model, [Equalize(smooth=None, cross_layer=True)], photos(model))
    with pytest.raises(BadInput, match="nothing to equalise by smooth: it looks for a norm"):
        apply(model, [SMOOTH], photos(model))
    with pytest.raises(BadInput, match="nothing to equalise by reparameterize"):
        apply(model, [RANGES], photos(model))


def test_a_wrong_edit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Editor.edit

    def wrong(self: Editor, pair, scale: Tensor, shift: Tensor) -> None:
        right(self, pair, scale, shift)
        self.weights[pair.scale].view(-1)[0] *= 1.01

    monkeypatch.setattr(rewriting.Editor, "edit", wrong)
    with pytest.raises(CheckFailed, match=r"differs from the model by .* of its logits' norm"):
        apply(small("deit"), [SMOOTH], photos(small("deit"), 2))


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_a_model_that_sees_nothing_proves_nothing(bias: float) -> None:
    model = tiny(nn.Sequential(nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 10)))
    nn.init.zeros_(model.module[2].weight)
    nn.init.constant_(model.module[2].bias, bias)
    with pytest.raises(BadInput, match="gives the same logits for every image"):
        apply(model, [SMOOTH], photos(model))


def test_a_coarse_model_is_held_against_its_own_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "TOLERANCE", 0.0)
    apply(small("deit"), [SMOOTH], photos(small("deit"), 2))
    monkeypatch.setattr(exactness, "_OF_OWN", 0)
    with pytest.raises(CheckFailed, match="the model's own rounding"):
        apply(small("deit"), [SMOOTH], photos(small("deit"), 2))


def test_a_model_that_cannot_be_exported_is_refused_by_name() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(BadInput, match=r"tiny cannot be followed: torch\.export does not get through it"):
        apply(tiny(Branches()), [SMOOTH], photos(tiny(Branches())))


def test_configs_are_read_and_refused() -> None:
    assert parse_passes(["equalize"], "--pass") == (SMOOTH,)
    assert parse_passes(["equalize:smooth=null,cross_layer=true,reparameterize=true"], "--pass") == (
        Equalize(smooth=None, cross_layer=True, reparameterize=True),
    )
    assert same_function([SMOOTH, RANGES, OFF])
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(BadInput, match="smooth is a share from 0 to 1"):
            Equalize(smooth=share)


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino", "executorch"])
def test_outliers_are_taken_back_in_the_runtime_itself(target: str, tmp_path: Path) -> None:
    bench = benchmark("equalize")
    model = small("deit")
    train, test = open_data("digits", "train"), open_data("digits", "test").take(20)
    ruined = bench.with_outliers(model)
    row = {"target": target, "precision": "w8a8"}
    was = bench.measure(model, row | {"method": "none"}, train, test)
    cost = bench.measure(ruined, row | {"method": "none"}, train, test)
    back = bench.measure(ruined, row | {"method": "smooth 0.5"}, train, test)
    said = f"{was['sqnr_db']} dB as it was, {cost['sqnr_db']} with outliers, {back['sqnr_db']} equalised"
    if target == "openvino":  # NNCF smooths transformers by itself
        assert cost["sqnr_db"] > was["sqnr_db"] - 3, said
    else:
        assert cost["sqnr_db"] < was["sqnr_db"] - 6, said
    assert back["sqnr_db"] > was["sqnr_db"] - 3, said
