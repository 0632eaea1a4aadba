"""Gathers and scatters: each against loops written from the definition."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from pocketvit.errors import BadInput

COVERS = {
    "gather": "test_gather",
    "gather_along_axis": "test_gather_along_axis",
    "gather_nd": "test_gather_nd",
    "scatter": "test_scatter",
    "scatter_along_axis": "test_scatter_along_axis",
    "scatter_nd": "test_scatter_nd",
}
EPSILON = np.finfo(np.float32).eps
MODES = ("update", "add", "sub", "mul", "div", "max", "min")
MEETING = 3  # updates that meet in one place, at most


def numbers(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def whole(*values: object) -> np.ndarray:
    return np.array(values, np.int32)


def gathered(x: np.ndarray, indices: np.ndarray, axis: int, batch_dims: int) -> np.ndarray:
    """output[batch, p.., i.., q..] = x[batch, p.., indices[batch, i..], q..]."""
    axis %= x.ndim
    result = np.empty(x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1 :], x.dtype)
    for place in np.ndindex(result.shape):
        batch, before = place[:batch_dims], place[batch_dims:axis]
        inner = place[axis : axis + indices.ndim - batch_dims]
        after = place[axis + indices.ndim - batch_dims :]
        result[place] = x[(*batch, *before, indices[(*batch, *inner)], *after)]
    return result


def gathered_nd(x: np.ndarray, indices: np.ndarray, batch_dims: int) -> np.ndarray:
    depth = indices.shape[-1]
    result = np.empty(indices.shape[:-1] + x.shape[batch_dims + depth :], x.dtype)
    for place in np.ndindex(indices.shape[:-1]):
        result[place] = x[(*place[:batch_dims], *indices[place])]
    return result


def combine(result: np.ndarray, place: tuple, update: np.ndarray, mode: str) -> None:
    step = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum,
            "min": np.minimum, "update": lambda old, new: new}[mode]  # fmt: skip
    result[place] = step(result[place], update)


@pytest.mark.parametrize("ios", [15, 16, 17, 18])
def test_gather(run_op, ios):
    x = numbers(2, 3, 4)
    last = -1 if ios < 17 else 2  # a negative index means something up to iOS 16
    cases = [
        (whole(1, 0, 1), 0),
        (whole(last, 0), 1),
        (whole([0, 2], [last, 1], [1, 1]), -2),
        (np.array(3 if ios >= 17 else -4, np.int32), 2),
        (np.array(1, np.int32), -3),
    ]
    found = run_op(lambda mb, x: [mb.gather(x=x, indices=i, axis=a) for i, a in cases], {"x": x}, ios=ios)
    for got, (indices, axis) in zip(found, cases, strict=True):
        assert_array_equal(got, gathered(x, indices, axis, 0), f"{indices.tolist()} along {axis}")


@pytest.mark.parametrize("ios", [16, 17, 18])
def test_gather_with_shared_axes(run_op, ios):
    x = numbers(2, 3, 4, 5)
    rows = np.random.default_rng(0)
    cases = [
        (rows.integers(0, 3, (2, 2)), 1, 1),
        (rows.integers(0, 5, (2, 4, 2)), 3, 1),
        (rows.integers(0, 4, (2, 3, 2)), 2, 2),
        (rows.integers(0, 5, (2, 3)), -1, 2),
        (rows.integers(0, 4, (2,)), 2, 1),
    ]
    found = run_op(
        lambda mb, x: [mb.gather(x=x, indices=np.int32(i), axis=a, batch_dims=b) for i, a, b in cases],
        {"x": x},
        ios=ios,
    )
    for got, (indices, axis, batch_dims) in zip(found, cases, strict=True):
        assert_array_equal(got, gathered(x, indices, axis, batch_dims), f"axis {axis}, {batch_dims} shared")


@pytest.mark.parametrize("ios", [16, 17])
def test_gather_by_narrow_indices(run_op, ios):
    x = numbers(200, 2)
    kinds = [np.int16, np.uint16] + ([np.int8, np.uint8] if ios == 17 else [])
    places = {kind: np.array([5, 100, 0] if kind is np.int8 else [5, 199, 0], kind) for kind in kinds}
    found = run_op(
        lambda mb, x: [mb.gather(x=x, indices=places[kind], axis=0) for kind in kinds],
        {"x": x},
        ios=ios,
    )
    for got, kind in zip(found, kinds, strict=True):
        assert_array_equal(got, x[places[kind].astype(int)], kind.__name__)


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize(("ios", "bad"), [(15, 3), (15, -4), (16, 3), (17, -1), (17, 3), (18, -1)])
def test_indices_outside_are_refused(run_op, ios, bad, validate):
    # undefined or an error, says the definition; never a value that another machine would not give
    more = {"validate_indices": validate} if ios >= 17 else {}
    x, one, i = numbers(3, 2), numbers(1, 2), whole([bad, bad])
    builds = {
        "gather": lambda mb, x, i, u: mb.gather(x=x, indices=i, axis=0, **more),
        "gather_nd": lambda mb, x, i, u: mb.gather_nd(x=x, indices=mb.transpose(x=i, perm=(1, 0)), **more),
        "gather_along_axis": lambda mb, x, i, u: mb.gather_along_axis(x=x, indices=i, axis=0, **more),
        "scatter_along_axis": lambda mb, x, i, u: mb.scatter_along_axis(
            data=x, indices=i, updates=u, axis=0, mode="add", **more
        ),
        "scatter": lambda mb, x, i, u: mb.scatter(
            data=x, indices=mb.squeeze(x=i), updates=mb.concat(values=(u, u), axis=0), axis=0, mode="add", **more
        ),
        "scatter_nd": lambda mb, x, i, u: mb.scatter_nd(
            data=x, indices=mb.transpose(x=i, perm=(1, 0)), updates=mb.concat(values=(u, u), axis=0), **more
        ),
    }
    for kind, build in builds.items():
        with pytest.raises(BadInput, match=f"run from {bad} to {bad}; for iOS {ios} they may run from"):
            run_op(build, {"x": x, "i": i, "u": one}, ios=ios)
            pytest.fail(f"{kind} took the index {bad}")


@pytest.mark.parametrize("ios", [15, 16, 17, 18])
def test_gather_along_axis(run_op, ios):
    x = numbers(3, 4, 2)
    rows = np.random.default_rng(1)
    cases = [(rows.integers(-4 if ios < 17 else 0, 4, (3, 6, 2)), 1), (rows.integers(0, 3, (1, 4, 2)), -3)]
    cases.append((rows.integers(0, 2, (3, 4, 2)), 2))
    found = run_op(
        lambda mb, x: [mb.gather_along_axis(x=x, indices=np.int32(i), axis=a) for i, a in cases], {"x": x}, ios=ios
    )
    for got, (indices, axis) in zip(found, cases, strict=True):
        assert_array_equal(got, np.take_along_axis(x, indices, axis), f"along {axis}")


@pytest.mark.parametrize("ios", [15, 16, 17, 18])
def test_gather_nd(run_op, ios):
    x = numbers(2, 3, 4)
    low = (-2, -3, -4) if ios < 17 else (0, 0, 0)
    rows = np.random.default_rng(2)
    cases = [(rows.integers(low[:k], x.shape[:k], (*shape, k)), 0) for k in (1, 2, 3) for shape in ((5,), (2, 2))]
    if ios >= 16:
        cases += [(rows.integers(0, 3, (2, 5, 1)), 1), (rows.integers(0, (3, 4), (2, 2, 3, 2)), 1)]
        cases += [(rows.integers(0, 4, (2, 3, 2, 1)), 2)]
    more = [{"batch_dims": batch} if batch else {} for _, batch in cases]
    found = run_op(
        lambda mb, x: [mb.gather_nd(x=x, indices=np.int32(i), **m) for (i, _), m in zip(cases, more, strict=True)],
        {"x": x},
        ios=ios,
    )
    for got, (indices, batch_dims) in zip(found, cases, strict=True):
        assert_array_equal(got, gathered_nd(x, indices, batch_dims), f"{indices.shape}, {batch_dims} shared")


def close(got: np.ndarray, expected: np.ndarray, mode: str) -> None:
    """What meets in one place is summed or multiplied in any order: one rounding for each."""
    if mode in ("update", "max", "min"):
        assert_array_equal(got, expected, mode)
    else:
        assert_allclose(got, expected, rtol=2 * MEETING * EPSILON, atol=2 * MEETING * EPSILON * 8, err_msg=mode)


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_scatter(run_op, ios):
    rows = np.random.default_rng(3)
    data = rows.normal(size=(3, 4, 2)).astype(np.float32)
    indices = whole(2, 0 if ios >= 17 else -4, 2, 2)
    updates = rows.uniform(0.5, 2, size=(3, 4, 2)).astype(np.float32)
    single = rows.normal(size=(1, 4, 2)).astype(np.float32)

    def build(mb, data):
        return [
            *(mb.scatter(data=data, indices=indices, updates=updates, axis=a, mode=m) for m in MODES for a in (1, -2)),
            mb.scatter(data=data, indices=[1], updates=single),
        ]

    found = run_op(build, {"data": data}, ios=ios)
    for k, mode in enumerate(MODES):
        expected = data.copy()
        for i, place in enumerate(indices):
            combine(expected, (slice(None), place), updates[:, i], mode)
        close(found[2 * k], expected, mode)
        close(found[2 * k + 1], expected, mode)
    expected = data.copy()
    expected[1] += single[0]  # along axis 0, added, when nothing is said
    assert_array_equal(found[-1], expected)


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_scatter_along_axis(run_op, ios):
    rows = np.random.default_rng(4)
    data = rows.normal(size=(2, 5, 3)).astype(np.float32)
    indices = rows.integers(0 if ios >= 17 else -5, 5, (2, MEETING, 3)).astype(np.int32)
    updates = rows.uniform(0.5, 2, size=indices.shape).astype(np.float32)
    found = run_op(
        lambda mb, data: [
            mb.scatter_along_axis(data=data, indices=indices, updates=updates, axis=-2, mode=mode) for mode in MODES
        ],
        {"data": data},
        ios=ios,
    )
    for got, mode in zip(found, MODES, strict=True):
        expected = data.copy()
        for place in np.ndindex(indices.shape):
            combine(expected, (place[0], indices[place], place[2]), updates[place], mode)
        close(got, expected, mode)


@pytest.mark.parametrize("ios", [15, 17, 18])
def test_scatter_nd(run_op, ios):
    rows = np.random.default_rng(5)
    data = rows.normal(size=(3, 2, 4)).astype(np.float32)
    low = 0 if ios >= 17 else -2
    cases = []
    for depth, shape in ((1, (3,)), (2, (3,)), (3, (1, 3))):
        indices = rows.integers(low, (3, 2, 4)[:depth], (*shape, depth)).astype(np.int32)
        indices.reshape(-1, depth)[0] = indices.reshape(-1, depth)[1]  # two meet
        cases.append((indices, rows.uniform(0.5, 2, size=(*shape, *data.shape[depth:])).astype(np.float32)))
    found = run_op(
        lambda mb, data: [
            mb.scatter_nd(data=data, indices=i, updates=u, mode=mode) for mode in MODES for i, u in cases
        ],
        {"data": data},
        ios=ios,
    )
    for got, (mode, (indices, updates)) in zip(found, [(m, c) for m in MODES for c in cases], strict=True):
        expected = data.copy()
        for place in np.ndindex(indices.shape[:-1]):
            combine(expected, tuple(indices[place]), updates[place], mode)
        close(got, expected, mode)


def test_scatter_of_integers(run_op):
    data = np.arange(12, dtype=np.int32).reshape(4, 3)
    updates = whole([5, -7, 3], [2, 2, -2])
    modes = [mode for mode in MODES if mode != "div"]
    found = run_op(
        lambda mb, data: [mb.scatter(data=data, indices=[1, 1], updates=updates, axis=0, mode=mode) for mode in modes],
        {"data": data},
    )
    for got, mode in zip(found, modes, strict=True):
        expected = data.copy()
        for update in updates:
            combine(expected, (1,), update, mode)
        assert_array_equal(got, expected, mode)
        assert got.dtype == np.int32
    with pytest.raises(BadInput, match="divides integers, and how it rounds"):
        run_op(
            lambda mb, data: mb.scatter(data=data, indices=[1], updates=updates[:1], axis=0, mode="div"),
            {"data": data},
        )


def test_scatter_counter_as_index(run_op):
    # as coremltools' recurrent layers write their states: a single place, counted by the program
    def build(mb, data, i):
        return mb.scatter(data=data, indices=i, updates=numbers(1, 3), axis=0, mode="update")

    data = numbers(4, 3) * -1
    expected = data.copy()
    expected[2] = numbers(1, 3)
    assert_array_equal(run_op(build, {"data": data, "i": whole(2)})[0], expected)
