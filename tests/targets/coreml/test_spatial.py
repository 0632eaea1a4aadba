"""Pixels moved between axes, against the index each comes from."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from pocketvit.errors import BadInput

from .closeness import ALL_IOS, check, normal

COVERS = {
    "depth_to_space": "test_channels_to_blocks",
    "pixel_shuffle": "test_channels_to_blocks",
    "space_to_depth": "test_blocks_to_channels",
    "pixel_unshuffle": "test_pixel_unshuffle",
    "space_to_batch": "test_space_to_batch",
    "batch_to_space": "test_batch_to_space",
    "crop": "test_crop",
    "sliding_windows": "test_sliding_windows",
}


def spread(x: np.ndarray, b: int, slow_place: bool) -> np.ndarray:
    """Channels into blocks of b: a pixel's place in its block is the slower or the faster part of its channel."""
    n, c, h, w = x.shape
    depth = c // b**2
    found = np.empty((n, depth, h * b, w * b), x.dtype)
    for k, row, column in np.ndindex(depth, h * b, w * b):
        place = row % b * b + column % b
        channel = place * depth + k if slow_place else k * b**2 + place
        found[:, k, row, column] = x[:, channel, row // b, column // b]
    return found


@pytest.mark.parametrize("ios", ALL_IOS)
def test_channels_to_blocks(run_op, ios):
    x, y = normal(2, 8, 2, 3), normal(1, 18, 3, 1)

    def build(mb, x, y):
        return [
            mb.depth_to_space(x=x, block_size=2),
            mb.depth_to_space(x=y, block_size=3),
            mb.pixel_shuffle(x=x, upscale_factor=2),
            mb.pixel_shuffle(x=y, upscale_factor=3),
        ]

    expected = [spread(*case) for case in ((x, 2, True), (y, 3, True), (x, 2, False), (y, 3, False))]
    check(run_op, build, {"x": x, "y": y}, expected, ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_blocks_to_channels(run_op, ios):
    x, y = normal(2, 3, 4, 6), normal(1, 2, 3, 9)
    found = []
    for image, b in ((x, 2), (y, 3)):
        n, c, h, w = image.shape
        gathered = np.empty((n, c * b * b, h // b, w // b), np.float32)
        for k, row, column in np.ndindex(c, h, w):
            gathered[:, (row % b * b + column % b) * c + k, row // b, column // b] = image[:, k, row, column]
        found.append(gathered)

    def build(mb, x, y):
        return [mb.space_to_depth(x=x, block_size=2), mb.space_to_depth(x=y, block_size=3)]

    check(run_op, build, {"x": x, "y": y}, found, ios=ios)


@pytest.mark.parametrize("ios", [16, 17, 18])
def test_pixel_unshuffle(run_op, ios):
    x, y = normal(2, 8, 2, 3), normal(1, 18, 3, 1)

    def build(mb, x, y):
        return [mb.pixel_unshuffle(x=v, downscale_factor=np.uint32(f)) for v, f in ((x, 2), (y, 3))]

    check(run_op, build, {"x": spread(x, 2, False), "y": spread(y, 3, False)}, [x, y], ios=ios)


BLOCKS = [
    ([2, 2], [[0, 0], [2, 0]]),
    ([1, 3], [[0, 0], [0, 1]]),
    ([2, 5], [[1, 1], [0, 0]]),
    ([3, 1], [[1, 1], [0, 2]]),
]


def to_batch(x: np.ndarray, block: list[int], paddings: list[list[int]]) -> np.ndarray:
    """Every place in a block makes a picture of its own; those of one place follow each other."""
    padded = np.pad(x, [(0, 0), (0, 0), *paddings])
    places = itertools.product(range(block[0]), range(block[1]))
    return np.concatenate([padded[:, :, i :: block[0], j :: block[1]] for i, j in places])


@pytest.mark.parametrize("ios", ALL_IOS)
def test_space_to_batch(run_op, ios):
    x = [normal(2, 3, 4, 6), normal(2, 3, 4, 5), normal(1, 2, 4, 10), normal(3, 1, 4, 1)]
    inputs = dict(zip("abcd", x, strict=True))

    def build(mb, **given):
        return [
            mb.space_to_batch(x=v, block_shape=block, paddings=paddings)
            for v, (block, paddings) in zip(given.values(), BLOCKS, strict=True)
        ]

    check(run_op, build, inputs, [to_batch(v, *b) for v, b in zip(x, BLOCKS, strict=True)], ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_batch_to_space(run_op, ios):
    x = [normal(2, 3, 4, 6), normal(2, 3, 4, 5), normal(1, 2, 4, 10), normal(3, 1, 4, 1)]
    moved = [to_batch(v, *b) for v, b in zip(x, BLOCKS, strict=True)]

    def build(mb, **given):
        return [
            mb.batch_to_space(x=v, block_shape=block, crops=crops)
            for v, (block, crops) in zip(given.values(), BLOCKS, strict=True)
        ]

    check(run_op, build, dict(zip("abcd", moved, strict=True)), x, ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_crop(run_op, ios):
    x, y = normal(2, 3, 5, 6), normal(4, 5, 3)

    def build(mb, x, y):
        return [
            mb.crop(x=x, crop_height=[1, 2], crop_width=[0, 3]),
            mb.crop(x=x, crop_height=[0, 0], crop_width=[5, 0]),
            mb.crop(x=y, crop_height=[2, 0], crop_width=[1, 1]),
        ]

    check(run_op, build, {"x": x, "y": y}, [x[:, :, 1:3, :3], x[:, :, :, 5:], y[:, 2:, 1:2]], ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_sliding_windows(run_op, ios):
    x, whole = normal(4, 7, 3), np.arange(10, dtype=np.int32)
    sets = [(0, 2, 1), (1, 3, 2), (-1, 3, 1), (-2, 2, 3), (2, 1, 2)]

    def build(mb, x, whole):
        found = [mb.sliding_windows(x=x, axis=axis, size=size, stride=stride) for axis, size, stride in sets]
        return [*found, mb.sliding_windows(x=whole, axis=0, size=4)]

    expected = []
    for axis, size, stride in sets:
        starts = range(0, x.shape[axis] - size + 1, stride)
        windows = [np.take(x, range(start, start + size), axis) for start in starts]
        expected.append(np.stack(windows, axis % x.ndim))
    expected.append(np.stack([whole[i : i + 4] for i in range(7)]))
    check(run_op, build, {"x": x, "whole": whole}, expected, ios=ios)


def test_blocks_that_do_not_fit_are_refused(run_op):
    # coremltools rounds the shape down and saves the file
    with pytest.raises(BadInput, match="blocks of 2 do not divide 5, 4"):
        run_op(lambda mb, x: mb.space_to_depth(x=x, block_size=2), {"x": normal(1, 1, 5, 4)})
    with pytest.raises(BadInput, match="blocks of 4 do not divide 6"):
        run_op(lambda mb, x: mb.depth_to_space(x=x, block_size=2), {"x": normal(1, 6, 5, 4)})
