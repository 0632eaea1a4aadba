"""Linear layers, matrix products and attention against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pocketvit.errors import BadInput
from pocketvit.targets.coreml.ops import OPS
from pocketvit.targets.coreml.values import Dtype, TensorType

from .closeness import ALL_IOS, EPS, check, normal, wide

COVERS = {
    "linear": "test_linear",
    "matmul": "test_matmul",
    "einsum": "test_einsum",
    "scaled_dot_product_attention": "test_attention",
}
WHOLE = np.array([[1, -2, 3, 4], [5, 6, -7, 8]], np.int32)
# from iOS 17 constants may have another type than x
TYPES = [
    (ios, kind) for ios in ALL_IOS for kind in ((np.float32,) if ios < 17 else (np.float32, np.float16, np.int32))
]


def product_bound(x, y):
    """n roundings of a sum of n products, each of at most the largest sum of their sizes."""
    return x.shape[-1] * EPS * float(np.abs(wide(x)).max() * np.abs(wide(y)).max()) * x.shape[-1]


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_linear(run_op, ios, kind):
    inputs = {"a": normal(6), "b": normal(3, 6), "c": normal(2, 3, 6), "d": normal(2, 2, 3, 6)}
    weight, bias = (normal(4, 6, seed=1) * 3).astype(kind), (normal(4, seed=2) * 3).astype(kind)

    def build(mb, **values):
        return [
            *(mb.linear(x=x, weight=weight) for x in values.values()),
            *(mb.linear(x=x, weight=weight, bias=bias) for x in values.values()),
        ]

    products = [wide(x) @ wide(weight).T for x in inputs.values()]
    expected = [*products, *(product + wide(bias) for product in products)]
    check(run_op, build, inputs, expected, ios=ios, rtol=EPS, atol=product_bound(inputs["d"], weight))


@pytest.mark.parametrize("ios", ALL_IOS)
def test_linear_of_integers(run_op, ios):
    def build(mb, x):
        return [
            mb.linear(x=x, weight=WHOLE[:, ::-1].copy(), bias=np.array([10, -10], np.int32)),
            mb.matmul(x=x, y=WHOLE, transpose_y=True),
        ]

    expected = [WHOLE @ WHOLE[:, ::-1].T + np.array([10, -10], np.int32), WHOLE @ WHOLE.T]
    check(run_op, build, {"x": WHOLE}, expected, ios=ios)


SIDES = [  # of x and y before any transposing
    ((4, 3), (3, 2)),
    ((2, 4, 3), (2, 3, 5)),
    ((10, 4, 3), (5, 10, 3, 2)),
    ((2, 1, 4, 3), (3, 3, 2)),
    ((1, 3), (2, 2, 3, 1)),
]


@pytest.mark.parametrize("ios", ALL_IOS)
@pytest.mark.parametrize("sides", SIDES, ids=str)
def test_matmul(run_op, sides, ios):
    x, y = normal(*sides[0]), normal(*sides[1], seed=1)
    given = {
        "x": x,
        "y": y,
        "xt": np.ascontiguousarray(x.swapaxes(-1, -2)),
        "yt": np.ascontiguousarray(y.swapaxes(-1, -2)),
    }

    def build(mb, x, y, xt, yt):
        return [
            mb.matmul(x=x, y=y),
            mb.matmul(x=xt, y=y, transpose_x=True),
            mb.matmul(x=x, y=yt, transpose_y=True),
            mb.matmul(x=xt, y=yt, transpose_x=True, transpose_y=True),
        ]

    check(run_op, build, given, [wide(x) @ wide(y)] * 4, ios=ios, rtol=EPS, atol=product_bound(x, y))


@pytest.mark.parametrize(("ios", "kind"), TYPES)
def test_matmul_with_constants(run_op, ios, kind):
    x, constant = normal(2, 4, 4), (normal(4, 4, seed=1) * 3).astype(kind)
    vector = normal(4, seed=2)

    def build(mb, x, vector):
        return [
            mb.matmul(x=x, y=constant),
            mb.matmul(x=constant, y=x, transpose_x=True),
            mb.matmul(x=vector, y=constant, transpose_y=True),
        ]

    c = wide(constant)
    expected = [wide(x) @ c, c.T @ wide(x), wide(vector) @ c.T]
    check(run_op, build, {"x": x, "vector": vector}, expected, ios=ios, rtol=EPS, atol=product_bound(x, constant))


def test_matmul_of_vectors_follows_the_text_where_coremltools_declares_another_shape(run_op):
    y = normal(2, 3, 4)
    found = OPS.get("matmul")(torch.ones(3), torch.from_numpy(y), outputs=(TensorType(Dtype.FP32, (2, 4)),))
    np.testing.assert_allclose(found.numpy(), wide(y).sum(axis=1), rtol=0, atol=9 * EPS)
    dot = OPS.get("matmul")(torch.ones(3), torch.arange(3.0), (TensorType(Dtype.FP32, ()),), True, True)
    assert dot.shape == ()
    assert float(dot) == 3.0
    with pytest.raises(BadInput, match=r"'matmul' .*declares fp32\(1, 4\) .* and makes .*\(2, 4\)"):
        run_op(lambda mb, y: mb.matmul(x=np.ones(3, np.float32), y=y), {"y": y})


def test_integers_times_fractions_to_integers_are_refused():
    whole, part = torch.ones(2, 2, dtype=torch.int32), torch.ones(2, 2)
    with pytest.raises(BadInput, match="MIL does not say how to round"):
        OPS.get("linear")(whole, part)
    with pytest.raises(BadInput, match="MIL does not say how to round"):
        OPS.get("matmul")(whole, part, outputs=(TensorType(Dtype.INT32, (2, 2)),))


EINSUMS = [
    ((2, 3, 4, 5), (2, 5, 4, 6), "nchw,nwhu->nchu"),
    ((1, 3, 4, 5), (2, 5, 4, 6), "abcd,adce->abce"),
    ((2, 3, 1, 5), (1, 5, 4, 6), "nchw,nwhu->nchu"),
    ((3, 4, 5), (5, 4, 6), "chw,whu->chu"),
    ((3, 4, 5), (5, 1, 6), "zyx,xyk->zyk"),
]


@pytest.mark.parametrize("ios", ALL_IOS)
def test_einsum(run_op, ios):
    for sides_x, sides_y, equation in EINSUMS:
        x, y = normal(*sides_x), normal(*sides_y, seed=1)

        def build(mb, x, y, equation=equation):
            return mb.einsum(values=(x, y), equation=equation)

        # every product written out, then summed over the axis that x ends with and y begins with
        terms = wide(x)[..., :, :, :, None] * np.moveaxis(wide(y), -3, -2)[..., None, :, :, :]
        check(run_op, build, {"x": x, "y": y}, [terms.sum(-2)], ios=ios, rtol=EPS, atol=product_bound(x, y))


def test_other_einsums_are_refused():
    x = torch.ones(2, 2, 2, 2)
    for equation in ("nchw,nwhu->nchw", "nchw,nchw->nchw", "ij,jk->ik", "nchw,nwhu->", "..."):
        with pytest.raises(BadInput, match="not of the form"):
            OPS.get("einsum")((x, x), equation)
    with pytest.raises(BadInput, match="for other ranks than"):
        OPS.get("einsum")((x, x), "chw,whu->chu")


def attention(query, key, value, mask=None):
    scores = query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1])
    if mask is not None:
        scores = scores + (np.where(mask, 0, -np.inf) if mask.dtype == bool else wide(mask))
    with np.errstate(invalid="ignore"):
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ value


BATCHES = ((2,), (1, 3), (2, 3), (2, 1, 2))
LATE = np.tril(np.ones((4, 5), bool), 1)
SHUT = np.array([[False] * 5, [True] * 5, [False, True, False, True, True], [False] * 5])


@pytest.mark.parametrize("batch", BATCHES, ids=str)
def test_attention(run_op, batch):
    q, k, v = normal(*batch, 4, 6), normal(*batch, 5, 6, seed=1), normal(*batch, 5, 7, seed=2)
    given = normal(4, 5, seed=3)
    masks = [
        LATE, LATE[None, :, :], SHUT, np.array([[True, False, True, True, False]]), np.zeros(5, np.float32),
        np.where(SHUT, np.float32(0.5), np.float32(-np.inf)), normal(*(1 for _ in batch), 4, 5, seed=4),
        normal(*batch, 1, 5, seed=5),
    ]  # fmt: skip

    def build(mb, q, k, v, given):
        def attend(**mask):
            return mb.scaled_dot_product_attention(query=q, key=k, value=v, **mask)

        lit = mb.greater(x=given, y=np.float32(0))
        return [attend(), attend(attn_mask=given), attend(attn_mask=lit), *(attend(attn_mask=mask) for mask in masks)]

    def oracle(mask=None):
        return attention(wide(q), wide(k), wide(v), mask)

    expected = [oracle(), oracle(given), oracle(given > 0), *(oracle(mask) for mask in masks)]
    assert np.isnan(expected[5]).any(), "a row masked throughout is part of this test"
    # scores are sums of 6 products of up to 9, and an error in them is one in the weights; then 5 terms of up to 3
    check(run_op, build, {"q": q, "k": k, "v": v, "given": given}, expected, ios=18, atol=(6 * 9 + 5) * 3 * EPS)
