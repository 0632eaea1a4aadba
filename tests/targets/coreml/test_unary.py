"""Functions of one tensor against numpy and Python's math, computed in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from .closeness import ALL_IOS, EPS, check, normal, wide

SMOOTH = {  # the function, and where it is tried
    "acos": (np.arccos, -1, 1), "asin": (np.arcsin, -1, 1), "atan": (np.arctan, -9, 9),
    "atanh": (np.arctanh, -0.99, 0.99), "cos": (np.cos, -9, 9), "cosh": (np.cosh, -9, 9),
    "erf": (np.vectorize(math.erf), -4, 4), "exp": (np.exp, -20, 20), "sin": (np.sin, -9, 9),
    "sinh": (np.sinh, -9, 9), "sqrt": (np.sqrt, 0, 99), "tan": (np.tan, -9, 9), "tanh": (np.tanh, -9, 9),
}  # fmt: skip
EXACT = {"abs": np.abs, "ceil": np.ceil, "floor": np.floor, "sign": np.sign, "square": np.square}
COVERS = {
    **dict.fromkeys(SMOOTH, "test_smooth_functions"),
    **dict.fromkeys(EXACT, "test_exact_functions"),
    "round": "test_round_takes_halves_to_even",
    "logical_not": "test_logical_not",
    "exp2": "test_exp2",
    "inverse": "test_inverse",
    "rsqrt": "test_rsqrt",
    "log": "test_log",
    "clip": "test_clip",
    "threshold": "test_threshold",
    "cast": "test_cast",
}


@pytest.mark.parametrize("ios", ALL_IOS)
def test_smooth_functions(run_op, ios):
    inputs = {
        kind: np.linspace(low, high, 62, dtype=np.float32).reshape(2, 31) for kind, (_, low, high) in SMOOTH.items()
    }

    def build(mb, **values):
        return [getattr(mb, kind)(x=x) for kind, x in values.items()]

    expected = [SMOOTH[kind][0](wide(x)) for kind, x in inputs.items()]
    # the routines under torch promise 1 to 3.5 units in the last place of values, which may pass through zero
    check(run_op, build, inputs, expected, ios=ios, rtol=4 * EPS, atol=EPS)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_exact_functions(run_op, ios):
    x = np.array([-2.5, -1.0, -0.3, 0.0, 0.3, 1.0, 7.9], np.float32)
    whole = np.array([[-3, 0], [1, 46340]], np.int32)
    of_whole = ("abs", "sign", "square")

    def build(mb, x, whole):
        return [
            *(getattr(mb, kind)(x=x) for kind in EXACT),
            *(getattr(mb, kind)(x=whole) for kind in of_whole),
        ]

    expected = [*(f(x) for f in EXACT.values()), *(EXACT[kind](whole) for kind in of_whole)]
    check(run_op, build, {"x": x, "whole": whole}, expected, ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_round_takes_halves_to_even(run_op, ios):
    x = np.array([-2.5, -1.5, -0.5, -0.2, 0.5, 0.7, 1.5, 2.5], np.float32)
    expected = np.array([-2, -2, 0, 0, 0, 1, 2, 2], np.float32)
    check(run_op, lambda mb, x: mb.round(x=x), {"x": x}, [expected], ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_logical_not(run_op, ios):
    x = np.array([0, 1, -5], np.int32)

    def build(mb, x):
        return mb.cast(x=mb.logical_not(x=mb.cast(x=x, dtype="bool")), dtype="int32")

    check(run_op, build, {"x": x}, [[1, 0, 0]], ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_exp2(run_op, ios):
    x, whole = normal(3, 4) * 5, np.array([0, 1, 5, 30], np.int32)

    def build(mb, x, whole):
        return [mb.exp2(x=x), mb.exp2(x=whole)]

    check(run_op, build, {"x": x, "whole": whole}, [2.0 ** wide(x), 2**whole], ios=ios, rtol=2 * EPS)


# from iOS 17 epsilon may have another type than x
EPSILONS = [(ios, kind) for ios in ALL_IOS for kind in ((np.float32,) if ios < 17 else (np.float32, np.float16))]


@pytest.mark.parametrize(("ios", "kind"), EPSILONS)
def test_inverse(run_op, ios, kind):
    x = np.array([-2.0, -1e-4, 0.0, 1e-3, 3.0], np.float32)
    small, large = wide(np.float32(1e-4)), kind(0.5)

    def build(mb, x):
        return [mb.inverse(x=x), mb.inverse(x=x, epsilon=large)]

    with np.errstate(divide="ignore"):
        # the sum is rounded, then the quotient
        expected = [1 / wide(np.float32(wide(x) + small)), 1 / (wide(x) + 0.5)]
    check(run_op, build, {"x": x}, expected, ios=ios, rtol=2 * EPS)


@pytest.mark.parametrize(("ios", "kind"), EPSILONS)
def test_rsqrt(run_op, ios, kind):
    x = np.array([0.0, 1e-12, 1e-3, 3.0], np.float32)

    def build(mb, x):
        return [mb.rsqrt(x=x), mb.rsqrt(x=x, epsilon=kind(0.5))]

    expected = [1 / np.sqrt(wide(x) + 1e-12), 1 / np.sqrt(wide(x) + 0.5)]
    check(run_op, build, {"x": x}, expected, ios=ios, rtol=2 * EPS)


@pytest.mark.parametrize(("ios", "kind"), EPSILONS)
def test_log(run_op, ios, kind):
    x = np.array([0.0, 1e-30, 1e-3, 0.7, 3.0], np.float32)

    def build(mb, x):
        return [mb.log(x=x), mb.log(x=x, epsilon=kind(0.5))]

    # the default of 1e-45 is the smallest float32 there is, 1.4e-45
    expected = [np.log(wide(x) + 2.0**-149), np.log(wide(x) + 0.5)]
    # the sum is rounded: half an EPS of it whatever the logarithm
    check(run_op, build, {"x": x}, expected, ios=ios, rtol=2 * EPS, atol=EPS)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_clip(run_op, ios):
    x = np.array([-3.0, -0.5, 0.2, 9.0, np.inf, np.nan], np.float32)
    bounds = [(-0.5, 0.25), (-np.inf, 1.0), (0.0, 6.0)] + ([(2.0, -2.0), (1.0, 1.0)] if ios < 17 else [])

    def build(mb, x):
        return [mb.clip(x=x, alpha=np.float32(low), beta=np.float32(high)) for low, high in bounds]

    expected = [np.minimum(np.maximum(x, np.float32(low)), np.float32(high)) for low, high in bounds]
    check(run_op, build, {"x": x}, expected, ios=ios)


def test_clip_with_its_bounds_the_wrong_way_round_is_refused_from_ios_17():
    with pytest.raises(BadInput, match=r"alpha \(2\) should be smaller than its beta \(-2\)"):
        OPS.get("clip")(torch.zeros(2), 2.0, -2.0, opset=17)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_threshold(run_op, ios):
    x, whole = np.array([-3.0, 0.1, 0.2, 9.0], np.float32), np.array([-3, 1, 7], np.int32)

    def build(mb, x, whole):
        return [mb.threshold(x=x, alpha=np.float32(0.125)), mb.threshold(x=whole, alpha=np.int32(2))]

    check(run_op, build, {"x": x, "whole": whole}, [np.array([0.125, 0.125, x[2], 9]), [2, 2, 7]], ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_cast(run_op, ios):
    x = np.array([-2.7, -0.5, 0.0, 0.9, 3.2, 70000.7], np.float32)
    whole = np.array([-129, -1, 0, 1, 200, 40000, 70000], np.int32)
    narrow = ("int8", "uint8", "int16", "uint16") if ios >= 17 else ()

    def build(mb, x, whole):
        def to(v, dtype):
            return mb.cast(x=v, dtype=dtype)

        return [
            to(x, "int32"), to(whole, "fp32"), to(to(x, "bool"), "int32"), to(to(whole, "bool"), "fp32"),
            to(to(to(x, "fp16"), "fp32"), "int32"),
            *(to(to(whole, dtype), "int32") for dtype in narrow),
            *(to(to(whole, dtype), "fp32") for dtype in narrow),
        ]  # fmt: skip

    wrapped = [whole.astype(dtype) for dtype in narrow]
    expected = [
        np.array([-2, 0, 0, 0, 3, 70000]), whole.astype(float), np.array([1, 1, 0, 1, 1, 1]),
        (whole != 0).astype(float),
        np.array([-2, 0, 0, 0, 3, 70000]),  # float32 throughout: fp16 would make the last infinite
        *(v.astype(np.int32) for v in wrapped),
        *(v.astype(float) for v in wrapped),
    ]  # fmt: skip
    check(run_op, build, {"x": x, "whole": whole}, expected, ios=ios)


def test_cast_to_half_rounds_where_the_arithmetic_does(run_op):
    x = np.array([1 / 3, 1e-7, 70000.0], np.float32)

    def build(mb, x):
        return mb.cast(x=mb.cast(x=x, dtype="fp16"), dtype="fp32")

    with np.errstate(over="ignore"):
        rounded = x.astype(np.float16).astype(np.float32)
    for arithmetic, expected in (("fp32", x), ("fp16-fp32acc", rounded), ("fp16", rounded)):
        check(run_op, build, {"x": x}, [expected], arithmetic=arithmetic)


def test_what_has_no_result_is_refused():
    with pytest.raises(BadInput, match="no int32 result"):
        OPS.get("exp2")(torch.tensor([31], dtype=torch.int32))
    with pytest.raises(BadInput, match="casts to 'complex64'"):
        OPS.get("cast")(torch.zeros(1), "complex64")
