"""Normalization layers against their documented formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS

from . import oracles_normalization as oracles
from .closeness import ALL_IOS, EPS, check, normal, wide

COVERS = {
    "batch_norm": "test_batch_norm",
    "instance_norm": "test_instance_norm",
    "layer_norm": "test_layer_norm",
    "l2_norm": "test_l2_norm",
    "local_response_norm": "test_local_response_norm",
}
# from iOS 17 the constants may have another type than x
TYPES = [(ios, kind) for ios in ALL_IOS for kind in ((np.float32,) if ios < 17 else (np.float32, np.float16))]
AFFINE = [(), ("gamma",), ("beta",), ("gamma", "beta")]


def affine(*sides, kind=np.float32):
    return {"gamma": normal(*sides, seed=7).astype(kind), "beta": normal(*sides, seed=8).astype(kind)}


def chosen(numbers, names):
    return {name: numbers[name] for name in names}


def widened(numbers):
    return {name: wide(value) for name, value in numbers.items()}


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_batch_norm(run_op, ios, kind):
    inputs = {"a": normal(2, 4, 3), "b": normal(2, 4, 3, 2), "c": normal(1, 4, 2, 2, 3)}
    mean, variance = normal(4, seed=3).astype(kind), np.array([1e-5, 0.3, 1.0, 40.0], kind)
    numbers, epsilon = affine(4, kind=kind), kind(0.25)

    def build(mb, **values):
        plain = [mb.batch_norm(x=x, mean=mean, variance=variance) for x in values.values()]
        scaled = [
            mb.batch_norm(x=x, mean=mean, variance=variance, epsilon=epsilon, **chosen(numbers, names))
            for x in values.values()
            for names in AFFINE
        ]
        return plain + scaled

    m, v = wide(mean), wide(variance)
    expected = [oracles.batch_norm(wide(x), m, v) for x in inputs.values()]
    expected += [
        oracles.batch_norm(wide(x), m, v, epsilon=0.25, **widened(chosen(numbers, names)))
        for x in inputs.values()
        for names in AFFINE
    ]
    # x and mean, up to 3 each, may be scaled before they are subtracted: by up to 1 / sqrt(2e-5), or by 2 gamma
    scales = [224.0] * 3 + [2.0 * 3] * 12
    check(run_op, build, inputs, expected, ios=ios, rtol=4 * EPS, atol=[4 * EPS * 6 * scale for scale in scales])


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_instance_norm(run_op, ios, kind):
    inputs = {
        "a": normal(2, 4, 5),
        "b": normal(2, 4, 3, 5) + np.float32(2),
        "one": normal(1, 4, 1, 1),
        "small": normal(1, 4, 6) * np.float32(1e-3),
    }
    numbers, epsilon = affine(4, kind=kind), kind(0.25)

    def build(mb, **values):
        return [mb.instance_norm(x=x) for x in values.values()] + [
            mb.instance_norm(x=x, epsilon=epsilon, **chosen(numbers, names))
            for x in values.values()
            for names in AFFINE
        ]

    expected = [oracles.instance_norm(wide(x)) for x in inputs.values()]
    expected += [
        oracles.instance_norm(wide(x), epsilon=0.25, **widened(chosen(numbers, names)))
        for x in inputs.values()
        for names in AFFINE
    ]
    # x, up to 5, may be scaled before the mean is subtracted: at most by 1 / sqrt(1e-5), or by 2 gamma
    scales = [316.0] * 4 + [2.0 * 3] * 16
    check(run_op, build, inputs, expected, ios=ios, rtol=8 * EPS, atol=[4 * EPS * 5 * scale for scale in scales])


LAYER_AXES = ((-1,), (2,), (1,), (0,), (1, 2), (2, 1), (-2, -1), (-1, 0), (0, 1, 2))


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_layer_norm(run_op, ios, kind):
    x = normal(3, 4, 5) + np.float32(1)
    epsilon = kind(0.25)

    def sides(axes):
        return tuple(x.shape[i] for i in sorted(axis % 3 for axis in axes))  # in the order of x, not of axes

    names = [(), ("gamma",), ("gamma", "beta")]  # coremltools fails to build beta alone
    forms = [(axes, chosen(affine(*sides(axes), kind=kind), given)) for axes in LAYER_AXES for given in names]

    def build(mb, x):
        return [
            *(mb.layer_norm(x=x, axes=axes) for axes in LAYER_AXES),
            *(mb.layer_norm(x=x, axes=axes, epsilon=epsilon, **given) for axes, given in forms),
        ]

    expected = [
        *(oracles.layer_norm(wide(x), axes) for axes in LAYER_AXES),
        *(oracles.layer_norm(wide(x), axes, epsilon=0.25, **widened(given)) for axes, given in forms),
    ]
    # x, up to 4, is scaled by at most 10 (a variance of 0.01 over 3 numbers) and by a gamma of at most 3
    check(run_op, build, {"x": x}, expected, ios=ios, rtol=8 * EPS, atol=4 * EPS * 4 * 10 * 3)


def test_layer_norm_of_small_numbers_shows_where_epsilon_stands(run_op):
    x = normal(1, 3, 4, 6) * np.float32(1e-3)  # a variance of 1e-6 beside an epsilon of 1e-5

    def build(mb, x):
        return [mb.layer_norm(x=x, axes=[-1]), mb.layer_norm(x=x, axes=[1])]

    expected = [oracles.layer_norm(wide(x), (-1,)), oracles.layer_norm(wide(x), (1,))]
    beside = [(wide(x) - wide(x).mean(-1, keepdims=True)) / (wide(x).std(-1, keepdims=True) + 1e-5)]
    assert np.abs(beside[0] - expected[0]).max() > 0.5  # epsilon beside the root would show
    check(run_op, build, {"x": x}, expected, rtol=8 * EPS, atol=4 * EPS)


def test_layer_norm_forms_that_coremltools_does_not_build():
    x, beta = normal(3, 4, 5), normal(5, seed=8)
    layer_norm = OPS.get("layer_norm")
    everywhere = layer_norm(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(everywhere, oracles.layer_norm(wide(x), (0, 1, 2)), rtol=0, atol=16 * EPS)
    offset = layer_norm(torch.from_numpy(x), (-1,), beta=torch.from_numpy(beta)).numpy()
    np.testing.assert_allclose(offset, oracles.layer_norm(wide(x), (-1,), beta=wide(beta)), rtol=0, atol=64 * EPS)
    for axes in ((), (1, -2), (3,), (-4,)):
        with pytest.raises(BadInput, match="not different axes of a tensor of rank 3"):
            layer_norm(torch.from_numpy(x), axes)


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_l2_norm(run_op, ios, kind):
    inputs = {"a": normal(2, 3, 4), "b": normal(2, 3, 4, 2) * np.float32(1e-3), "c": normal(2, 2, 3, 2, 2)}

    def build(mb, **values):
        return [
            *(mb.l2_norm(x=x) for x in values.values()),
            *(mb.l2_norm(x=x, epsilon=kind(0.5)) for x in values.values()),
        ]

    expected = [*(oracles.l2_norm(wide(x)) for x in inputs.values())]
    expected += [oracles.l2_norm(wide(x), 0.5) for x in inputs.values()]
    # 24 squares of one sign
    check(run_op, build, inputs, expected, ios=ios, rtol=24 * EPS)
    with pytest.raises(BadInput, match="rank 3 or more, not 2"):
        OPS.get("l2_norm")(torch.zeros(2, 3))


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_local_response_norm(run_op, ios, kind):
    inputs = {"a": normal(2, 5, 3), "b": normal(2, 5, 3, 4), "c": normal(1, 5, 2, 2, 3)}
    given = {"alpha": kind(0.5), "beta": kind(1.25), "k": kind(2.0)}
    sizes = (1, 2, 3, 4, 5, 9)

    def build(mb, **values):
        return [
            mb.local_response_norm(x=x, size=size, **numbers)
            for x in values.values()
            for size in sizes
            for numbers in ({}, given)
        ]

    expected = [
        oracles.local_response_norm(wide(x), size, **{k: float(v) for k, v in numbers.items()})
        for x in inputs.values()
        for size in sizes
        for numbers in ({}, given)
    ]
    # at most 5 squares of one sign, a power and a quotient
    check(run_op, build, inputs, expected, ios=ios, rtol=12 * EPS)
