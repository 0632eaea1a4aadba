"""Resizing against the documented positions of sampling points."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pocketvit.errors import BadInput

from . import oracles_images as oracle
from .closeness import ALL_IOS, EPS, check, normal

COVERS = {
    "upsample_nearest_neighbor": "test_upsample_nearest_neighbor",
    "resize_nearest_neighbor": "test_resize_nearest_neighbor",
    "upsample_bilinear": "test_upsample_bilinear",
    "resize_bilinear": "test_resize_bilinear",
    "resize": "test_resize",
}
MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS", "UNALIGN_CORNERS")
SHAPES = [(2, 5, 4), (1, 3, 5, 7), (2, 1, 2, 6, 1)]
SIZES = [(10, 12), (3, 5), (1, 1), (7, 1), (5, 7), (13, 2)]
FACTORS = [(2, 3), (1, 1), (1.0, 2.6), (0.5, 0.75), (3.17, 1.12)]


def rounding(x: np.ndarray) -> float:
    """Positions in float32 are off by 3 steps of at most 7 pixels, weighing neighbours that differ by 2 max; then 6
    roundings of products and sums."""
    return (2 * 3 * 7 + 6) * EPS * float(np.abs(x).max())


def scaled(sizes: tuple[int, ...], factors: tuple[float, float]) -> list[int]:
    """floor(size * factor); none of these is near a whole number by accident."""
    return [int(np.floor(size * factor)) for size, factor in zip(sizes[-2:], factors, strict=True)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_upsample_nearest_neighbor(run_op, shape, ios):
    x = normal(*shape)
    factors = [f for f in FACTORS if min(scaled(shape, f))]

    def build(mb, x):
        sets = [{"scale_factor_height": h, "scale_factor_width": w} for h, w in factors]
        return [mb.upsample_nearest_neighbor(x=x, **parameters) for parameters in [*sets, {}]]

    expected = [oracle.nearest(x, scaled(shape, f), shift=0) for f in factors]
    check(run_op, build, {"x": x}, [*expected, x], ios=ios)


def test_a_scaled_size_that_float32_rounds_up_is_the_declared_one(run_op):
    # 4.1 in float32 is a little less, and ten of it a little less than 41; in float32 they are 41
    x = normal(1, 10, 10)

    def build(mb, x):
        found = mb.upsample_nearest_neighbor(x=x, scale_factor_height=np.float32(4.1), scale_factor_width=1.0)
        return [found, mb.upsample_bilinear(x=x, scale_factor_height=np.float32(4.1), scale_factor_width=1.0)]

    wide = oracle.bilinear(x, 41, 10, "STRICT_ALIGN_CORNERS")
    check(run_op, build, {"x": x}, [oracle.nearest(x, (41, 10), shift=0), wide], atol=rounding(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_resize_nearest_neighbor(run_op, shape, ios):
    x = normal(*shape)

    def build(mb, x):
        return [mb.resize_nearest_neighbor(x=x, target_size_height=h, target_size_width=w) for h, w in SIZES]

    check(run_op, build, {"x": x}, [oracle.nearest(x, size, shift=0.5) for size in SIZES], ios=ios)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_upsample_bilinear(run_op, shape, ios):
    x = normal(*shape)
    modes = [({}, "STRICT_ALIGN_CORNERS"), ({"align_corners": False}, "UNALIGN_CORNERS")]
    if ios > 15:
        modes.append(({"align_corners": True, "half_pixel_centers": False}, "STRICT_ALIGN_CORNERS"))
        modes.append(({"align_corners": False, "half_pixel_centers": True}, "UNALIGN_CORNERS"))
        modes.append(({"align_corners": False, "half_pixel_centers": False}, "DEFAULT"))
    sets = list(itertools.product([f for f in FACTORS if min(scaled(shape, f))], modes))
    sets = sets if ios == 16 else sets[ios % 3 :: 3]

    def build(mb, x):
        scale = mb.upsample_bilinear
        found = [scale(x=x, scale_factor_height=h, scale_factor_width=w, **given) for (h, w), (given, _) in sets]
        return [*found, scale(x=x)]

    expected = [oracle.bilinear(x, *scaled(shape, f), mode) for f, (_, mode) in sets]
    check(run_op, build, {"x": x}, [*expected, x], ios=ios, atol=rounding(x))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_resize_bilinear(run_op, shape, ios):
    x = normal(*shape)
    sets = list(itertools.product(SIZES, MODES))
    sets = sets if ios == 15 else sets[ios - 16 :: 3]

    def build(mb, x):
        resize = mb.resize_bilinear
        found = [resize(x=x, target_size_height=h, target_size_width=w, sampling_mode=m) for (h, w), m in sets]
        return [*found, resize(x=x)]

    expected = [oracle.bilinear(x, *size, mode) for size, mode in [*sets, ((1, 1), "DEFAULT")]]
    check(run_op, build, {"x": x}, expected, ios=ios, atol=rounding(x))


RESIZED = [  # shape and resized_dims, of an input of (2, 3, 4, 5); the sizes that come out of them
    ([6, 7], 2, (6, 7)),
    ([9, 9, 6, 3], 2, (6, 3)),
    ([9, 0, 8], 2, (4, 8)),
    ([0, 0, 0, 0], 3, (3, 4, 5)),
    ([8], 1, (8,)),
    ([2, 6, 5], 3, (2, 6, 5)),
    ([4, 2, 6, 9], 4, (4, 2, 6, 9)),
    ([7, 7], 0, ()),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ios", [17, 18])
def test_resize(run_op, mode, ios):
    x = normal(2, 3, 4, 5)
    resized = RESIZED if ios == 17 else RESIZED[::3]
    nearest = mode in ("DEFAULT", "UNALIGN_CORNERS")

    def build(mb, x):
        found = []
        for shape, dims, _ in resized:
            where = {"x": x, "shape": shape, "resized_dims": np.uint32(dims)}
            found.append(mb.resize(**where, sampling_mode=mode))
            if nearest:
                found.append(mb.resize(**where, interpolation_mode="NEAREST_NEIGHBOR", sampling_mode=mode))
        return [*found, mb.resize(x=x, shape=[3, 3], resized_dims=np.uint32(2))]

    expected = []
    for _, _, sizes in resized:
        wide = x
        for axis, size in enumerate(sizes, -len(sizes)):
            wide = oracle.linear(wide, axis, oracle.points(mode, x.shape[axis], size))
        expected.append(wide.astype(np.float64))
        if nearest:
            expected.append(oracle.nearest(x, sizes, shift=0.5))
    expected.append(oracle.bilinear(x, 3, 3, "DEFAULT"))
    check(run_op, build, {"x": x}, expected, ios=ios, atol=2 * rounding(x))  # up to four axes instead of two


def test_resize_to_the_computed_shape_of_another_tensor_and_of_integers(run_op):
    x, y = normal(1, 2, 3, 4), normal(1, 2, 6, 5)
    whole = np.arange(12, dtype=np.int32).reshape(1, 3, 4)

    def build(mb, x, y, whole):
        nearest = {"interpolation_mode": "NEAREST_NEIGHBOR", "resized_dims": np.uint32(2)}
        return [
            mb.resize(x=x, shape=mb.shape(x=y), resized_dims=np.uint32(2)),
            mb.resize(x=whole, shape=[5, 5], **nearest),
        ]

    expected = [oracle.bilinear(x, 6, 5, "DEFAULT"), oracle.nearest(whole, (5, 5), shift=0.5)]
    check(run_op, build, {"x": x, "y": y, "whole": whole}, expected, ios=17, atol=rounding(x))


REFUSED = [
    (16, lambda mb, x: mb.upsample_bilinear(x=x, align_corners=True, half_pixel_centers=True), "exclude each other"),
    (
        17,
        lambda mb, x: mb.resize(
            x=x,
            shape=[4, 4],
            resized_dims=np.uint32(2),
            interpolation_mode="NEAREST_NEIGHBOR",
            sampling_mode="ALIGN_CORNERS",
        ),
        "which neighbour is nearest",
    ),
    (
        17,
        lambda mb, x: mb.resize(x=mb.cast(x=x, dtype="int32"), shape=[4, 4], resized_dims=np.uint32(2)),
        "whole numbers",
    ),
]


@pytest.mark.parametrize(("ios", "build", "message"), REFUSED, ids=["centers", "nearest", "integers"])
def test_what_is_not_defined_is_refused(run_op, ios, build, message):
    with pytest.raises(BadInput, match=message):
        run_op(build, {"x": normal(1, 2, 3)}, ios=ios)
