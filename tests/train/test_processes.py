"""Two real CPU processes train one model together, under torchrun: on CPUs `accelerate launch` starts only one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pocketvit.models import weights_sha256
from pocketvit.train import fit

from .small import PLAIN, student


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """The directory that both processes left their reports in."""
    here, out = Path(__file__).parent, tmp_path_factory.mktemp("launched")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(here / "processes.py", out),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
    )
    assert run.returncode == 0, run.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def reports(launched):
    return [json.loads((launched / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_each_process_sees_its_own_half_of_every_epoch(reports):
    first, second = (report["seen"] for report in reports)
    assert len(first) == len(second) == 2 * 64, "two epochs of half of 128 images"
    for epoch in (0, 1):
        half, other = first[epoch * 64 : epoch * 64 + 64], second[epoch * 64 : epoch * 64 + 64]
        assert sorted(half + other) == list(range(128))


def test_they_end_with_the_same_weights(reports):
    for training in ("student", "straight", "resumed"):
        assert reports[0][training] == reports[1][training], f"{training}: the processes ended apart"


def test_stopped_together_they_resume_exactly(reports):
    for report in reports:
        assert report["resumed"] == report["straight"]
        assert report["same history"]


def test_what_they_train_beats_chance(reports):
    assert reports[0]["val_top1"] == reports[1]["val_top1"]
    chance, error = 0.1, (0.1 * 0.9 / 300) ** 0.5  # of a coin with ten sides, thrown 300 times
    reached = reports[0]["val_top1"]
    assert reached > chance + 5 * error, f"{reached:.3f} top-1 on 300 digits; chance is 0.1"


def test_two_processes_train_what_one_trains(launched, digits, tmp_path):
    """Without augmentation both forms see the same batches; their weights differ by rounding, not by training."""
    together = load_file(launched / "student.safetensors")
    alone = fit(student(), *digits, PLAIN, tmp_path).model.module
    assert weights_sha256(alone) != weights_sha256(student().module)
    start = student().module.state_dict()
    moved, apart = (
        torch.cat([(weights[name] - other[name]).flatten() for name in start]).norm().item()
        for weights, other in ((alone.state_dict(), start), (together, alone.state_dict()))
    )
    assert apart < 1e-3 * moved, f"the two lie {apart:.2e} apart after moving {moved:.2e}"


def test_a_batch_that_cannot_be_shared_is_refused(reports):
    for report in reports:
        assert report["refusal"] == "batch_size 33 cannot be divided among 2 processes."
