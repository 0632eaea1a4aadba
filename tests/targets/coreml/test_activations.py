"""Activation functions against their documented formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from . import oracles_activations as oracles
from .closeness import ALL_IOS, EPS, check, normal, wide

PLAIN = ("relu", "relu6", "sigmoid", "silu", "softplus", "softsign")
ONE = ("elu", "leaky_relu", "thresholded_relu")
TWO = ("clamped_relu", "linear_activation", "scaled_tanh", "sigmoid_hard")
COVERS = {
    **dict.fromkeys(PLAIN, "test_plain_activations"),
    **dict.fromkeys((*ONE, *TWO), "test_activations_with_constants"),
    "gelu": "test_gelu",
    "prelu": "test_prelu",
    "softplus_parametric": "test_softplus_parametric",
    "softmax": "test_softmax",
}
# from iOS 17 the constants may have another type than x
TYPES = [(ios, kind) for ios in ALL_IOS for kind in ((np.float32,) if ios < 17 else (np.float32, np.float16))]
GRID = np.concatenate((np.linspace(-30, 30, 55), [-0.5, 0.5, 1.5, -1e-3, 1e-3])).astype(np.float32).reshape(5, 12)
NUMBERS = (-1.5, -0.25, 0.0, 0.5, 2.0)  # exact in fp16


@pytest.mark.parametrize("ios", ALL_IOS)
def test_plain_activations(run_op, ios):
    def build(mb, x):
        return [getattr(mb, kind)(x=x) for kind in PLAIN]

    expected = [getattr(oracles, kind)(wide(GRID)) for kind in PLAIN]
    # a few roundings of numbers of the result's own size
    check(run_op, build, {"x": GRID}, expected, ios=ios, rtol=4 * EPS, atol=1e-30)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_gelu(run_op, ios):
    modes = ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")

    def build(mb, x):
        return [mb.gelu(x=x), *(mb.gelu(x=x, mode=mode) for mode in modes)]

    expected = [oracles.gelu(wide(GRID)), *(oracles.gelu(wide(GRID), mode) for mode in modes)]
    # 1 + erf and 1 + tanh lose what is below EPS of 1, and x multiplies it
    check(run_op, build, {"x": GRID}, expected, ios=ios, rtol=4 * EPS, atol=2 * EPS * 30)


def test_gelu_modes_differ_by_more_than_the_tolerance():
    x = wide(GRID)
    forms = [oracles.gelu(x, mode) for mode in ("EXACT", "TANH_APPROXIMATION", "SIGMOID_APPROXIMATION")]
    assert min(np.abs(forms[i] - forms[i - 1]).max() for i in range(3)) > 1e-4
    with pytest.raises(BadInput, match="mode 'FAST'"):
        OPS.get("gelu")(torch.zeros(1), "FAST")


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_activations_with_constants(run_op, ios, kind):
    pairs = [(a, b) for a in NUMBERS for b in NUMBERS]

    def build(mb, x):
        return [
            *(getattr(mb, name)(x=x, alpha=kind(a)) for name in ONE for a in NUMBERS),
            *(getattr(mb, name)(x=x, alpha=kind(a), beta=kind(b)) for name in TWO for a, b in pairs),
        ]

    x = wide(GRID)
    expected = [
        *(getattr(oracles, name)(x, a) for name in ONE for a in NUMBERS),
        *(getattr(oracles, name)(x, a, b) for name in TWO for a, b in pairs),
    ]
    # two roundings, of alpha x (at most 60) and of the sum
    check(run_op, build, {"x": GRID}, expected, ios=ios, rtol=4 * EPS, atol=EPS * 60)


def test_thresholds_hold_at_equality(run_op):
    x = np.array([0.5, np.nextafter(np.float32(0.5), np.float32(0)), -1.0], np.float32)
    check(run_op, lambda mb, x: mb.thresholded_relu(x=x, alpha=np.float32(0.5)), {"x": x}, [[0.5, 0.0, 0.0]])


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_prelu(run_op, ios, kind):
    different, same = np.array(NUMBERS[:4], kind), np.full(4, kind(0.25))
    inputs = {"a": normal(2, 4, 3), "b": normal(2, 4, 3, 2), "c": normal(1, 4, 2, 2, 3)}
    slopes = {"a": same, "b": different, "c": same}  # coremltools has different ones at rank 4 only

    def build(mb, **values):
        return [mb.prelu(x=x, alpha=slopes[name]) for name, x in values.items()]

    expected = [oracles.prelu(wide(x), wide(slopes[name])) for name, x in inputs.items()]
    check(run_op, build, inputs, expected, ios=ios, rtol=EPS)


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_softplus_parametric(run_op, ios, kind):
    alpha, beta = np.array([-1.5, 0.5, 1.0, 2.0], kind), np.array([0.25, -3.0, 1.0, 30.0], kind)
    inputs = {"a": normal(2, 4, 3), "b": normal(2, 4, 3, 2), "c": normal(1, 4, 2, 2, 3)}

    def build(mb, **values):
        return [mb.softplus_parametric(x=x, alpha=alpha, beta=beta) for x in values.values()]

    expected = [oracles.softplus_parametric(wide(x), wide(alpha), wide(beta)) for x in inputs.values()]
    # rounding beta x, at most 100 in size, changes its exponential by as many EPS
    check(run_op, build, inputs, expected, ios=ios, rtol=100 * EPS, atol=1e-30)


@pytest.mark.parametrize("ios", ALL_IOS)
def test_softmax(run_op, ios):
    x, large = normal(2, 3, 4) * 3, np.array([[1e4, 1e4 - 1, -1e4]], np.float32)
    axes = (-3, -2, -1, 0, 1, 2)

    def build(mb, x, large):
        return [mb.softmax(x=x), *(mb.softmax(x=x, axis=a) for a in axes), mb.softmax(x=large)]

    expected = [*(oracles.softmax(wide(x), a) for a in (-1, *axes)), oracles.softmax(wide(large), -1)]
    # x - max is rounded, at most 20 in size where the result matters, then 4 terms and a quotient
    check(run_op, build, {"x": x, "large": large}, expected, ios=ios, rtol=30 * EPS)
