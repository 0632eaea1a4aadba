"""Sorting against Python's own, one line of numbers at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from .closeness import ALL_IOS, check, normal

COVERS = {"argsort": "test_argsort", "topk": "test_topk"}
FORMS = [(axis, ascending) for axis in (0, 1, 2, -1, -2) for ascending in (False, True)]


def order(x, axis, ascending):
    """Places in sorted order; of equals the first first."""
    sign = 1 if ascending else -1
    return np.apply_along_axis(lambda line: sorted(range(len(line)), key=lambda i: sign * int(line[i])), axis, x)


def distinct(*sides):
    return np.random.default_rng(0).permutation(int(np.prod(sides))).reshape(sides).astype(np.int32) - 20


@pytest.mark.parametrize("ios", ALL_IOS)
def test_argsort(run_op, ios):
    whole = distinct(3, 4, 5)
    x, ties = whole.astype(np.float32), np.array([2, 1, 2, 1, 3, 2], np.float32)

    def build(mb, x, whole, ties):
        return [
            *(mb.argsort(x=x, axis=axis, ascending=ascending) for axis, ascending in FORMS),
            mb.argsort(x=x),
            mb.argsort(x=whole),
            mb.argsort(x=ties, ascending=False),
            mb.argsort(x=ties, ascending=True),
        ]

    expected = [*(order(whole, *form) for form in FORMS), order(whole, -1, False), order(whole, -1, False)]
    expected += [order(ties, 0, False), order(ties, 0, True)]
    check(run_op, build, {"x": x, "whole": whole, "ties": ties}, expected, ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_topk(run_op, ios):
    whole = distinct(3, 4, 5)
    x = whole.astype(np.float32)
    counts = (1, 2, 3)
    indices = {"output_indices_dtype": "uint16"} if ios >= 17 else {}

    def build(mb, x, whole):
        found = [mb.topk(x=x), mb.topk(x=whole, k=2)]
        found += [mb.topk(x=x, k=k, axis=axis, ascending=up) for k in counts for axis, up in FORMS]
        if ios >= 16:
            found += [mb.topk(x=x, k=2, sort=True), mb.topk(x=x, k=2, sort=False)]
        if ios >= 17:
            values, places = mb.topk(x=x, k=2, axis=1, **indices)
            found.append((values, mb.cast(x=places, dtype="int32")))
            found.append(mb.topk(x=x, k=np.int8(3), axis=1))
        flat = [output for pair in found for output in pair]
        return [*flat, mb.topk(x=x, k=2, axis=0, return_indices=False)] if ios >= 16 else flat

    def best(x, k, axis, ascending):
        places = np.take(order(x, axis, ascending), range(k), axis)
        return [np.take_along_axis(x, places, axis), places]

    expected = best(x, 1, -1, False) + best(whole, 2, -1, False)
    for k in counts:
        for form in FORMS:
            expected += best(x, k, *form)
    expected += 2 * best(x, 2, -1, False) if ios >= 16 else []
    expected += best(x, 2, 1, False) + best(x, 3, 1, False) if ios >= 17 else []
    expected += best(x, 2, 0, False)[:1] if ios >= 16 else []
    check(run_op, build, {"x": x, "whole": whole}, expected, ios=ios)


def test_topk_of_all_elements_and_of_too_many():
    x = normal(3, 4)
    values, places = OPS.get("topk")(torch.from_numpy(x), k=-1)
    np.testing.assert_array_equal(values.numpy(), -np.sort(-x, axis=-1))
    np.testing.assert_array_equal(np.take_along_axis(x, places.numpy().astype(np.int64), -1), values.numpy())
    for k in (5, -2):
        with pytest.raises(BadInput, match=f"takes {k} of 4 elements"):
            OPS.get("topk")(torch.from_numpy(x), k=k)
    with pytest.raises(BadInput, match="indices go to 65537"):
        OPS.get("topk")(torch.zeros(65537, device="meta"), output_indices_dtype="uint16")
