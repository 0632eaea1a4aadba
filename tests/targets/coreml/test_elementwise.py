"""Arithmetic, comparisons and choices against numpy and exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from .closeness import ALL_IOS, EPS, check, normal, wide

COVERS = {
    **dict.fromkeys(("add", "sub", "mul", "maximum", "minimum"), "test_arithmetic"),
    "real_div": "test_real_div",
    **dict.fromkeys(("floor_div", "mod"), "test_whole_quotient_and_rest"),
    "pow": "test_pow",
    **dict.fromkeys(("equal", "not_equal", "greater", "greater_equal", "less", "less_equal"), "test_comparisons"),
    **dict.fromkeys(("logical_and", "logical_or", "logical_xor"), "test_logic"),
    "select": "test_select",
    "band_part": "test_band_part",
}
ARITHMETIC = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "maximum": np.maximum, "minimum": np.minimum}
COMPARISONS = {
    "equal": np.equal, "not_equal": np.not_equal, "greater": np.greater,
    "greater_equal": np.greater_equal, "less": np.less, "less_equal": np.less_equal,
}  # fmt: skip
LOGIC = {"logical_and": np.logical_and, "logical_or": np.logical_or, "logical_xor": np.logical_xor}
SIDES = [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (4,)), ((3, 1), (2, 1, 4)), ((1,), (2, 3))]
SIGNED = np.array([-7, -6, -1, 0, 1, 5, 7], np.int32)


def call(mb, kind):
    return getattr(mb, kind)


@pytest.mark.parametrize("ios", ALL_IOS)
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_arithmetic(run_op, sides, ios):
    x, y = normal(*sides[0]), normal(*sides[1], seed=1)
    # float64 holds each exact result or rounds it so that rounding again to float32 gives the nearest one
    expected = [f(wide(x), wide(y)).astype(np.float32) for f in ARITHMETIC.values()]

    def build(mb, x, y):
        return [call(mb, kind)(x=x, y=y) for kind in ARITHMETIC]

    check(run_op, build, {"x": x, "y": y}, expected, ios=ios)


def test_arithmetic_with_constants_and_integers(run_op):
    x = normal(2, 3)
    three = np.float32(3)

    def build(mb, x):
        return [call(mb, kind)(x=three, y=x) for kind in ARITHMETIC]

    check(run_op, build, {"x": x}, [f(3.0, wide(x)).astype(np.float32) for f in ARITHMETIC.values()])
    a, b = SIGNED[:, None], SIGNED

    def build(mb, a, b):
        return [call(mb, kind)(x=a, y=b) for kind in ARITHMETIC]

    check(run_op, build, {"a": a, "b": b}, [f(a, b) for f in ARITHMETIC.values()])


def test_arithmetic_of_large_integers_wraps_and_nan_spreads(run_op):
    big = np.array([2**31 - 1, -(2**31)], np.int32)

    def build(mb, x):
        return [mb.add(x=x, y=np.int32(1)), mb.mul(x=x, y=np.int32(2))]

    check(run_op, build, {"x": big}, [np.array([-(2**31), 1 - 2**31]), np.array([-2, 0])])
    x, y = np.array([np.nan, 1.0, np.inf], np.float32), np.array([1.0, np.nan, -np.inf], np.float32)

    def build(mb, x, y):
        return [mb.maximum(x=x, y=y), mb.minimum(x=x, y=y)]

    check(run_op, build, {"x": x, "y": y}, [[np.nan, np.nan, np.inf], [np.nan, np.nan, -np.inf]])


@pytest.mark.parametrize("ios", ALL_IOS)
def test_real_div(run_op, ios):
    x, y = normal(2, 3, 4), normal(3, 1, seed=1)
    a, b = SIGNED[:, None] * 3, np.array([-4, -1, 2, 5], np.int32)

    def build(mb, x, y, a, b):
        return [mb.real_div(x=x, y=y), mb.real_div(x=x, y=np.float32(0)), mb.real_div(x=a, y=b)]

    cut = np.array([[math.trunc(Fraction(int(p), int(q))) for q in b] for p in a[:, 0]])
    expected = [(wide(x) / wide(y)).astype(np.float32), np.copysign(np.inf, x), cut]
    check(run_op, build, {"x": x, "y": y, "a": a, "b": b}, expected, ios=ios)


def divided(p: float, q: float) -> tuple[int, Fraction]:
    """The whole quotient rounded down, and the rest, in exact fractions."""
    quotient = math.floor(Fraction(p) / Fraction(q))
    return quotient, Fraction(p) - quotient * Fraction(q)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_whole_quotient_and_rest(run_op, ios):
    # 0.1 does not go into 1 ten times in float32: the exact quotient is just below 10
    x = np.array([-7.5, -1.0, -0.25, 0.0, 0.3, 1.0, 6.0, 100.0], np.float32)[:, None]
    y = np.array([-2.0, -0.75, 0.1, 2.5, 6.0], np.float32)
    a, b = SIGNED[:, None], np.array([-4, -3, 1, 2, 7], np.int32)

    def build(mb, x, y, a, b):
        return [f(x=p, y=q) for p, q in ((x, y), (a, b)) for f in (mb.floor_div, mb.mod)]

    floats = [[divided(float(p), float(q)) for q in y] for p in x[:, 0]]
    whole = [[divided(int(p), int(q)) for q in b] for p in a[:, 0]]
    expected = [
        np.array([[float(pair[i]) for pair in row] for row in floats]) for i in range(2)
    ] + [np.array([[int(pair[i]) for pair in row] for row in whole]) for i in range(2)]  # fmt: skip
    # the rest of numbers of unlike sign is rounded once
    check(run_op, build, {"x": x, "y": y, "a": a, "b": b}, expected, ios=ios, rtol=EPS)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_pow(run_op, ios):
    x, y = np.abs(normal(2, 3)) + np.float32(0.1), normal(3, seed=1) * 3
    signed, exponents = normal(2, 3), (2.0, 3.0, -1.0, 0.0, 5.0)
    whole = np.array([0, 1, 2, 3], np.int32)

    def build(mb, x, y, signed, whole):
        return [
            mb.pow(x=x, y=y), mb.pow(x=np.float32(2.5), y=y), mb.pow(x=x, y=np.float32(0.5)),
            mb.pow(x=x, y=np.array([[1.7]], np.float32)), mb.pow(x=np.float32(2.0), y=np.array([[[3.0]]], np.float32)),
            *(mb.pow(x=signed, y=np.float32(e)) for e in exponents),
            mb.pow(x=np.array([[-3], [2]], np.int32), y=whole),
        ]  # fmt: skip

    expected = [
        wide(x) ** wide(y), 2.5 ** wide(y), np.sqrt(wide(x)),
        wide(x) ** wide(np.float32(1.7)), np.array([[[8.0]]]),
        *(wide(signed) ** e for e in exponents),
        np.array([[1, -3, 9, -27], [1, 2, 4, 8]]),
    ]  # fmt: skip
    # 1 unit in the last place each for up to 4 products, and for the general routine
    check(run_op, build, {"x": x, "y": y, "signed": signed, "whole": whole}, expected, ios=ios, rtol=4 * EPS)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_comparisons(run_op, ios):
    x, y = np.array([[1.0], [2.0], [np.nan]], np.float32), np.array([0.5, 1.0, 2.0, np.inf], np.float32)
    a = SIGNED

    def build(mb, x, y, a):
        return [
            mb.cast(x=call(mb, kind)(x=p, y=q), dtype="int32")
            for kind in COMPARISONS
            for p, q in ((x, y), (a, np.int32(1)))
        ]

    expected = [f(p, q).astype(np.int32) for f in COMPARISONS.values() for p, q in ((x, y), (a, 1))]
    check(run_op, build, {"x": x, "y": y, "a": a}, expected, ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_logic(run_op, ios):
    x, y = np.array([[0], [1], [5]], np.int32), np.array([0, 1, -1], np.int32)

    def build(mb, x, y):
        p, q = (mb.cast(x=v, dtype="bool") for v in (x, y))
        return [mb.cast(x=call(mb, kind)(x=p, y=q), dtype="int32") for kind in LOGIC]

    check(run_op, build, {"x": x, "y": y}, [f(x, y).astype(np.int32) for f in LOGIC.values()], ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_select(run_op, ios):
    a, b, c = normal(2, 3), normal(1, 3, seed=1), np.array([[1], [0]], np.int32)
    whole = np.arange(6, dtype=np.int32).reshape(2, 3)

    def build(mb, a, b, c, whole):
        cond = mb.cast(x=c, dtype="bool")
        lit = mb.greater(x=a, y=np.float32(0))
        return [
            mb.select(cond=cond, a=a, b=b),
            mb.select(cond=lit, a=a, b=np.float32(-np.inf)),
            mb.select(cond=np.array([True, False, True]), a=whole, b=np.int32(-1)),
            mb.cast(x=mb.select(cond=cond, a=lit, b=np.array([[True], [False]])), dtype="int32"),
        ]

    expected = [
        np.array([a[0], b[0]]),
        np.array([[v if v > 0 else -np.inf for v in row] for row in a]),
        np.array([[0, -1, 2], [3, -1, 5]]),
        np.array([a[0] > 0, [False] * 3]).astype(np.int32),
    ]
    check(run_op, build, {"a": a, "b": b, "c": c, "whole": whole}, expected, ios=ios)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_band_part(run_op, ios):
    x = normal(2, 4, 6)
    x[0, 3, 0] = np.inf  # outside is zero, not infinity times zero
    whole = np.arange(1, 21, dtype=np.int32).reshape(5, 4)
    bands = [(lower, upper) for lower in (-1, 0, 1, 9) for upper in (-1, 0, 2, 9)]

    def build(mb, x, whole):
        lit = mb.greater(x=x, y=np.float32(0))
        return [
            *(mb.band_part(x=x, lower=lower, upper=upper) for lower, upper in bands),
            *(mb.band_part(x=whole, lower=lower, upper=upper) for lower, upper in bands),
            mb.band_part(x=x),
            mb.cast(x=mb.band_part(x=lit, lower=1, upper=0), dtype="int32"),
        ]

    def band(v, lower, upper):
        kept = v.copy()
        for m in range(v.shape[-2]):
            for n in range(v.shape[-1]):
                if not ((lower < 0 or m - n <= lower) and (upper < 0 or n - m <= upper)):
                    kept[..., m, n] = 0
        return kept

    expected = [*(band(x, *b) for b in bands), *(band(whole, *b) for b in bands), x]
    check(run_op, build, {"x": x, "whole": whole}, [*expected, band((x > 0).astype(np.int32), 1, 0)], ios=ios)


def test_what_integers_cannot_do():
    one, zero = torch.ones(2, dtype=torch.int32), torch.zeros(2, dtype=torch.int32)
    for kind in ("real_div", "floor_div", "mod"):
        with pytest.raises(BadInput, match="by zero"):
            OPS.get(kind)(one, zero)
    with pytest.raises(BadInput, match="negative power"):
        OPS.get("pow")(one, -one)
