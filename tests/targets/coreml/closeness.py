"""Holds what an interpreted operation gives against what its definition says, with the tolerance as an argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

EPS = float(np.finfo(np.float32).eps)  # the gap between 1 and the next float32
ALL_IOS = (15, 16, 17, 18)


def check(
    run_op: Callable[..., list[np.ndarray]],
    build: Callable[..., Any],
    inputs: dict[str, np.ndarray],
    expected: Sequence[np.ndarray],
    *,
    ios: int = 15,
    rtol: float = 0.0,
    atol: float | Sequence[float] = 0.0,
    arithmetic: str = "fp32",
) -> None:
    """Run one package and compare every output: shape, kind of number, values.

    Exact by default; atol may be one number for each output.
    """
    found = run_op(build, inputs, ios=ios, arithmetic=arithmetic)
    assert len(found) == len(expected)
    allowed = [atol] * len(found) if isinstance(atol, float) else atol
    for i, (got, want, within) in enumerate(zip(found, expected, allowed, strict=True)):
        want = np.asarray(want)
        assert got.shape == want.shape, f"output {i} has shape {got.shape} instead of {want.shape}"
        assert got.dtype.kind == want.dtype.kind, f"output {i} is {got.dtype} instead of {want.dtype}"
        np.testing.assert_allclose(got, want, rtol=rtol, atol=within, err_msg=f"output {i} of {len(found)}")


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers in float32, the same each time."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def wide(x: np.ndarray) -> np.ndarray:
    """The same numbers in float64, in which the oracles compute."""
    return np.asarray(x, np.float64)
