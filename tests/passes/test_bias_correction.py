"""Biases that take back what rounded weights add on average."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.data import open_data, sample
from pocketvit.errors import BadInput
from pocketvit.models import EagerRunner, Model, create, weights_sha256
from pocketvit.passes import apply, parse_passes, same_function
from pocketvit.passes.bias_correction import BiasCorrection, rounded

from .ane.subjects import tiny


def with_rounded_weights(model: Model, bits: int) -> Model:
    module = copy.deepcopy(model.module)
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            layer.weight.data = rounded(layer.weight.data, bits)
    return replace(model, module=module)


def logits(model: Model, images: np.ndarray) -> np.ndarray:
    return EagerRunner(model)(images)


def test_the_mean_of_a_layers_outputs_is_restored() -> None:
    torch.manual_seed(0)
    model = tiny(nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 10)))
    images = sample(open_data("digits"), model.spec, 24)
    before = weights_sha256(model.module)
    found = apply(model, [BiasCorrection(bits=3)], images)
    assert found.name == "tiny+bias_correction3 (2 layers)"
    assert weights_sha256(model.module) == before
    assert torch.equal(found.module[1].weight, model.module[1].weight), "weights are rounded by the target, not here"
    first = replace(model, module=model.module[:2])
    corrected = with_rounded_weights(replace(found, module=found.module[:2]), 3)
    gap = np.abs((logits(corrected, images) - logits(first, images)).mean(0)).max()
    was = np.abs((logits(with_rounded_weights(first, 3), images) - logits(first, images)).mean(0)).max()
    assert gap < 1e-3 * was, f"means are {gap:.1e} off, {was:.1e} without correction"


def test_the_second_layer_reads_what_the_rounded_first_gives() -> None:
    """Its own rounding, on its true inputs, then leaves no mean behind."""
    torch.manual_seed(0)
    model = tiny(nn.Sequential(nn.Flatten(), nn.Linear(192, 24), nn.ReLU(), nn.Linear(24, 10)))
    images = sample(open_data("digits"), model.spec, 24)
    found = apply(model, [BiasCorrection(bits=3)], images)
    prefix = with_rounded_weights(replace(found, module=found.module[:3]), 3)
    x = torch.from_numpy(logits(prefix, images))
    weight = model.module[3].weight
    wanted = (x @ (weight - rounded(weight, 3)).T).mean(0)
    torch.testing.assert_close(found.module[3].bias - model.module[3].bias, wanted, rtol=1e-3, atol=1e-5)


def test_a_batch_norm_takes_what_its_convolution_cannot() -> None:
    torch.manual_seed(0)
    model = tiny(
        nn.Sequential(nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    )
    images = sample(open_data("digits"), model.spec, 24)
    found = apply(model, [BiasCorrection(bits=3)], images)
    gap = np.abs((logits(with_rounded_weights(found, 3), images) - logits(model, images)).mean(0)).max()
    was = np.abs((logits(with_rounded_weights(model, 3), images) - logits(model, images)).mean(0)).max()
    assert gap < 1e-3 * was, f"means are {gap:.1e} off, {was:.1e} without correction"


@pytest.mark.parametrize("name", ["pocket_moat_48", pytest.param("levit_128s", marks=pytest.mark.slow)])
def test_whole_models_follow_more_closely(name: str) -> None:
    torch.manual_seed(0)
    model = tiny(create(name, num_classes=10).module, create(name).spec.size)
    images = sample(open_data("digits"), model.spec, 20)
    seen, others = images[:12], images[12:]
    expected = logits(model, others)
    plain = np.square(logits(with_rounded_weights(model, 4), others) - expected).sum()
    found = apply(model, [BiasCorrection(bits=4)], seen)
    corrected = np.square(logits(with_rounded_weights(found, 4), others) - expected).sum()
    assert corrected < plain / 2, f"squared error {corrected:.2e}, {plain:.2e} without correction"


def test_rounding_is_symmetric_with_one_scale_a_row() -> None:
    weight = torch.tensor([[1.0, -0.4, 0.3], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(rounded(weight, 2), torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(rounded(weight, 8)[0] * 127, torch.tensor([127.0, -51.0, 38.0]))


def test_what_cannot_be_corrected_is_refused() -> None:
    model = tiny(nn.Sequential(nn.Flatten(), nn.Linear(192, 10, bias=False)))
    with pytest.raises(BadInput, match="tiny has no linear or convolution layer with a bias to correct"):
        apply(model, [BiasCorrection()], sample(open_data("photos"), model.spec, 2))
    for bits in (1, 9):
        with pytest.raises(BadInput, match="bits of a rounded weight are 2 to 8"):
            BiasCorrection(bits=bits)


def test_it_changes_the_function_and_says_so() -> None:
    assert parse_passes(["bias_correction:bits=4"], "--pass") == (BiasCorrection(bits=4),)
    assert not same_function([BiasCorrection()])
