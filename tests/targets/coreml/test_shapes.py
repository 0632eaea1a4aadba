"""Operations that only arrange elements: each against numpy, exactly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops.indexing import gather
from pocketvit.targets.coreml.ops.joining import concat
from pocketvit.targets.coreml.ops.shapes import expand_dims, flatten2d, reverse_sequence

COVERS = {
    "reshape": "test_reshape",
    "reshape_like": "test_reshape_like",
    "transpose": "test_transpose",
    "expand_dims": "test_expand_dims",
    "squeeze": "test_squeeze",
    "flatten2d": "test_flatten2d",
    "reverse": "test_reverse",
    "reverse_sequence": "test_reverse_sequence",
    "shape": "test_shape",
    "identity": "test_identity",
}
OPSETS = (15, 16, 17, 18)


def numbers(*shape: int) -> np.ndarray:
    """Distinct values, so that a misplaced one shows."""
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("ios", OPSETS)
def test_reshape(run_op, ios):
    x = numbers(2, 3, 4)
    shapes = {(24,): (24,), (4, -1): (4, 6), (0, -1, 2): (2, 6, 2), (-1, 0, 0): (2, 3, 4), (2, 1, 3, 4): (2, 1, 3, 4)}
    found = run_op(lambda mb, x: [mb.reshape(x=x, shape=shape) for shape in shapes], {"x": x}, ios=ios)
    for got, expected in zip(found, shapes.values(), strict=True):
        assert_array_equal(got, x.reshape(expected))


def test_reshape_counts_zeros_from_the_right_from_ios17_on(run_op):
    # the example of the definition: (2, 50) to [1, 0, -1, 0] is (1, 1, 2, 50); fewer sides than x has work too
    x = numbers(2, 50)
    found = run_op(
        lambda mb, x: [
            mb.reshape(x=x, shape=(1, 0, -1, 0)),
            mb.reshape(x=mb.expand_dims(x=x, axes=[0]), shape=(-1, 0)),
        ],
        {"x": x},
        ios=17,
    )
    assert_array_equal(found[0], x.reshape(1, 1, 2, 50))
    assert_array_equal(found[1], x)


def test_reshape_to_a_computed_shape(run_op):
    # as models write x.view(x.shape[0], -1): the shape comes out of other operations
    def build(mb, x):
        rows = mb.gather(x=mb.shape(x=x), indices=[0], axis=0)
        return mb.reshape(x=x, shape=mb.concat(values=[rows, [-1]], axis=0))

    x = numbers(3, 2, 5)
    assert_array_equal(run_op(build, {"x": x})[0], x.reshape(3, 10))


@pytest.mark.parametrize("ios", [16, 17, 18])
def test_reshape_like(run_op, ios):
    x, one, two = numbers(60, 3), numbers(2, 3, 4), numbers(1, 5, 6)
    found = run_op(
        lambda mb, x, one, two: [
            # the example of the definition, then negative places and a single reference
            mb.reshape_like(x=x, ref_tensors=(one, two), begins=(0, 1), ends=(2, 0), end_masks=(False, True)),
            mb.reshape_like(
                x=one, ref_tensors=(two, one, one), begins=(0, -1, 0), ends=(1, 0, -1), end_masks=(False, True, False)
            ),
            mb.reshape_like(x=one, ref_tensors=(one,), begins=(0,), ends=(0,), end_masks=(True,)),
        ],
        {"x": x, "one": one, "two": two},
        ios=ios,
    )
    assert_array_equal(found[0], x.reshape(2, 3, 5, 6))
    assert_array_equal(found[1], one.reshape(1, 4, 2, 3))
    assert_array_equal(found[2], one)


@pytest.mark.parametrize("ios", OPSETS)
def test_transpose(run_op, ios):
    x = numbers(2, 3, 4, 5)
    perms = [(0, 2, 3, 1), (3, 2, 1, 0), (-1, 0, -2, 1)]
    found = run_op(lambda mb, x: [mb.transpose(x=x, perm=perm) for perm in perms], {"x": x}, ios=ios)
    for got, perm in zip(found, perms, strict=True):
        assert_array_equal(got, np.transpose(x, perm))


@pytest.mark.parametrize("ios", OPSETS)
def test_expand_dims(run_op, ios):
    x = numbers(2, 3)
    wanted = {(0,): (1, 2, 3), (-1,): (2, 3, 1), (1, -1): (2, 1, 3, 1), (3, 0): (1, 2, 3, 1), (-2, -4): (1, 2, 1, 3)}
    found = run_op(lambda mb, x: [mb.expand_dims(x=x, axes=axes) for axes in wanted], {"x": x}, ios=ios)
    for got, shape in zip(found, wanted.values(), strict=True):
        assert_array_equal(got, x.reshape(shape))


@pytest.mark.parametrize("ios", OPSETS)
def test_squeeze(run_op, ios):
    x = numbers(1, 2, 1, 3)
    # axis 1 is longer than 1: asked for, it stays
    wanted = {None: (2, 3), (0,): (2, 1, 3), (-2, 0): (2, 3), (0, 1): (2, 1, 3)}
    found = run_op(
        lambda mb, x: [mb.squeeze(x=x, **({"axes": axes} if axes else {})) for axes in wanted], {"x": x}, ios=ios
    )
    for got, shape in zip(found, wanted.values(), strict=True):
        assert_array_equal(got, x.reshape(shape))


def test_flatten2d(run_op):
    x, v = numbers(2, 3, 4), numbers(3)
    found = run_op(
        lambda mb, x, v: [
            mb.flatten2d(x=x),
            *(mb.flatten2d(x=x, axis=axis) for axis in (0, 2, 3, -1, -3)),
            mb.flatten2d(x=v, axis=-1),
            mb.flatten2d(x=v, axis=1),
        ],
        {"x": x, "v": v},
    )
    expected = [x.reshape(s) for s in ((2, 12), (1, 24), (6, 4), (24, 1), (6, 4), (1, 24))]
    expected += [v.reshape(1, 3), v.reshape(3, 1)]
    for got, wanted in zip(found, expected, strict=True):
        assert_array_equal(got, wanted)


@pytest.mark.parametrize("ios", OPSETS)
def test_reverse(run_op, ios):
    x = numbers(2, 3, 4)
    found = run_op(
        lambda mb, x: [mb.reverse(x=x), mb.reverse(x=x, axes=[1]), mb.reverse(x=x, axes=[-1, 0])], {"x": x}, ios=ios
    )
    for got, wanted in zip(found, (x[::-1, ::-1, ::-1], x[:, ::-1], x[::-1, :, ::-1]), strict=True):
        assert_array_equal(got, wanted)


def partly_reversed(x: np.ndarray, lengths: list[int], seq: int, batch: int) -> np.ndarray:
    result = x.copy()
    for i, length in enumerate(lengths):
        rows, source = np.moveaxis(result, (batch, seq), (0, 1))[i], np.moveaxis(x, (batch, seq), (0, 1))[i]
        for j in range(length):
            rows[j] = source[length - 1 - j]
    return result


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_reverse_sequence(run_op, ios):
    x = numbers(3, 4, 2)
    cases = [([0, 4, 3], 1, 0), ([1, 2], 1, 2), ([3, 0, 2, 1], 0, -3 + 1), ([2, 3], -3, -1)]
    found = run_op(
        lambda mb, x: [mb.reverse_sequence(x=x, lengths=n, seq_axis=s, batch_axis=b) for n, s, b in cases],
        {"x": x},
        ios=ios,
    )
    for got, (lengths, seq, batch) in zip(found, cases, strict=True):
        assert_array_equal(got, partly_reversed(x, lengths, seq, batch))


def test_reverse_sequence_refuses_lengths_that_are_too_long(run_op):
    x = numbers(2, 3)

    def build(mb, x, n):
        return mb.reverse_sequence(x=x, lengths=n, seq_axis=1, batch_axis=0)

    with pytest.raises(BadInput, match=r"lengths \[1, 4\] lie outside 0 to 3"):
        run_op(build, {"x": x, "n": np.array([1, 4], np.int32)})
    with pytest.raises(BadInput, match="also its batch axis"):
        run_op(lambda mb, x: mb.reverse_sequence(x=x, lengths=[1, 1]), {"x": x})


def test_axes_outside_are_refused():
    x, lengths = torch.zeros(2, 3), torch.tensor([1, 1])
    for refused in (
        lambda: expand_dims(x, (3,)),
        lambda: flatten2d(x, 3),
        lambda: reverse_sequence(x, lengths, seq_axis=2, batch_axis=0),
        lambda: reverse_sequence(torch.tensor(1.0), lengths),
        lambda: concat((x, x), 2, interleave=True),
        lambda: gather(x, lengths, 18, axis=-3),
    ):
        with pytest.raises(BadInput, match=r"ax[ie]s.* outside a (value|result) of rank"):
            refused()


def test_shape(run_op):
    found = run_op(lambda mb, x: mb.shape(x=x), {"x": numbers(2, 1, 5)})[0]
    assert found.dtype == np.int32
    assert_array_equal(found, [2, 1, 5])


def test_identity(run_op):
    x = numbers(2, 3)
    assert_array_equal(run_op(lambda mb, x: mb.identity(x=x), {"x": x})[0], x)


def test_integers_and_truth_values_are_arranged_as_well(run_op):
    def build(mb, x):
        positive = mb.greater(x=x, y=np.int32(0))
        moved = mb.transpose(x=mb.reshape(x=positive, shape=(3, 2)), perm=(1, 0))
        return [mb.transpose(x=x, perm=(1, 0)), mb.cast(x=mb.reverse(x=moved, axes=[0]), dtype="int32")]

    x = np.array([[1, -2, 3], [-4, 5, -6]], np.int32)
    found = run_op(build, {"x": x})
    assert_array_equal(found[0], x.T)
    assert_array_equal(found[1], (x > 0).reshape(3, 2).T[::-1])
