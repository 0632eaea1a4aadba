"""Which images are for training, validation and test: fixed, stratified, the same on every machine."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from ..errors import BadInput
from ..registry import close_matches

SPLITS = ("all", "train", "val", "test")
WHOLE = "all"  # the one part of data that was not divided by whoever published it
SHARES = {"train": (0.0, 0.7), "val": (0.7, 0.8), "test": (0.8, 1.0)}
VAL_OF_TRAIN = 0.1

NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def split_of_file(stem: str) -> str | None:
    """The split that a file's name begins with (train-00000-of-00002, validation, test_1...), or None."""
    first_word = re.match(r"[a-z]*", stem.lower())
    return NAMES.get(first_word.group()) if first_word else None


def portion(present: Collection[str], split: str, source: str) -> tuple[tuple[str, ...], float, float]:
    """Return the parts that `split` is made of, and the stratified share of them, from and to (0..1).

    Data that came undivided, or as a training part alone, is divided 70/10/20. Where train and test are there but
    val is not, val is a tenth of train and train is the rest. Where there is no test, val stands in for it.
    Anything else that is missing raises BadInput.
    """
    if split not in SPLITS:
        raise BadInput(f"There is no split {split!r}; use {', '.join(SPLITS)}.{close_matches(split, SPLITS)}")
    parts = [part for part in SPLITS if part in present]
    if split == "all":
        return tuple(parts), 0.0, 1.0
    if len(parts) == 1 and parts[0] in (WHOLE, "train"):
        return (parts[0],), *SHARES[split]
    if split == "train" and "train" in parts:
        return ("train",), 0.0, 1.0 if "val" in parts else 1 - VAL_OF_TRAIN
    if split in parts:
        return (split,), 0.0, 1.0
    if split == "val" and "train" in parts:
        return ("train",), 1 - VAL_OF_TRAIN, 1.0
    if split == "test" and "val" in parts:
        return ("val",), 0.0, 1.0
    raise BadInput(f"{source} has no {split} images, only {' and '.join(parts)}; ask for one of these splits.")


def shuffled_ranks(targets: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Shuffle, then count within each class: each image's rank in its class, and its place in the shuffle.

    RandomState, not Generator: numpy promises that its stream never changes.
    """
    place = np.random.RandomState(seed).permutation(len(targets))
    rank = np.empty(len(targets), np.int64)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        rank[members[np.argsort(place[members])]] = np.arange(len(members))
    return rank, place


def stratified_order(targets: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """A permutation of which every contiguous slice holds the classes in proportion, to within one image or so."""
    rank, place = shuffled_ranks(targets, seed)
    sizes = np.bincount(targets)[targets] if len(targets) else np.ones(0)
    return np.lexsort((place, (rank + 0.5) / sizes))


def balanced_order(targets: NDArray[np.int64], seed: int = 0) -> NDArray[np.int64]:
    """A permutation that takes one image of each class in turn, until the classes run out."""
    rank, place = shuffled_ranks(targets, seed)
    return np.lexsort((place, rank))
