"""Ranges of activations: what each calibrator chooses, and how 8 bits hold it."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvit.targets import TARGETS
from pocketvit.targets.coreml.ranges import affine, observe
from pocketvit.types import Calibrator

from .conftest import save_program


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (0.0, 6.0), (-3.0, 0.0), (0.5, 7.0), (-9.0, -2.0), (-2e4, 3e4)]
)
def test_zero_and_both_ends_have_a_level(low, high):
    form = affine(low, high)
    assert form is not None
    assert -128 <= form.zero_point <= 127
    assert form.scale == np.float16(form.scale)
    # half a level for the rounded zero point; fp16 moves the scale by 2^-11 of it, 255 levels away by an eighth of one
    assert min(low, 0) - 0.63 * form.scale <= form.low <= min(low, 0) + 0.63 * form.scale
    assert max(high, 0) - 0.63 * form.scale <= form.high <= max(high, 0) + 0.63 * form.scale


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.0), (-1e-3, 1e-3), (0.0, np.inf), (0.0, 2e7)])
def test_a_range_that_fp16_has_no_scale_for(low, high):
    assert affine(low, high) is None


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """seen(images, calibrator): the range chosen for the input of a product, which is the image itself."""
    weight = np.ones((2, 16), np.float32)
    path = save_program(
        tmp_path_factory.mktemp("ranges") / "m.mlpackage",
        lambda mb, image: mb.linear(x=image, weight=weight, name="product"),
        {"image": np.zeros((1, 64, 16), np.float32)},
        17,
    )
    return lambda images, calibrator: observe(path, {"product": "x"}, images, calibrator)["product"]


def _heavy(outlier: float) -> np.ndarray:
    """Normal numbers with one far outside."""
    images = np.random.default_rng(0).normal(size=(32, 64, 16)).astype(np.float32)
    images[3, 5, 7] = outlier
    return images


def test_everything_seen(seen):
    images = _heavy(50.0)
    assert seen(images, Calibrator.MINMAX) == (images.min(), images.max())
    assert seen(np.abs(images), Calibrator.MINMAX) == (0.0, images.max()), "zero is always inside"


def test_the_outermost_are_cut_off(seen):
    images = _heavy(50.0)
    low, high = seen(images, Calibrator.PERCENTILE)
    outside = float(((images < low) | (images > high)).mean())
    print(low, high, outside)
    # a ten-thousandth at each end at most, and at least the outlier; a part is a 2048th of 55, which normal numbers
    # leave at 3.7 for a ten-thousandth of them
    assert 1 / images.size <= outside <= 2e-4
    assert -4.5 < low < -3.5
    assert 3.5 < high < 4.5


@pytest.mark.parametrize("outlier", [3.0, 50.0, 300.0])
def test_the_least_squared_error_is_near_the_best_of_all_ranges(outlier, seen):
    images = _heavy(outlier)

    def error(low: float, high: float) -> float:
        form = affine(low, high)
        levels = np.clip(np.round(images / form.scale) + form.zero_point, -128, 127)
        return float(np.square(images - form.scale * (levels - form.zero_point)).sum())

    ends = float(images.min()), float(images.max())
    found = error(*seen(images, Calibrator.MSE))
    best = min(error(a * ends[0], b * ends[1]) for a in np.linspace(0.2, 1, 30) for b in np.linspace(0.01, 1, 100))
    print(f"outlier {outlier}: {found:.3f}, best {best:.3f}, of everything seen {error(*ends):.3f}")
    assert found <= 1.1 * best + 1e-9
    assert found <= error(*ends) * 1.01


def test_what_is_always_zero_or_infinite_has_no_parts(seen):
    nothing = np.zeros((2, 64, 16), np.float32)
    assert seen(nothing, Calibrator.MSE) == (0.0, 0.0)
    nothing[0, 0, 0] = np.inf
    assert seen(nothing, Calibrator.PERCENTILE) == (0.0, np.inf)


def test_the_target_offers_these():
    assert set(TARGETS.get("coreml").calibrators) == set(Calibrator)
