"""One model of each family of the mission: it trains, and its file agrees with it.

Ours are trained and exported in the same way as timm's. The default suite exports to ONNX, the slow one to every
target.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import pocketvit
from pocketvit.data import batches, open_data
from pocketvit.models import create
from pocketvit.models.model import Model
from pocketvit.targets import TARGETS
from pocketvit.train import fit

from ..train.small import PLAIN

# one of each, small, with what makes it smaller still
FAMILIES: dict[str, dict[str, object]] = {
    "efficientvit_b0": {"img_size": 64},  # B1: multi-scale linear attention
    "efficientvit_m0": {"img_size": 64},  # B1: cascaded group attention
    "edgenext_xx_small": {"img_size": 64},  # B2
    "nextvit_small": {"img_size": 64},  # B3
    "poolformer_s12": {"img_size": 64},  # B4
    "levit_128s": {"img_size": 64},  # B5
    "mobilevit_xxs": {"img_size": 64},  # B6
    "mobilevitv2_050": {"img_size": 64},  # B6
    "efficientformer_l1": {},  # B7: its position biases are for 224 pixels
    "deit_tiny_patch16_224": {"img_size": 64, "depth": 4},  # C2
    "deit_tiny_distilled_patch16_224": {"img_size": 64, "depth": 4},  # C2 and C3
    "tiny_moat_0": {"img_size": 64},  # A7
    "mobile_former_26m": {"img_size": 64},  # B8
    "mixformer_b0": {"img_size": 64},  # B9
    "vit_tiny_aft_conv": {"img_size": 64, "depth": 4},  # B16
    "vit_tiny_hyena": {"img_size": 64, "depth": 4},  # B17
}
# the rest are slow
QUICK = {"tiny_moat_0", "vit_tiny_hyena"}


@pytest.fixture(
    scope="module", params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model after two steps on real digits, with the norm statistics of those digits."""
    start = create(request.param, num_classes=10, **FAMILIES[request.param])
    before = {name: tensor.clone() for name, tensor in start.module.state_dict().items()}
    images = open_data("digits", "train").take(32)
    config = dataclasses.replace(PLAIN, epochs=1, warmup_epochs=0, batch_size=16, lr=4e-2)
    done = fit(start, images, open_data("digits", "val").take(10), config, tmp_path_factory.mktemp("fit")).model
    moved = sum(not torch.equal(before[name], tensor) for name, tensor in done.module.named_parameters())
    total = len(list(done.module.parameters()))
    assert moved > 0.9 * total, f"two steps moved {moved} of {total} tensors of {request.param}"
    # two steps move running averages little, and with the initial ones every image gives the same logits
    norms = [m for m in done.module.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        for pixels, _ in batches(images, done.spec, 16):
            done.module.train()(torch.from_numpy(pixels))
    done.module.eval()
    return done


@pytest.mark.parametrize("target", [t if t == "onnx" else pytest.param(t, marks=pytest.mark.slow) for t in TARGETS])
def test_a_model_of_each_family_trains_and_its_file_agrees(trained: Model, target: str, tmp_path: Path) -> None:
    """`export` raises unless the file, reloaded, is within 80 dB of the model."""
    images = pocketvit.proof_images(trained.spec, "digits")
    path = tmp_path / f"model{TARGETS.get(target).suffix}"
    proof = pocketvit.export(trained, target, path, precision="fp32", images=images)
    assert proof.agreement.sqnr_db >= 80, proof.sentence
