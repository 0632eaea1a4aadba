"""One layer rounded at a time: what is known of a small network whose worst layer was made so."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.search import sensitivities
from pocketvit.types import InputSpec, Precision

SPEC = InputSpec(size=(3, 8, 8))
IMAGES = np.random.default_rng(0).random((8, 3, 8, 8), dtype=np.float32)


def network(outlier: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Conv2d(3, 16, 4, stride=4), nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
        nn.Linear(64, 5),
    )  # fmt: skip
    if outlier:  # one input channel of layer 4 a thousand times as large, and its weights as much smaller
        with torch.no_grad():
            layers[2].weight[7] *= 1000
            layers[2].bias[7] *= 1000
            layers[4].weight[:, 7] /= 1000
    return layers.eval()


@pytest.mark.parametrize("precision", [Precision.W8, Precision.W8A8, Precision.W8A8_DYNAMIC, Precision.W4])
def test_every_layer_is_found_with_its_share_and_a_loss(precision: Precision) -> None:
    found = sensitivities(network(), SPEC, IMAGES, precision, group_size=16)
    assert {one.layer for one in found} == {"0", "2", "4", "6"}
    assert sum(one.share for one in found) == pytest.approx(1)
    assert [one.order for one in found] == sorted((one.order for one in found), reverse=True)
    # 8 bits over a range leave about 6.02 * 8 - 7 dB of a layer's own signal; ranges and depth take some of that
    for one in found:
        low, high = (10, 35) if precision is Precision.W4 and one.layer != "0" else (30, 65)  # "0" is a convolution
        assert low < one.sqnr_db < high, f"{one.layer}: {one.sqnr_db:.1f} dB at {precision}"


def test_an_outlier_channel_shows_where_activations_are_rounded_and_only_there() -> None:
    plain = {one.layer: one.sqnr_db for one in sensitivities(network(), SPEC, IMAGES, Precision.W8A8)}
    ruined = {one.layer: one.sqnr_db for one in sensitivities(network(True), SPEC, IMAGES, Precision.W8A8)}
    assert ruined["4"] < plain["4"] - 15, f"{ruined['4']:.1f} dB against {plain['4']:.1f}"
    assert ruined["0"] == pytest.approx(plain["0"], abs=1)
    weights = {one.layer: one.sqnr_db for one in sensitivities(network(True), SPEC, IMAGES, Precision.W8)}
    assert weights["4"] > ruined["4"] + 15, f"{weights['4']:.1f} dB with float activations"


def test_a_layer_without_influence_loses_nothing() -> None:
    module = network()
    with torch.no_grad():
        module[6].weight.zero_()  # type: ignore[union-attr,operator]
        module[6].bias.copy_(torch.arange(5.0))  # type: ignore[union-attr,operator]
    found = {one.layer: one.sqnr_db for one in sensitivities(module, SPEC, IMAGES, Precision.W8)}
    assert found["2"] == found["4"] == math.inf
