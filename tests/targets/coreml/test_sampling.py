"""Images read between their pixels, against the definitions point by point."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from . import oracles_images as oracle
from .closeness import ALL_IOS, EPS, check, normal, wide

COVERS = {"crop_resize": "test_crop_resize", "resample": "test_resample", "affine": "test_affine"}

MODES = ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS", "DEFAULT", "OFFSET_CORNERS")
# in pixels of an image of 6 x 5: inside, beyond its edges, smaller than a pixel, backwards, a single point
BOXES = np.array(
    [[0.5, 1, 3.25, 2.5], [-1, 0, 7.5, 4], [1, 1, 1.5, 1.25], [4, 3, 1, 0.5], [2, 2, 2, 2], [0, 0, 5, 4]], np.float32
)
TARGETS = [(3, 4), (1, 1), (2, 5)]
ORDERS = {
    "CORNERS_HEIGHT_FIRST": lambda b: b,
    "CORNERS_WIDTH_FIRST": lambda b: b[:, [1, 0, 3, 2]],
    "CENTER_SIZE_HEIGHT_FIRST": lambda b: np.concatenate([(b[:, :2] + b[:, 2:]) / 2, b[:, 2:] - b[:, :2]], axis=1),
    "CENTER_SIZE_WIDTH_FIRST": lambda b: ORDERS["CENTER_SIZE_HEIGHT_FIRST"](b)[:, [1, 0, 3, 2]],
}


def slack(x: np.ndarray, reach: float) -> float:
    """Coordinates up to `reach` in float32, through 8 roundings, weigh neighbours that differ by 2 max in two axes;
    then 6 roundings of products and sums."""
    return (2 * 2 * 8 * reach + 6) * EPS * float(np.abs(x).max())


def crops(x: np.ndarray, images: list[int], target: tuple[int, int], mode: str, outside: float) -> np.ndarray:
    return np.stack(
        [oracle.crop(wide(x)[i], box, *target, mode, outside) for i, box in zip(images, BOXES, strict=True)]
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_crop_resize(run_op, mode, ios):
    x = normal(2, 3, 6, 5)
    chosen = [1, 0, 0, 1, 1, 0]
    # scales that are powers of two: the box that ends on the image's last pixel must not lose it by rounding
    forms = itertools.product(ORDERS, [1.0, 0.25])
    sets = [(order, scale, TARGETS[i % len(TARGETS)]) for i, (order, scale) in enumerate(forms)]
    outside = {"pad_value": np.float32(-2.5)} if ios > 15 else {}

    def build(mb, x):
        found = []
        for order, scale, (height, width) in sets:
            given = {
                "x": x,
                "target_height": height,
                "target_width": width,
                "spatial_scale": scale,
                "box_coordinate_mode": order,
                "sampling_mode": mode,
                **outside,
            }
            boxes = np.float32(ORDERS[order](BOXES / scale))
            if ios > 16:
                found.append(mb.crop_resize(boxes=boxes, box_indices=np.int32(chosen), **given))
            else:
                found.append(mb.crop_resize(roi=boxes.reshape(-1, 1, 4, 1, 1), **given))
        return found

    value = -2.5 if outside else 0.0
    expected = []
    for _, _, target in sets:
        if ios > 16:
            expected.append(crops(x, chosen, target, mode, value))
        else:
            expected.append(np.stack([crops(x, [i] * len(BOXES), target, mode, value) for i in (0, 1)], axis=1))
    check(run_op, build, {"x": x}, expected, ios=ios, atol=slack(x, 8))


@pytest.mark.parametrize("ios", ALL_IOS)
def test_crop_resize_by_default_takes_the_first_corner_and_normalised_boxes_end_on_pixels(run_op, ios):
    x = normal(1, 2, 6, 5)
    box = np.float32([[0.4, 0.25, 1.0, 0.75]])
    roi = np.concatenate([[[0]], box], axis=1).astype(np.float32).reshape(1, 1, 5, 1, 1)
    where = {"boxes": box} if ios > 16 else {"roi": roi}

    def build(mb, x):
        aligned = {"normalized_coordinates": True, "sampling_mode": "ALIGN_CORNERS"}
        return [
            mb.crop_resize(x=x, **where),
            mb.crop_resize(x=x, target_height=4, target_width=3, **aligned, **where),
        ]

    point = oracle.crop(wide(x)[0], box[0], 1, 1, "DEFAULT", 0.0)
    expected = [point[None], x[:, :, 2:, 1:4]]
    check(run_op, build, {"x": x}, expected if ios > 16 else [e[:, None] for e in expected], ios=ios, atol=slack(x, 5))


def test_crop_resize_of_chosen_images_before_ios_17():
    # coremltools declares another shape for it than it documents when there are several images: called directly
    import torch

    x = normal(2, 3, 6, 5)
    roi = np.concatenate([np.float32([[1], [0], [0], [1], [1], [0]]), BOXES], axis=1).reshape(-1, 1, 5, 1, 1)
    crop_resize = OPS.get("crop_resize")
    given = {"target_height": 3, "target_width": 4, "sampling_mode": "ALIGN_CORNERS"}
    found = crop_resize(torch.from_numpy(x), torch.from_numpy(roi), **given)
    expected = crops(x, [1, 0, 0, 1, 1, 0], (3, 4), "ALIGN_CORNERS", 0.0)[:, None]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=slack(x, 8))
    assert crop_resize(torch.from_numpy(x).to("meta"), torch.from_numpy(roi).to("meta"), **given).shape == found.shape
    roi[2, 0, 0] = 2
    with pytest.raises(BadInput, match="but there are 2"):
        crop_resize(torch.from_numpy(x), torch.from_numpy(roi), **given)


def test_boxes_that_are_computed(run_op):
    x, boxes = normal(3, 2, 6, 5), np.float32([[0, 0, 3, 3], [1, 1, 4, 2], [0.5, 0, 1, 4]])

    def build(mb, x, boxes):
        return mb.crop_resize(x=x, boxes=boxes, target_height=2, target_width=2, sampling_mode="ALIGN_CORNERS")

    expected = [oracle.crop(wide(x)[i], boxes[i], 2, 2, "ALIGN_CORNERS", 0.0) for i in range(3)]
    check(run_op, build, {"x": x, "boxes": boxes}, [np.stack(expected)], ios=17, atol=slack(x, 5))


COORDINATES = ("unnormalized", "normalized_minus_one_to_one", "normalized_zero_to_one")
PADDINGS = ("constant", "border", "reflection", "symmetric")
# few bits, so that float32 holds every position exactly and finds where two pixels are equally near; far outside, too
PLACES = np.array([-9.25, -2.5, -1.0, -0.75, -0.25, 0.0, 0.125, 0.5, 0.75, 1.0, 1.5, 2.5, 3.75, 6.0], np.float32)


@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_resample(run_op, padding, ios):
    x = normal(2, 2, 4, 8)
    generator = np.random.default_rng(1)
    coordinates = generator.choice(PLACES, size=(2, 7, 6, 2)).astype(np.float32)
    sets = list(itertools.product(("bilinear", "nearest"), COORDINATES, (True, False)))
    if ios > 15:
        sets = sets[ios % 3 :: 3]
    names = ("sampling_mode", "coordinates_mode", "align_corners")
    given = [dict(zip(names, values, strict=True)) | {"padding_mode": padding} for values in sets]

    def build(mb, x, coordinates):
        return [mb.resample(x=x, coordinates=coordinates, padding_value=np.float32(1.5), **g) for g in given]

    expected = [oracle.resample(x, coordinates, padding_value=1.5, **g) for g in given]
    check(run_op, build, {"x": x, "coordinates": coordinates}, expected, ios=ios, atol=slack(x, 0))


@pytest.mark.parametrize("padding", PADDINGS)
def test_resample_of_a_single_row(run_op, padding):
    x = normal(1, 1, 1, 3)
    coordinates = np.float32([[-2.5, -1], [0.5, 0], [1.25, 0.25], [7, 3]]).reshape(1, 2, 2, 2)
    given = {"padding_mode": padding, "coordinates_mode": "unnormalized", "align_corners": False}
    kinds = ("bilinear", "nearest")

    def build(mb, x, coordinates):
        read = mb.resample
        return [
            read(x=x, coordinates=coordinates, padding_value=np.float32(0), sampling_mode=kind, **given)
            for kind in kinds
        ]

    expected = [oracle.resample(x, coordinates, kind, padding_value=0.0, **given) for kind in kinds]
    check(run_op, build, {"x": x, "coordinates": coordinates}, expected, atol=slack(x, 8))


def test_resample_at_whole_numbers(run_op):
    x, coordinates = normal(1, 2, 3, 4), np.int32([[0, 0], [3, 2], [-1, 1], [4, 0]]).reshape(1, 2, 2, 2)
    given = {"padding_mode": "border", "coordinates_mode": "unnormalized", "align_corners": True}

    def build(mb, x, coordinates):
        return mb.resample(
            x=x, coordinates=coordinates, padding_value=np.float32(0), sampling_mode="bilinear", **given
        )

    expected = oracle.resample(x, coordinates, "bilinear", padding_value=0.0, **given)
    check(run_op, build, {"x": x, "coordinates": coordinates}, [expected], ios=16)


MATRICES = np.float32([[1, 0, 0, 0, 1, 0], [0.5, -0.25, 0.125, 0.75, 1.5, -0.5]])
AFFINE = {
    "sampling_mode": "bilinear",
    "padding_mode": "constant",
    "padding_value": np.float32(0),
    "coordinates_mode": "normalized_minus_one_to_one",
    "align_corners": True,
}


@pytest.mark.parametrize("ios", ALL_IOS)
def test_affine(run_op, ios):
    x, sizes = normal(2, 3, 4, 5), [(4, 5), (3, 7), (6, 2), (1, 3)]

    def build(mb, x, each):
        found = [mb.affine(x=x, transform_matrix=each, output_height=h, output_width=w, **AFFINE) for h, w in sizes]
        shared = mb.affine(x=x, transform_matrix=MATRICES[1:], output_height=3, output_width=3, **AFFINE)
        return [*found, shared]

    def at(matrices, height, width):
        grid = np.zeros((2, height, width, 2))
        for b, i, j in np.ndindex(2, height, width):
            along_y = 2 * i / (height - 1) - 1 if height > 1 else 0.0
            place = np.array([2 * j / (width - 1) - 1, along_y, 1.0])
            grid[b, i, j] = wide(matrices[b]).reshape(2, 3) @ place
        given = {**AFFINE, "padding_value": 0.0}
        return oracle.resample(x, grid, **given)

    expected = [at(MATRICES, *size) for size in sizes] + [at(MATRICES[[1, 1]], 3, 3)]
    check(run_op, build, {"x": x, "each": MATRICES}, expected, ios=ios, atol=slack(x, 8))


REFUSED = [
    (
        lambda mb, x: mb.affine(
            x=x, transform_matrix=MATRICES[:1], output_height=2, output_width=2, **{**AFFINE, "align_corners": False}
        ),
        "Core ML supports affine",
    ),
    (
        lambda mb, x: mb.crop_resize(x=x, roi=np.zeros((1, 1, 4, 1, 1), np.float32), sampling_mode="UNALIGN_CORNERS"),
        "UNALIGN_CORNERS reads inside a box",
    ),
]


@pytest.mark.parametrize(("build", "message"), REFUSED, ids=["affine", "crop_resize"])
def test_what_is_not_supported_is_refused(run_op, build, message):
    with pytest.raises(BadInput, match=message):
        run_op(build, {"x": normal(1, 1, 3, 3)})
