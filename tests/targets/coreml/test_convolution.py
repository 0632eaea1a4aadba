"""Convolutions against sums of products, window by window; transposes against the transposed matrix."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvit.errors import BadInput

from . import oracles_windows as oracle
from .closeness import ALL_IOS, EPS, check, normal, wide

COVERS = {"conv": "test_conv", "conv_transpose": "test_conv_transpose"}

SHAPES = {1: (2, 4, 9), 2: (2, 4, 9, 6), 3: (1, 4, 5, 6, 4)}
KERNELS = {1: (4,), 2: (3, 2), 3: (2, 3, 2)}
CONVS = [
    {},
    {"strides": (2, 3, 1)},
    {"pad_type": "valid", "pad": (1, 1, 1, 1, 1, 1)},  # pad counts for custom only
    {"pad_type": "same"},
    {"pad_type": "same", "strides": (2, 3, 2)},
    {"pad_type": "same", "strides": (3, 2, 2), "dilations": (2, 1, 1)},
    {"pad_type": "same", "strides": (5, 4, 4)},  # windows shorter than the stride: no padding at all
    {"pad_type": "custom"},
    {"pad_type": "custom", "pad": (1, 1, 2, 2, 0, 0)},
    {"pad_type": "custom", "pad": (0, 3, 2, 1, 1, 0), "strides": (2, 2, 1)},
    {"pad_type": "custom", "pad": (2, 1, 0, 4, 1, 3), "dilations": (2, 3, 2)},
    {"groups": 2, "dilations": (2, 2, 1)},
    {"groups": 4, "pad_type": "same", "strides": (2, 2, 2)},
]
LOWER = [
    {"pad_type": "same_lower"},
    {"pad_type": "same_lower", "strides": (2, 3, 2)},
    {"pad_type": "same_lower", "strides": (3, 2, 1), "dilations": (2, 1, 1), "groups": 2},
]


def fitted(case: dict, axes: int) -> dict:
    """A case for as many spatial axes."""
    lengths = {"strides": axes, "dilations": axes, "pad": 2 * axes}
    return {name: value[: lengths[name]] if name in lengths else value for name, value in case.items()}


def rounding(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, case: dict) -> float:
    """What float32 may lose in the largest of these sums: each of its terms, and each addition, by half a step."""
    terms = weight[0].size + 1
    largest = oracle.conv(np.abs(x), np.abs(weight), None if bias is None else np.abs(bias), **case).max()
    return terms * EPS * largest


@pytest.mark.parametrize("axes", SHAPES)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_conv(run_op, axes, ios):
    x = normal(*SHAPES[axes])
    sets = []
    for i, case in enumerate(CONVS if ios == 15 else CONVS[ios - 16 :: 3] + LOWER):
        weight = normal(8, 4 // case.get("groups", 1), *KERNELS[axes], seed=i + 1)
        sets.append((weight, normal(8, seed=i + 100) if i % 2 else None, fitted(case, axes)))

    def build(mb, x):
        return [
            mb.conv(x=x, weight=weight, **case, **({} if bias is None else {"bias": bias}))
            for weight, bias, case in sets
        ]

    expected = [oracle.conv(x, weight, bias, **case) for weight, bias, case in sets]
    check(run_op, build, {"x": x}, expected, ios=ios, atol=[rounding(x, *arguments) for arguments in sets])


@pytest.mark.parametrize("ios", ALL_IOS)
def test_conv_with_a_computed_weight(run_op, ios):
    x, w = normal(1, 4, 6, 5), normal(6, 2, 3, 2, seed=1)
    case = {"groups": 2, "pad_type": "custom", "pad": (1, 0, 2, 1), "strides": (1, 2)}
    expected = [oracle.conv(x, w, **case)]
    atol = rounding(x, w, None, case)
    check(run_op, lambda mb, x, w: mb.conv(x=x, weight=w, **case), {"x": x, "w": w}, expected, ios=ios, atol=atol)


def test_conv_with_a_computed_bias(run_op):
    x, w, b = normal(1, 2, 5), normal(3, 2, 2, seed=1), normal(3, seed=2)
    atol = rounding(x, w, b, {})
    expected = [oracle.conv(x, w, b)]
    check(run_op, lambda mb, x, b: mb.conv(x=x, weight=w, bias=b), {"x": x, "b": b}, expected, ios=17, atol=atol)


TRANSPOSES = [
    {},
    {"strides": (2, 3, 2)},
    {"pad_type": "valid", "strides": (2, 2, 2), "dilations": (2, 1, 2)},
    {"pad_type": "same"},
    {"pad_type": "same", "strides": (2, 2, 2)},
    {"pad_type": "same", "strides": (5, 4, 4)},  # the kernel does not reach everything
    {"pad_type": "same", "strides": (2, 2, 1), "dilations": (3, 2, 2)},
    {"pad_type": "custom", "pad": (1, 1, 1, 1, 1, 1), "strides": (2, 2, 2)},
    {"pad_type": "custom", "pad": (2, 0, 1, 2, 0, 1), "strides": (1, 3, 2)},
    {"pad_type": "custom", "pad": (0, 1, 0, 1, 1, 0), "groups": 2, "dilations": (1, 2, 2)},
    {"groups": 4, "strides": (2, 1, 1)},
]
GROWN = [  # sizes that a convolution also maps to these inputs: one more, or less, than without output_shape
    ({"pad_type": "same", "strides": (2, 2, 2)}, -1),
    ({"pad_type": "valid", "strides": (3, 3, 3)}, 2),
    ({"pad_type": "custom", "pad": (1, 1, 1, 1, 1, 1), "strides": (2, 2, 2)}, 1),
    ({"pad_type": "custom", "pad": (2, 1, 0, 1, 1, 0), "strides": (3, 3, 3), "groups": 2}, 1),
    ({"pad_type": "custom", "pad": (1, 1, 1, 1, 1, 1), "strides": (2, 2, 2)}, 0),
]
SMALL = {1: (2, 4, 5), 2: (2, 4, 4, 3), 3: (1, 4, 2, 2, 3)}


def natural_size(sizes: tuple[int, ...], kernel: tuple[int, ...], case: dict) -> list[int]:
    """The documented size of a transposed convolution's result, where output_shape does not say it."""
    found = []
    for i, (n, k) in enumerate(zip(sizes, kernel, strict=True)):
        stride = case.get("strides", (1,) * 3)[i]
        extent = (k - 1) * case.get("dilations", (1,) * 3)[i] + 1
        cut = sum(case["pad"][2 * i : 2 * i + 2]) if case.get("pad_type") == "custom" else 0
        found.append(n * stride if case.get("pad_type") == "same" else (n - 1) * stride + extent - cut)
    return found


@pytest.mark.parametrize("axes", SMALL)
@pytest.mark.parametrize("ios", ALL_IOS)
def test_conv_transpose(run_op, axes, ios):
    x, kernel = normal(*SMALL[axes]), KERNELS[axes]
    cases: list[tuple[dict, int | None]] = [*((case, None) for case in TRANSPOSES), *GROWN]
    sets = []
    # the oracle's matrices are large over three axes: there the versions share the cases
    for i, (case, grown) in enumerate(cases if ios == 15 and axes < 3 else cases[ios - 15 :: 4]):
        case, groups = fitted(case, axes), case.get("groups", 1)
        size = [n + (grown or 0) for n in natural_size(x.shape[2:], kernel, case)]
        weight, bias = normal(4, 8 // groups, *kernel, seed=i + 1), normal(8, seed=i + 100) if i % 2 else None
        sets.append((case, grown is not None, size, weight, bias))

    def build(mb, x):
        return [
            mb.conv_transpose(
                x=x,
                weight=weight,
                **case,
                **({"output_shape": (x.shape[0], 8, *size)} if given else {}),
                **({} if bias is None else {"bias": bias}),
            )
            for case, given, size, weight, bias in sets
        ]

    expected, atol = [], []
    for case, _, size, weight, bias in sets:
        expected.append(oracle.conv_transpose(x, weight, size, bias, **case))
        largest = oracle.conv_transpose(np.abs(x), np.abs(weight), size, **case).max() + (0 if bias is None else 4)
        atol.append((weight[:, 0].size + 1) * EPS * largest)
    check(run_op, build, {"x": x}, expected, ios=ios, atol=atol)


def test_conv_transpose_with_a_computed_weight(run_op):
    x, w = normal(1, 3, 4), normal(3, 2, 3, seed=1)

    def build(mb, x, w):
        return mb.conv_transpose(x=x, weight=w, strides=[2])

    largest = oracle.conv_transpose(np.abs(x), np.abs(w), [9], strides=[2]).max()
    expected = [oracle.conv_transpose(x, w, [9], strides=[2])]
    check(run_op, build, {"x": x, "w": w}, expected, ios=17, atol=w[:, 0].size * EPS * largest)


def test_what_a_transpose_holds_where_its_kernel_does_not_reach(run_op):
    x, w, b = normal(1, 1, 3), normal(1, 1, 2, seed=1), np.float32([7.0])

    def build(mb, x):
        return mb.conv_transpose(x=x, weight=w, bias=b, pad_type="same", strides=[4])

    expected = np.full((1, 1, 12), 7.0)
    for i in range(3):
        expected[0, 0, 4 * i : 4 * i + 2] += wide(x)[0, 0, i] * wide(w)[0, 0]
    check(run_op, build, {"x": x}, [expected], atol=2 * EPS * 16)


@pytest.mark.parametrize("size", [8, 11])
def test_sizes_that_no_convolution_gives_are_refused(run_op, size):
    w = normal(2, 3, 3)  # 9 or 10 elements make 4 windows of 3 at stride 2

    def build(mb, x):
        return mb.conv_transpose(x=x, weight=w, strides=[2], output_shape=[1, 3, size])

    with pytest.raises(BadInput, match=rf"a convolution of {size} elements .* does not give 4"):
        run_op(build, {"x": normal(1, 2, 4)})
