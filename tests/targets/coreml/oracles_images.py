"""Resizing and resampling from their definitions, in float64 with numpy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def points(mode: str, size: float, count: int) -> np.ndarray:
    """Where `count` points of an axis of `size` pixels lie, formula by formula as documented."""
    found = []
    for i in range(count):
        if mode in ("STRICT_ALIGN_CORNERS", "ALIGN_CORNERS"):
            point = i * (size - 1) / (count - 1) if count > 1 else 0.0
            if mode == "ALIGN_CORNERS" and count == 1:
                point = (size - 1) / 2
        elif mode == "DEFAULT":
            point = i * (size - size / count) / (count - 1) if count > 1 else 0.0
        elif mode == "OFFSET_CORNERS":
            delta = max(1, size - 1) / count
            point = 0.5 * delta + i * delta
        else:
            point = i * size / count + 0.5 * size / count - 0.5
        found.append(min(size - 1, max(0.0, point)))
    return np.array(found)


def linear(x: np.ndarray, axis: int, places: Sequence[float]) -> np.ndarray:
    """Weights of a tent around each place, times the pixels."""
    moved = np.moveaxis(np.asarray(x, np.float64), axis, -1)
    pixels = np.arange(moved.shape[-1])
    weights = np.maximum(0.0, 1.0 - np.abs(np.asarray(places, np.float64)[:, None] - pixels))
    return np.moveaxis(moved @ weights.T, -1, axis)


def bilinear(x: np.ndarray, height: int, width: int, mode: str) -> np.ndarray:
    """Both last axes."""
    x = linear(x, -2, points(mode, x.shape[-2], height))
    return linear(x, -1, points(mode, x.shape[-1], width))


def nearest(x: np.ndarray, sizes: Sequence[int], shift: float) -> np.ndarray:
    """The last axes, each element from floor((i + shift) size / count); shift in halves, so exact in twice."""
    for axis, count in enumerate(sizes, -len(sizes)):
        size = x.shape[axis]
        taken = [(2 * i + round(2 * shift)) * size // (2 * count) for i in range(count)]
        x = np.take(x, taken, axis)
    return x


def fold(place: float, size: int, mode: str) -> float:
    """A coordinate brought inside an image that is continued as |1, 2, 3| -> documented rows."""
    if mode == "border":
        return min(size - 1.0, max(0.0, place))
    # walk back and forth between the mirrors until inside
    low, high = (0.0, size - 1.0) if mode == "reflection" else (-0.5, size - 0.5)
    if low == high:
        return 0.0
    while not low <= place <= high:
        place = 2 * low - place if place < low else 2 * high - place
    return min(size - 1.0, max(0.0, place))


def half_even(place: float) -> int:
    """Round; of two equally near whole numbers, the even one."""
    return round(place)


def read(image: np.ndarray, row: int, column: int, outside: float) -> np.ndarray:
    """A pixel (c) of an image (c, h, w), or what lies outside."""
    if 0 <= row < image.shape[1] and 0 <= column < image.shape[2]:
        return image[:, row, column]
    return np.full(image.shape[0], outside)


def between(image: np.ndarray, y: float, x: float, outside: float) -> np.ndarray:
    """Four neighbours weighed by how near they are."""
    top, left = math.floor(y), math.floor(x)
    found = np.zeros(image.shape[0])
    for row, dy in ((top, 1 - (y - top)), (top + 1, y - top)):
        for column, dx in ((left, 1 - (x - left)), (left + 1, x - left)):
            if dy * dx:
                found = found + dy * dx * read(image, row, column, outside)
    return found


def in_pixels(value: float, size: int, mode: str, align_corners: bool) -> float:
    """A coordinate in pixels, where the end points lie on the first and last pixels' centres or outer edges."""
    if mode == "unnormalized":
        return value
    unit = (value + 1) / 2 if mode == "normalized_minus_one_to_one" else value
    return unit * (size - 1) if align_corners else unit * size - 0.5


def resample(
    x: np.ndarray,
    coordinates: np.ndarray,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> np.ndarray:
    """Point by point."""
    x, coordinates = np.asarray(x, np.float64), np.asarray(coordinates, np.float64)
    batch, channels, height, width = x.shape
    found = np.zeros((batch, channels, *coordinates.shape[1:3]))
    for b, i, j in np.ndindex(batch, *coordinates.shape[1:3]):
        column = in_pixels(coordinates[b, i, j, 0], width, coordinates_mode, align_corners)
        row = in_pixels(coordinates[b, i, j, 1], height, coordinates_mode, align_corners)
        if padding_mode != "constant":
            row, column = fold(row, height, padding_mode), fold(column, width, padding_mode)
        if sampling_mode == "nearest":
            found[b, :, i, j] = read(x[b], half_even(row), half_even(column), padding_value)
        else:
            found[b, :, i, j] = between(x[b], row, column, padding_value)
    return found


def crop(image: np.ndarray, box: Sequence[float], height: int, width: int, mode: str, outside: float) -> np.ndarray:
    """One box (top, left, bottom, right, in pixels) of an image (c, h, w); points outside the image are `outside`."""
    top, left, bottom, right = (float(side) for side in box)
    found = np.full((image.shape[0], height, width), outside, np.float64)
    for i, y in enumerate(top + along(mode, bottom - top, height)):
        for j, x in enumerate(left + along(mode, right - left, width)):
            if 0 <= y <= image.shape[1] - 1 and 0 <= x <= image.shape[2] - 1:
                found[:, i, j] = between(image, y, x, 0.0)
    return found


def along(mode: str, extent: float, count: int) -> np.ndarray:
    """Points from 0 to `extent`, which may be negative: then the mirror image."""
    return math.copysign(1.0, extent) * points(mode, abs(extent) + 1, count)
