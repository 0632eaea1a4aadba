"""A training that is killed, anywhere, ends with the same weights bit for bit; a finished one is not run again."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pocketvit.errors import BadInput
from pocketvit.models import create, weights_sha256
from pocketvit.train import Amp, fit
from pocketvit.train.checkpoint import FILE

from .small import PLAIN, TINY, student, train_fully

STEPS = 4  # per epoch: 128 images in batches of 32


class Stopped(Exception):
    pass


def stop_at(step):
    def progress(task, done, total):
        if done == step:
            raise Stopped

    return progress


def killed(work: Path, when: object) -> None:
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, here / "killed.py", work, str(when)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == -signal.SIGKILL, run.stderr[-2000:]


def test_killed_in_an_epoch_and_while_writing_it_ends_with_the_same_weights(tmp_path):
    straight = train_fully(tmp_path / "straight")
    work = tmp_path / "work"
    killed(work, STEPS + 2)  # in the second epoch
    first = (work / FILE).read_bytes()
    killed(work, "write")  # at its end, halfway through the checkpoint
    assert (work / FILE).read_bytes() == first, "a half-written checkpoint took the place of a whole one"
    assert len(list(work.iterdir())) == 2, "the second process was killed too early to leave a partial file"
    steps = []
    resumed = train_fully(work, progress=lambda task, done, total: steps.append(done))
    assert steps == list(range(STEPS + 1, 3 * STEPS + 1)), "the first epoch was not kept, or more than it was"
    assert weights_sha256(resumed.model.module) == weights_sha256(straight.model.module)
    assert resumed.history == straight.history
    assert [path.name for path in work.iterdir()] == [FILE]


@pytest.mark.parametrize("changes", [{"workers": 1}, {"ema_decay": 0.8}, {"amp": Amp.BF16}], ids=str)
def test_stopped_after_every_epoch_it_ends_with_the_same_weights(changes, digits, tmp_path):
    config = dataclasses.replace(TINY, epochs=3, **changes)
    straight = fit(student(), *digits, config, tmp_path / "straight")
    for step in (STEPS + 1, 2 * STEPS + 1, 3 * STEPS):
        with pytest.raises(Stopped):
            fit(student(), *digits, config, tmp_path / "work", progress=stop_at(step))
    resumed = fit(student(), *digits, config, tmp_path / "work")
    assert weights_sha256(resumed.model.module) == weights_sha256(straight.model.module)
    assert resumed.history == straight.history


def test_stopped_before_its_first_checkpoint_it_leaves_none(digits, tmp_path):
    with pytest.raises(Stopped):
        fit(student(), *digits, PLAIN, tmp_path, progress=stop_at(STEPS - 1))
    assert list(tmp_path.iterdir()) == []


def test_a_finished_training_returns_at_once(digits, tmp_path):
    trained = fit(student(), *digits, PLAIN, tmp_path)
    written = (tmp_path / FILE).stat().st_mtime_ns
    again = fit(student(seed=5), *digits, PLAIN, tmp_path, progress=stop_at(1))
    assert weights_sha256(again.model.module) == weights_sha256(trained.model.module)
    assert again.history == trained.history
    assert again.model.trained
    assert (tmp_path / FILE).stat().st_mtime_ns == written


def test_another_trainings_checkpoint_is_refused_and_kept(digits, tmp_path):
    fit(student(), *digits, PLAIN, tmp_path)
    content = (tmp_path / FILE).read_bytes()
    train, val = digits
    other = dataclasses.replace(PLAIN, lr=2e-2, seed=1)
    one_head = create("pocket_deit_patch4_32", num_classes=10)
    pretrained = dataclasses.replace(student(), trained=True)
    for arguments, difference in [
        ((student(), train, val, other), "it differs in config.lr, config.seed."),
        ((one_head, train, val, PLAIN), "it differs in architecture."),
        ((student(num_heads=4), train, val, PLAIN), "it differs in architecture."),
        ((student(embed_dim=64), train, val, PLAIN), "it differs in architecture."),
        ((dataclasses.replace(student(), body="ab"), train, val, PLAIN), "it differs in starting weights."),
        ((pretrained, train, val, PLAIN), "it differs in starting weights."),
        ((student(), train.take(100), val, PLAIN), "it differs in training data."),
        ((student(), train, val.take(50), PLAIN), "it differs in validation data."),
    ]:
        with pytest.raises(BadInput, match="belongs to another training: " + re.escape(difference)):
            fit(*arguments, tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 a pickle", b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_a_damaged_checkpoint_is_refused_by_name(damage, digits, tmp_path):
    (tmp_path / FILE).write_bytes(damage)
    with pytest.raises(BadInput, match=f"{FILE} is not a readable checkpoint .*; delete it to train anew."):
        fit(student(), *digits, PLAIN, tmp_path)


def test_a_cut_checkpoint_is_refused_by_name(digits, tmp_path):
    fit(student(), *digits, PLAIN, tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:-100])
    with pytest.raises(BadInput, match=f"{FILE} is not a readable checkpoint"):
        fit(student(), *digits, PLAIN, tmp_path)
