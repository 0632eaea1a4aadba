"""Pools against the elements of each window, one by one."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvit.errors import BadInput

from . import oracles_windows as oracle
from .closeness import ALL_IOS, EPS, check, normal

COVERS = {"avg_pool": "test_avg_pool", "max_pool": "test_max_pool", "l2_pool": "test_l2_pool"}

SHAPES = {1: (2, 3, 11), 2: (2, 3, 9, 8), 3: (1, 2, 6, 5, 7)}
CASES = [
    {"kernel_sizes": (3, 2, 2), "pad_type": "valid"},
    {"kernel_sizes": (3, 2, 2), "pad_type": "valid", "pad": (1, 1, 1, 1, 1, 1)},  # pad counts for custom only
    {"kernel_sizes": (2, 3, 2), "pad_type": "VALID", "strides": (2, 2, 3)},
    {"kernel_sizes": (3, 3, 3), "pad_type": "same"},
    {"kernel_sizes": (2, 4, 2), "pad_type": "same", "strides": (2, 3, 1)},
    {"kernel_sizes": (2, 2, 2), "pad_type": "same", "strides": (3, 4, 3)},
    {"kernel_sizes": (3, 3, 2), "pad_type": "custom"},
    {"kernel_sizes": (3, 3, 2), "pad_type": "custom", "pad": (1, 1, 1, 1, 1, 1), "strides": (2, 2, 1)},
    {"kernel_sizes": (3, 3, 3), "pad_type": "custom", "pad": (2, 0, 1, 2, 0, 1), "strides": (2, 1, 2)},
    {"kernel_sizes": (4, 3, 3), "pad_type": "custom", "pad": (3, 3, 2, 2, 1, 1), "strides": (3, 2, 1)},
]
LOWER = [
    {"kernel_sizes": (2, 4, 2), "pad_type": "same_lower"},
    {"kernel_sizes": (4, 2, 3), "pad_type": "same_lower", "strides": (3, 1, 2)},
]
CEILING = [  # one and two spatial axes, symmetric padding
    {"kernel_sizes": (2, 3), "pad_type": "valid", "strides": (2, 2)},
    {"kernel_sizes": (3, 2), "pad_type": "valid", "strides": (3, 2)},
    {"kernel_sizes": (3, 3), "pad_type": "custom", "pad": (1, 1, 1, 1), "strides": (2, 2)},
    {"kernel_sizes": (2, 2), "pad_type": "custom", "pad": (1, 1, 1, 1), "strides": (3, 3)},  # a window is dropped
    {"kernel_sizes": (4, 3), "pad_type": "custom", "pad": (3, 3, 2, 2), "strides": (3, 4)},
    {"kernel_sizes": (5, 5), "pad_type": "custom", "pad": (3, 3, 3, 3), "strides": (13, 10)},  # one goes on behind it
]


def cases(axes: int, ios: int) -> list[dict]:
    """Every case for as many spatial axes; same_lower came with iOS 16."""
    lengths = {"strides": axes, "kernel_sizes": axes, "pad": 2 * axes}
    chosen = [*CASES, *(LOWER if ios > 15 else []), *({"ceil_mode": True, **c} for c in CEILING if axes < 3)]
    cut = (
        {name: value[: lengths.get(name)] if name in lengths else value for name, value in c.items()} for c in chosen
    )
    return [{**case, "pad_type": case["pad_type"]} for case in cut]


def pooled(x, reduce, sets):
    return [oracle.pool(x, reduce, **{**case, "pad_type": case["pad_type"].lower()}) for case in sets]


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_max_pool(run_op, axes, ios):
    x, sets = normal(*SHAPES[axes]) - 5, cases(axes, ios)  # all negative: padding with zeros would show
    expected = pooled(x, lambda window, padded, full: window.max(-1), sets)
    check(run_op, lambda mb, x: [mb.max_pool(x=x, **case) for case in sets], {"x": x}, expected, ios=ios)


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("ios", ALL_IOS)
@pytest.mark.parametrize("exclude", [False, True], ids=["padding", "real"])
def test_avg_pool(run_op, axes, ios, exclude):
    x, sets = normal(*SHAPES[axes]) + 3, cases(axes, ios)
    given = {"exclude_padding_from_average": True} if exclude else {}
    expected = pooled(x, lambda window, padded, full: window.sum(-1) / (window.shape[-1] if exclude else padded), sets)
    # up to 36 elements of at most 8: half a step for each addition and one for the division
    atol = 37 * EPS * float(np.abs(x).max())
    build = [{**case, **given} for case in sets]
    check(run_op, lambda mb, x: [mb.avg_pool(x=x, **c) for c in build], {"x": x}, expected, ios=ios, atol=atol)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("ios", ALL_IOS)
def test_l2_pool(run_op, axes, ios):
    x, sets = normal(*SHAPES[axes]), cases(axes, ios)
    expected = pooled(x, lambda window, padded, full: np.sqrt((window**2).sum(-1)), sets)
    # squares do not cancel: 12 of them lose 13 half steps, which the root halves
    check(run_op, lambda mb, x: [mb.l2_pool(x=x, **c) for c in sets], {"x": x}, expected, ios=ios, rtol=13 * EPS)


def test_an_average_that_ceil_mode_extends_divides_by_what_is_there(run_op):
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)
    build = lambda mb, x: mb.avg_pool(x=x, kernel_sizes=[2], strides=[2], pad_type="valid", ceil_mode=True)  # noqa: E731
    check(run_op, build, {"x": x}, [np.array([[[1.5, 3.5, 5.0]]])])


@pytest.mark.parametrize(
    ("kind", "parameters"),
    [
        # the last window starts behind the end, and nothing was padded that would drop it
        ("max_pool", {"kernel_sizes": [1], "strides": [3], "pad_type": "valid", "ceil_mode": True}),
        ("avg_pool", {"kernel_sizes": [1], "strides": [3], "pad_type": "valid", "ceil_mode": True}),
        # the first window holds padding alone
        ("max_pool", {"kernel_sizes": [2], "pad_type": "custom", "pad": [2, 0]}),
        (
            "avg_pool",
            {"kernel_sizes": [2], "pad_type": "custom", "pad": [0, 2], "exclude_padding_from_average": True},
        ),
    ],
)
def test_empty_windows_are_refused(run_op, kind, parameters):
    with pytest.raises(BadInput, match="one of its windows lies outside"):
        run_op(lambda mb, x: getattr(mb, kind)(x=x, **parameters), {"x": normal(1, 1, 5)})


def test_windows_of_padding_alone_average_to_zero(run_op):
    x = np.ones((1, 1, 3), np.float32)
    build = lambda mb, x: mb.avg_pool(x=x, kernel_sizes=[2], pad_type="custom", pad=[2, 0])  # noqa: E731
    check(run_op, build, {"x": x}, [np.array([[[0.0, 0.5, 1.0, 1.0]]])])
