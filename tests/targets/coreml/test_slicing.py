"""Slices: each against numpy's own, exactly, and against the definition where it differs."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pocketvit.errors import BadInput

COVERS = {
    "slice_by_index": "test_slice_by_index",
    "slice_by_size": "test_slice_by_size",
    "slice_update": "test_slice_update",
}

# begin, end, stride of a (4, 5, 6) tensor, in the order of the parameters, with the masks that apply
SLICES = [
    {"begin": (1, 0, 2), "end": (3, 5, 6)},
    {"begin": (-3, -4, 1), "end": (-1, 4, -1)},
    {"begin": (0, 1, 1), "end": (4, 5, 6), "stride": (2, 3, 2)},
    {"begin": (3, 4, 5), "end": (0, 1, 2), "stride": (-1, -2, -3)},
    {"begin": (-1, 3, 5), "end": (-4, 1, 0), "stride": (-2, -1, -4)},
    {"begin": (0, 2, 0), "end": (4, 3, 6), "squeeze_mask": (False, True, False)},
    {"begin": (-1, 2, -2), "end": (0, 0, 0), "squeeze_mask": (True, False, True), "end_mask": (False, True, False)},
    {"begin": (2, 2, 2), "end": (9, 9, 9), "begin_mask": (True, False, True), "end_mask": (False, True, True)},
    {"begin": (7, 1, 7), "end": (7, 4, 7), "stride": (-1, 2, -2), "begin_mask": (True, False, True),
     "end_mask": (True, True, True)},
    {"begin": (1, 3, 0), "end": (9, 0, 4), "stride": (1, -1, 1), "end_mask": (False, True, False)},
    {"begin": (3, 1, 2), "end": (4, 2, 3), "begin_mask": (True, True, True), "squeeze_mask": (True, False, True)},
]  # fmt: skip


def cut(x: np.ndarray, part: dict) -> tuple:
    """The index that the definition's formula and masks say."""
    index: list = []
    for i in range(x.ndim):
        if part.get("squeeze_mask", (False,) * x.ndim)[i]:
            index.append(0 if part.get("begin_mask", (False,) * x.ndim)[i] else part["begin"][i])
            continue
        begin = None if part.get("begin_mask", (False,) * x.ndim)[i] else part["begin"][i]
        end = None if part.get("end_mask", (False,) * x.ndim)[i] else part["end"][i]
        index.append(slice(begin, end, part.get("stride", (1,) * x.ndim)[i]))
    return tuple(index)


def numbers(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.mark.parametrize("ios", [15, 16, 17, 18])
def test_slice_by_index(run_op, ios):
    x = numbers(4, 5, 6)
    found = run_op(lambda mb, x: [mb.slice_by_index(x=x, **part) for part in SLICES], {"x": x}, ios=ios)
    for got, part in zip(found, SLICES, strict=True):
        assert_array_equal(got, x[cut(x, part)], str(part))


def test_slice_by_index_over_every_range_of_a_short_axis(run_op):
    x = numbers(5)
    ends = [*range(-5, 6)]
    ranges = [
        (begin, end, stride)
        for begin in ends
        for end in ends
        for stride in (1, 2, -1, -3)
        # coremltools writes no empty slices, and for strides below 0 its own shapes and values differ past the first
        if begin < 5 and len(range(*slice(begin, end, stride).indices(5))) > 0 and not (stride < 0 and end in (-5, 5))
    ]
    assert len(ranges) > 100
    found = run_op(
        lambda mb, x: [mb.slice_by_index(x=x, begin=[b], end=[e], stride=[s]) for b, e, s in ranges], {"x": x}, ios=17
    )
    for got, (begin, end, stride) in zip(found, ranges, strict=True):
        assert_array_equal(got, x[begin:end:stride], f"x[{begin}:{end}:{stride}]")


def test_slice_by_index_at_a_place_the_program_computes(run_op):
    def build(mb, x, place):
        rest = {"begin_mask": [False, True], "end_mask": [True, True], "squeeze_mask": [True, False]}
        begin = mb.concat(values=[place, [0]], axis=0)
        return mb.slice_by_index(x=x, begin=begin, end=[0, 0], **rest)

    x = numbers(4, 3)
    for place in (0, 3, -2):
        assert_array_equal(run_op(build, {"x": x, "place": np.array([place], np.int32)})[0], x[place])
    with pytest.raises(BadInput, match="element 4 of 4 along axis 0"):
        run_op(build, {"x": x, "place": np.array([4], np.int32)})


def test_slice_by_index_of_unknown_length_is_refused(run_op):
    with pytest.raises(BadInput, match=r"slice_by_index.*depends on what the image shows"):
        run_op(
            lambda mb, x, n: mb.slice_by_index(x=x, begin=[0], end=n),
            {"x": numbers(4), "n": np.array([2], np.int32)},
        )


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_slice_by_size(run_op, ios):
    x = numbers(4, 5, 6)
    # -1 takes the rest; from a negative place coremltools declares a shape that its own values do not have
    cases = {
        ((0, 0, 0), (4, 5, 6)): x,
        ((1, 2, 0), (2, 1, 3)): x[1:3, 2:3, :3],
        ((3, 1, 2), (-1, -1, -1)): x[3:, 1:, 2:],
        ((-2, -5, -1), (1, 5, 1)): x[2:3, :, 5:],
    }
    found = run_op(lambda mb, x: [mb.slice_by_size(x=x, begin=b, size=s) for b, s in cases], {"x": x}, ios=ios)
    for got, wanted in zip(found, cases.values(), strict=True):
        assert_array_equal(got, wanted)


def test_slice_by_size_at_a_place_the_program_computes(run_op):
    def build(mb, x, place):
        return mb.slice_by_size(x=x, begin=place, size=[2, 3])

    x = numbers(4, 3)
    for first in (0, 2):
        assert_array_equal(run_op(build, {"x": x, "place": np.array([first, 0], np.int32)})[0], x[first : first + 2])
    with pytest.raises(BadInput, match="2 elements from 3 on of 4 along axis 0"):
        run_op(build, {"x": x, "place": np.array([3, 0], np.int32)})


def test_slice_update(run_op):
    x = numbers(4, 5, 6)
    parts = [part for part in SLICES if x[cut(x, part)].ndim]
    updates = [-1 - np.arange(x[cut(x, part)].size, dtype=np.float32).reshape(x[cut(x, part)].shape) for part in parts]
    found = run_op(
        lambda mb, x: [mb.slice_update(x=x, update=u, **part) for part, u in zip(parts, updates, strict=True)],
        {"x": x},
        ios=18,
    )
    for got, part, update in zip(found, parts, updates, strict=True):
        expected = x.copy()
        expected[cut(x, part)] = update
        assert_array_equal(got, expected, str(part))


def test_slice_update_of_integers_at_a_place_the_program_computes(run_op):
    def build(mb, x, place):
        begin = mb.concat(values=[place, [0]], axis=0)
        rest = {"begin_mask": [False, True], "end_mask": [True, True], "squeeze_mask": [True, False]}
        return mb.slice_update(x=x, update=np.array([7, 8, 9], np.int32), begin=begin, end=[0, 0], **rest)

    x = np.arange(12, dtype=np.int32).reshape(4, 3)
    expected = x.copy()
    expected[2] = 7, 8, 9
    assert_array_equal(run_op(build, {"x": x, "place": np.array([2], np.int32)}, ios=18)[0], expected)
