"""Tensors joined, split, repeated and made: each against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops.joining import fill, one_hot, range_1d, tile
from pocketvit.targets.coreml.values import Dtype, TensorType

COVERS = {
    "concat": "test_concat",
    "split": "test_split",
    "stack": "test_stack",
    "tile": "test_tile",
    "one_hot": "test_one_hot",
    "range_1d": "test_range_1d",
    "fill": "test_fill",
    "fill_like": "test_fill_like",
}
EPSILON = np.finfo(np.float32).eps


def numbers(*shape: int, first: int = 1) -> np.ndarray:
    return np.arange(first, first + np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_concat(run_op, ios):
    x, y, wide = numbers(2, 3, 4), numbers(2, 3, 4, first=100), numbers(2, 5, 4, first=200)
    found = run_op(
        lambda mb, x, y, wide: [
            mb.concat(values=(x, y), axis=0),
            mb.concat(values=(x, wide, y), axis=-2),
            mb.concat(values=(x,), axis=1),
            mb.concat(values=(x, y, x), axis=1, interleave=True),
            mb.concat(values=(x, y), axis=-1, interleave=True),
        ],
        {"x": x, "y": y, "wide": wide},
        ios=ios,
    )
    assert_array_equal(found[0], np.concatenate([x, y]))
    assert_array_equal(found[1], np.concatenate([x, wide, y], 1))
    assert_array_equal(found[2], x)
    turns = np.empty((2, 9, 4), np.float32)
    turns[:, 0::3], turns[:, 1::3], turns[:, 2::3] = x, y, x
    assert_array_equal(found[3], turns)
    turns = np.empty((2, 3, 8), np.float32)
    turns[..., 0::2], turns[..., 1::2] = x, y
    assert_array_equal(found[4], turns)


def test_concat_makes_a_vector_of_single_numbers(run_op):
    def build(mb, x):
        one = mb.reduce_max(x=x, axes=[0], keep_dims=False)
        return mb.concat(values=(one, np.float32(7)), axis=0)

    assert_array_equal(run_op(build, {"x": numbers(3)})[0], [3, 7])


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_split(run_op, ios):
    x = numbers(2, 6, 3)

    def build(mb, x):
        return [
            *mb.split(x=x, axis=1, num_splits=3),
            *mb.split(x=x, axis=-2, split_sizes=[1, 3, 2]),
            *mb.split(x=x, axis=0, num_splits=2, split_sizes=[1, 1]),
        ]

    found = run_op(build, {"x": x}, ios=ios)
    expected = [*np.split(x, 3, 1), *np.split(x, [1, 4], 1), *np.split(x, 2)]
    for got, wanted in zip(found, expected, strict=True):
        assert_array_equal(got, wanted)


def test_stack(run_op):
    x, y = numbers(2, 3), numbers(2, 3, first=50)
    axes = (0, 1, 2, -1, -2)
    found = run_op(lambda mb, x, y: [mb.stack(values=(x, y, x), axis=a) for a in axes], {"x": x, "y": y})
    for got, axis in zip(found, axes, strict=True):
        assert_array_equal(got, np.stack([x, y, x], axis))


def test_tile(run_op):
    x = numbers(2, 1, 3)
    repetitions = [(1, 1, 1), (2, 1, 1), (1, 3, 2), (2, 2, 2)]
    found = run_op(lambda mb, x: [mb.tile(x=x, reps=reps) for reps in repetitions], {"x": x})
    for got, reps in zip(found, repetitions, strict=True):
        assert_array_equal(got, np.tile(x, reps))
    with pytest.raises(BadInput, match="reps"):
        tile(x, (2, 2))


def test_one_hot(run_op):
    indices = np.array([[0, 2, 1], [1, 4, 3]], np.int32)  # 3 and 4 lie outside a vector of three
    hot = indices[..., None] == np.arange(3)
    found = run_op(
        lambda mb, i: [
            mb.one_hot(indices=i, one_hot_vector_size=3),
            mb.one_hot(indices=i, one_hot_vector_size=3, axis=0),
            mb.one_hot(indices=i, one_hot_vector_size=3, axis=1, on_value=np.float32(2.5), off_value=np.float32(-1)),
            mb.one_hot(indices=i, one_hot_vector_size=3, axis=-3, on_value=7, off_value=2),
            mb.cast(x=mb.one_hot(indices=i, one_hot_vector_size=3, on_value=True, off_value=False), dtype="int32"),
        ],
        {"i": indices},
    )
    assert_array_equal(found[0], hot)
    assert found[0].dtype == np.int32
    assert_array_equal(found[1], np.moveaxis(hot, -1, 0))
    assert_array_equal(found[2], np.where(np.moveaxis(hot, -1, 1), np.float32(2.5), np.float32(-1)))
    assert_array_equal(found[3], np.where(np.moveaxis(hot, -1, 0), 7, 2))
    assert_array_equal(found[4], hot)


def test_range_1d(run_op):
    whole = [(0, 7, 1), (3, 20, 4), (5, -6, -3), (-4, 4, 8)]
    real = [(0.0, 1.0, 0.25), (0.5, -2.0, -0.75), (0.0, 0.3, 0.1), (1.0, 2.0, 3.0)]

    def build(mb, x):
        ranges = [mb.range_1d(start=a, end=b, step=s) for a, b, s in whole]
        ranges += [mb.range_1d(start=np.float32(a), end=np.float32(b), step=np.float32(s)) for a, b, s in real]
        # the length of an axis, as programs write it
        length = mb.squeeze(x=mb.slice_by_size(x=mb.shape(x=x), begin=[1], size=[1]))
        return [*ranges, mb.range_1d(start=0, end=length, step=1)]

    found = run_op(build, {"x": numbers(2, 5)})
    for got, (start, end, step) in zip(found, whole, strict=False):
        assert_array_equal(got, np.arange(start, end, step))
        assert got.dtype == np.int32
    for got, (start, end, step) in zip(found[len(whole) :], real, strict=False):
        wanted = np.arange(np.float32(start), np.float32(end), np.float32(step))
        assert got.shape == wanted.shape
        # a product and a sum are rounded on either side
        assert_allclose(got, wanted, rtol=0, atol=4 * EPSILON * np.abs(wanted).max())
    assert_array_equal(found[-1], np.arange(5))


@pytest.mark.parametrize("ios", [15, 18])
def test_fill(run_op, ios):
    def build(mb, x):
        return [
            mb.add(x=x, y=mb.fill(shape=(2, 3))),
            mb.fill(shape=(3,), value=np.float32(2.5)),
            mb.fill(shape=(2, 2), value=-3),
            mb.cast(x=mb.fill(shape=(2,), value=True), dtype="int32"),
            mb.fill(shape=mb.shape(x=x), value=np.float32(1)),
        ]

    x = numbers(2, 3)
    found = run_op(build, {"x": x}, ios=ios)
    for got, wanted in zip(found, [x, [2.5] * 3, [[-3, -3], [-3, -3]], [1, 1], np.ones((2, 3))], strict=True):
        assert_array_equal(got, wanted)
    assert found[2].dtype == np.int32


@pytest.mark.parametrize("ios", [16, 18])
def test_fill_like(run_op, ios):
    def build(mb, x, n):
        return [
            mb.fill_like(ref_tensor=x),
            mb.fill_like(ref_tensor=n, value=np.float32(0.5)),
            mb.fill_like(ref_tensor=x, value=4),
            mb.cast(x=mb.fill_like(ref_tensor=n, value=True), dtype="int32"),
        ]

    found = run_op(build, {"x": numbers(2, 3), "n": np.zeros((4,), np.int32)}, ios=ios)
    for got, wanted in zip(found, [np.zeros((2, 3)), np.full(4, 0.5), np.full((2, 3), 4), np.ones(4)], strict=True):
        assert_array_equal(got, wanted)
    assert [got.dtype for got in found] == [np.float32, np.float32, np.int32, np.int32]


def test_what_would_take_a_terabyte_is_refused_before_it_is_made():
    whole, real = (TensorType(Dtype.INT32, (None,)),), (TensorType(Dtype.FP32, (None,)),)
    with pytest.raises(BadInput, match="1048576 x 1048576 elements"):
        fill((1 << 20, 1 << 20), real)
    with pytest.raises(BadInput, match="elements"):
        tile(torch.zeros(1 << 20), (1 << 20,))
    with pytest.raises(BadInput, match="elements"):
        one_hot(torch.zeros(1 << 10, dtype=torch.int32), 1 << 30, whole)
    with pytest.raises(BadInput, match="elements"):
        range_1d(2**31 - 1, 0, 1, whole)
    with pytest.raises(BadInput, match="steps of 1e-45"):
        range_1d(1, 0, 1e-45, real)
