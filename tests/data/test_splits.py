"""Splits are fixed, disjoint, complete and stratified."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from pocketvit.data import open_data
from pocketvit.data.splits import balanced_order, portion, split_of_file, stratified_order
from pocketvit.errors import BadInput

TARGETS = np.repeat(np.arange(4), [70, 20, 9, 1]).astype(np.int64)


def test_stratified_slices_hold_every_class_in_proportion() -> None:
    order = stratified_order(TARGETS)
    assert sorted(order) == list(range(100))
    for start, stop in [(0, 70), (70, 80), (80, 100), (13, 57)]:
        found = np.bincount(TARGETS[order[start:stop]], minlength=4)
        expected = np.bincount(TARGETS) * (stop - start) / 100
        assert np.abs(found - expected).max() <= 2, (start, stop, found, expected)


def test_order_depends_on_the_seed_and_on_nothing_else() -> None:
    assert (stratified_order(TARGETS) == stratified_order(TARGETS)).all()
    assert (stratified_order(TARGETS, seed=1) != stratified_order(TARGETS)).any()
    assert not (np.diff(stratified_order(TARGETS)) > 0).all()


def test_balanced_order_takes_the_classes_in_turn() -> None:
    order = balanced_order(TARGETS)
    assert sorted(order) == list(range(100))
    for count in (4, 3 + 4, 40):
        found = np.bincount(TARGETS[order[:count]], minlength=4)
        unmet = found[found < np.bincount(TARGETS)]
        assert unmet.max() - unmet.min() <= 1, (count, found)


def test_digits_are_split_as_stated_and_the_same_everywhere() -> None:
    splits = {split: open_data("digits", split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in splits.items()} == {"train": 1137, "val": 300, "test": 360}
    whole = open_data("digits")
    assert len(whole) == 1797
    assert (np.concatenate([data.targets for data in splits.values()]) == whole.targets).all()
    for split, data in splits.items():
        expected = np.bincount(whole.targets) * len(data) / 1797
        assert np.abs(np.bincount(data.targets) - expected).max() < 1.5, split
    # the split itself, apart from how Pillow resizes: the classes in order
    assert hashlib.sha256(whole.targets.tobytes()).hexdigest()[:16] == "191207be93d8f4c5"


def test_digits_images_are_the_real_ones_enlarged() -> None:
    from sklearn.datasets import load_digits

    data = open_data("digits")
    assert data.labels == tuple("0123456789")
    images = [data[i][0] for i in range(len(data))]
    assert {(image.size, image.mode) for image in images} == {((32, 32), "RGB")}
    shrunk = np.stack([np.asarray(image.convert("L").resize((8, 8), Image.Resampling.BOX)) for image in images])
    originals = load_digits()
    ours, theirs = shrunk.reshape(-1, 64) * (16 / 255), originals.data
    distance = (ours**2).sum(1)[:, None] - 2 * ours @ theirs.T + (theirs**2).sum(1)
    nearest = distance.argmin(axis=1)
    # two near twins may change places once rounded to 8 bits
    assert len(set(nearest)) >= 1795, f"only {len(set(nearest))} of the 1797 scans are among the images"
    assert (originals.target[nearest] == data.targets).all()


@pytest.mark.parametrize(
    ("present", "split", "expected"),
    [
        (["all"], "all", (("all",), 0.0, 1.0)),
        (["all"], "train", (("all",), 0.0, 0.7)),
        (["all"], "val", (("all",), 0.7, 0.8)),
        (["train"], "test", (("train",), 0.8, 1.0)),
        (["train", "test"], "train", (("train",), 0.0, 0.9)),
        (["train", "test"], "val", (("train",), 0.9, 1.0)),
        (["train", "test"], "test", (("test",), 0.0, 1.0)),
        (["test", "train"], "all", (("train", "test"), 0.0, 1.0)),
        (["train", "val"], "train", (("train",), 0.0, 1.0)),
        (["train", "val"], "test", (("val",), 0.0, 1.0)),
        (["train", "val", "test"], "val", (("val",), 0.0, 1.0)),
        (["test"], "test", (("test",), 0.0, 1.0)),
    ],
)
def test_portion(present: list[str], split: str, expected: tuple) -> None:
    assert portion(present, split, "data") == expected


@pytest.mark.parametrize(("present", "split"), [(["test"], "train"), (["test"], "val"), (["val", "test"], "train")])
def test_a_split_that_cannot_be_made_is_named(present: list[str], split: str) -> None:
    with pytest.raises(BadInput, match=f"folder:x has no {split} images"):
        portion(present, split, "folder:x")


def test_unknown_split_has_a_close_match() -> None:
    with pytest.raises(BadInput, match=r"'tets'.*Did you mean test"):
        open_data("digits", "tets")


def test_split_names_of_files() -> None:
    names = {
        "train-00000-of-00002": "train",
        "Validation": "val",
        "val_1": "val",
        "test": "test",
        "training": None,
        "trainer-1": None,
        "00-test": None,
    }
    assert {name: split_of_file(name) for name in names} == names
