"""The checkpoints that ship: small, described, and as accurate as their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pocketvit import create, evaluate
from pocketvit.models import weights_sha256
from pocketvit.packaged import Packaged, packaged
from pocketvit.train import TrainConfig

CIFAR = Path(__file__).parents[3] / "shared" / "data" / "cifar10"
FLOORS = {"deit": 0.72, "mobilevit": 0.80, "moat": 0.80, "resnet": 0.80}  # what each was trained to reach
EACH = pytest.mark.parametrize("checkpoint", packaged().values(), ids=list(packaged()))


def test_there_is_one_of_each_kind() -> None:
    assert {name.split("_")[1] for name in packaged()} == set(FLOORS)


@EACH
def test_weights_are_small_half_precision_and_those_of_the_card(checkpoint: Packaged) -> None:
    assert checkpoint.size_bytes < 6_000_000
    stored = load_file(checkpoint.path / "model.safetensors")
    single = {name for name, tensor in stored.items() if tensor.dtype is torch.float32}
    assert all(name.endswith(("running_mean", "running_var")) for name in single), single
    model = create(checkpoint.name)
    assert model.trained
    assert model.name == checkpoint.name
    assert len(model.spec.labels) == 10
    card = (checkpoint.path / "README.md").read_text()
    assert weights_sha256(model.module) in card
    assert f"{100 * checkpoint.top1:.2f}% of {checkpoint.images} test images" in card
    assert checkpoint.top1 >= FLOORS[checkpoint.name.split("_")[1]]


@EACH
def test_the_card_says_how_to_train_it_again(checkpoint: Packaged) -> None:
    card = (checkpoint.path / "README.md").read_text()
    commands = re.findall(r"pocketvit train (\S+) .*--out (\S+) --config (\S+)", card)
    assert commands[0][0] == checkpoint.name.partition(".")[0]
    assert [start for start, *_ in commands[1:]] == [out for _, out, _ in commands[:-1]], "each round from the last"
    assert {file for *_, file in commands} == {path.name for path in checkpoint.path.glob("*.yaml")}
    for *_, file in commands:
        TrainConfig.from_dict(yaml.safe_load((checkpoint.path / file).read_text()))
    if teacher := re.search(r"--teacher (\S+)", card):
        assert teacher[1] in packaged()


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="CIFAR-10 lies beside the project only where it is developed")
@EACH
def test_eval_gives_the_accuracy_of_the_card(checkpoint: Packaged) -> None:
    """Exactly, because every image is counted and the order of a sum changes no class."""
    reached = evaluate(checkpoint.name, f"parquet:{CIFAR}", threads=2)
    assert (reached.top1, reached.images) == (checkpoint.top1, checkpoint.images)
