"""Reductions against numpy in float64, over every kind of axes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from .closeness import ALL_IOS, EPS, check, normal, wide

REDUCTIONS = {
    "reduce_sum": np.sum,
    "reduce_sum_square": lambda x, **over: np.sum(x * x, **over),
    "reduce_l1_norm": lambda x, **over: np.sum(np.abs(x), **over),
    "reduce_l2_norm": lambda x, **over: np.sqrt(np.sum(x * x, **over)),
    "reduce_log_sum": lambda x, **over: np.log(np.sum(x, **over)),
    "reduce_log_sum_exp": special.logsumexp,
    "reduce_max": np.max,
    "reduce_min": np.min,
    "reduce_mean": np.mean,
    "reduce_prod": np.prod,
}
COVERS = {
    **dict.fromkeys(REDUCTIONS, "test_reductions"),
    "reduce_argmax": "test_places_of_extremes",
    "reduce_argmin": "test_places_of_extremes",
    "cumsum": "test_cumsum",
}
AXES = (None, (0,), (1,), (-1,), (0, 2), (-1, -3), (2, 0, 1), ())
OVER = [(axes, keep) for axes in AXES for keep in (False, True)]


def reduced(mb, kind, x, axes, keep):
    chosen = {} if axes is None else {"axes": np.array(axes, np.int32)}
    return getattr(mb, kind)(x=x, keep_dims=keep, **chosen)


@pytest.mark.parametrize("ios", ALL_IOS)
@pytest.mark.parametrize("kind", REDUCTIONS)
def test_reductions(run_op, kind, ios):
    x = normal(3, 4, 5)
    if kind == "reduce_log_sum":
        x = np.abs(x) + np.float32(0.01)

    def build(mb, x):
        return [*(reduced(mb, kind, x, axes, keep) for axes, keep in OVER), getattr(mb, kind)(x=x)]

    function = REDUCTIONS[kind]
    expected = [*(function(wide(x), axis=axes, keepdims=keep) for axes, keep in OVER), function(wide(x))]
    # up to 60 terms, each sum or product rounded; the terms of a sum may cancel
    sizes = [np.abs(x).sum() if kind in ("reduce_sum", "reduce_mean") else 1.0] * len(expected)
    check(run_op, build, {"x": x}, expected, ios=ios, rtol=60 * EPS, atol=[8 * EPS * size for size in sizes])


@pytest.mark.parametrize("ios", ALL_IOS)
def test_reductions_of_integers_cut_fractions(run_op, ios):
    x = np.array([[-7, 2, 3], [1, -2, 4]], np.int32)
    positive = np.array([[7, 2, 3], [1, 2, 4]], np.int32)

    def build(mb, x, positive):
        return [
            reduced(mb, kind, positive if kind == "reduce_log_sum" else x, axes, True)
            for kind in REDUCTIONS
            for axes in (None, (-1,), ())
        ]

    expected = [
        np.trunc(REDUCTIONS[kind](wide(positive if kind == "reduce_log_sum" else x), axis=axes, keepdims=True))
        for kind in REDUCTIONS
        for axes in (None, (-1,), ())
    ]
    whole = [v.astype(np.int32) for v in expected]
    check(run_op, build, {"x": x, "positive": positive}, whole, ios=ios)


def test_log_sum_exp_does_not_overflow(run_op):
    x = np.array([[1000.0, 1000.0], [-1000.0, -np.inf]], np.float32)

    def build(mb, x):
        return mb.reduce_log_sum_exp(x=x, axes=[1])

    check(run_op, build, {"x": x}, [np.array([1000 + np.log(2), -1000])], rtol=EPS)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_places_of_extremes(run_op, ios):
    x = np.random.default_rng(0).permutation(60).reshape(3, 4, 5).astype(np.float32)  # no ties: MIL leaves them open
    whole = x.astype(np.int32)
    kinds = {"reduce_argmax": np.argmax, "reduce_argmin": np.argmin}
    over = [(axis, keep) for axis in (0, 1, 2, -1, -3) for keep in (False, True)]
    types = ("int32", "uint16") if ios >= 17 else ()

    def build(mb, x, whole):
        return [
            *(getattr(mb, kind)(x=x, axis=axis, keep_dims=keep) for kind in kinds for axis, keep in over),
            *(getattr(mb, kind)(x=whole) for kind in kinds),
            *(mb.cast(x=getattr(mb, k)(x=x, axis=1, output_dtype=t), dtype="int32") for k in kinds for t in types),
        ]

    expected = [
        *(f(x, axis=axis, keepdims=keep) for f in kinds.values() for axis, keep in over),
        *(f(whole, axis=-1) for f in kinds.values()),
        *(f(x, axis=1) for f in kinds.values() for _ in types),
    ]
    check(run_op, build, {"x": x, "whole": whole}, expected, ios=ios)


def running(x, axis, exclusive, reverse):
    """Each sum on its own, from the definition."""
    x = np.moveaxis(x, axis, 0)
    n = len(x)
    parts = [x[i + exclusive :] if reverse else x[: i + 1 - exclusive] for i in range(n)]
    return np.moveaxis(np.stack([part.sum(axis=0) for part in parts]), 0, axis)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_cumsum(run_op, ios):
    x, whole = normal(3, 4, 5), np.arange(-6, 6, dtype=np.int32).reshape(3, 4)
    forms = [(axis, e, r) for axis in (0, 1, 2, -1) for e in (False, True) for r in (False, True)]

    def build(mb, x, whole):
        return [
            *(mb.cumsum(x=x, axis=axis, exclusive=e, reverse=r) for axis, e, r in forms),
            mb.cumsum(x=x),
            mb.cumsum(x=whole, axis=1, exclusive=True),
        ]

    expected = [*(running(wide(x), *form) for form in forms), running(wide(x), 0, False, False)]
    # at most 5 terms of at most 4 each
    check(run_op, build, {"x": x, "whole": whole}, [*expected, running(whole, 1, True, False)], ios=ios, atol=20 * EPS)


def test_places_that_do_not_fit_uint16_are_refused():
    x = torch.zeros(2, (1 << 16) + 1, device="meta")
    assert OPS.get("reduce_argmax")(x).shape == (2,)
    for kind in ("reduce_argmax", "reduce_argmin"):
        with pytest.raises(BadInput, match="indices go to 65537"):
            OPS.get(kind)(x, output_dtype="uint16")
        with pytest.raises(BadInput, match="indices are 'int8'"):
            OPS.get(kind)(x, output_dtype="int8")
