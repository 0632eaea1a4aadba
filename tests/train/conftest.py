"""Data and a CNN teacher, made once."""

import dataclasses

import pytest

from pocketvit.data import open_data
from pocketvit.models import create
from pocketvit.train import fit

from .small import PLAIN


@pytest.fixture(scope="session")
def digits():
    """(train, val): 128 and 60 images, balanced over the ten classes."""
    return open_data("digits", "train").take(128), open_data("digits", "val").take(60)


@pytest.fixture(scope="session")
def teacher(digits, tmp_path_factory):
    model = create("pocket_regnety_32", num_classes=10)
    config = dataclasses.replace(PLAIN, epochs=3, lr=4e-2)
    return fit(model, *digits, config, tmp_path_factory.mktemp("teacher")).model
