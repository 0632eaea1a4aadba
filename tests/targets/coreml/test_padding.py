"""Padding against numpy's, whose modes the documentation names."""

from __future__ import annotations

import numpy as np
import pytest

from pocketvit.errors import BadInput

from .closeness import ALL_IOS, check, normal

COVERS = {"pad": "test_pad"}

NUMPY = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}
CASES = [  # shape, amounts for its last axes
    ((5,), [2, 1]),
    ((2, 3), [1, 0, 2, 2]),
    ((2, 3), [0, 0]),
    ((1, 2, 3, 4), [1, 2]),
    ((1, 2, 3, 4), [2, 1, 0, 3]),
    ((1, 2, 3, 4), [0, 0, 1, 1, 2, 2, 3, 3]),
    ((2, 2, 2, 3, 2), [1, 0, 0, 1, 1, 1, 0, 2, 1, 0]),
]


@pytest.mark.parametrize("ios", ALL_IOS)
@pytest.mark.parametrize("mode", NUMPY)
def test_pad(run_op, mode, ios):
    cases = CASES if ios == 15 else CASES[ios - 16 :: 3]
    inputs = {f"x{i}": normal(*shape, seed=i) for i, (shape, _) in enumerate(cases)}
    value = {"constant_val": np.float32(-1.5)} if mode == "constant" else {}

    def build(mb, **given):
        found = [mb.pad(x=x, pad=pad, mode=mode, **value) for x, (_, pad) in zip(given.values(), cases, strict=True)]
        return [*found, mb.pad(x=given["x0"], pad=[1, 1])]

    expected = []
    for x, (_, pad) in zip(inputs.values(), cases, strict=True):
        pairs = np.reshape([0] * (2 * x.ndim - len(pad)) + pad, (-1, 2))
        given = {"constant_values": -1.5} if mode == "constant" else {}
        expected.append(np.pad(x, pairs, NUMPY[mode], **given))
    first = inputs["x0"]
    expected.append(np.pad(first, [(0, 0)] * (first.ndim - 1) + [(1, 1)]))
    check(run_op, build, inputs, expected, ios=ios)


def test_pad_by_computed_amounts(run_op):
    x, y = normal(2, 3), normal(1, 2, 1, 3)

    def build(mb, x, y):
        return mb.pad(x=x, pad=mb.shape(x=y))

    check(run_op, build, {"x": x, "y": y}, [np.pad(x, [(1, 2), (1, 3)])])


@pytest.mark.parametrize(("mode", "pad"), [("reflect", [3, 0]), ("reflect", [0, 3]), ("replicate", [0, 4])])
def test_more_than_documented_is_refused(run_op, mode, pad):
    with pytest.raises(BadInput, match=f"it pads axis 1 by {max(pad)}; {mode} can add {max(pad) - 1} to 3"):
        run_op(lambda mb, x: mb.pad(x=x, pad=pad, mode=mode), {"x": normal(2, 3)})
