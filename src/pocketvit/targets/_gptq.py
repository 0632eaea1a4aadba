"""4-bit weights in groups: rounded to the least error of the weights, or, with GPTQ, of what the layer computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_TOP = 15  # levels and zero points run from 0 to this
_SHRUNK = np.linspace(0.6, 1.0, 21)  # of a group's range: what the search for the least squared error tries
_DAMPING = 0.01  # of the mean curvature, added to all: inputs that hardly vary must not decide (section 3.4)


@dataclass(frozen=True, slots=True)
class Grouped:
    """weight (N, K) ~ scale * (level - zero), one scale and zero for each `size` neighbours of a row.

    levels: (N, groups, size), the last group filled up with zero points; scales, zeros: (N, groups).
    """

    levels: NDArray[np.uint8]
    scales: NDArray[np.float32]
    zeros: NDArray[np.uint8]


def four_bits(weight_NK: NDArray[np.float32], size: int, moments_KK: NDArray[np.float64] | None = None) -> Grouped:
    """Round a matrix of N outputs and K inputs; moments: sum of x x^T over the inputs x that the layer was shown.

    With moments by GPTQ (arXiv 2210.17323, equations 2 and 3): inputs are rounded one after the other, and each error
    is made up for by the inputs that are not rounded yet.
    """
    rows, length = weight_NK.shape
    weight = weight_NK.astype(np.float64)
    correction = None if moments_KK is None else _correction(moments_KK)
    filled = -(-length // size) * size
    levels = np.zeros((rows, filled))
    scales, zeros = [], []
    for start in range(0, filled, size):
        columns = range(start, min(start + size, length))
        scale, zero = _least_error(weight[:, start : start + size])
        scales.append(scale)
        zeros.append(zero)
        levels[:, start : start + size] = zero[:, None]  # what fills the group up is zero
        for k in columns:
            levels[:, k] = np.clip(np.round(weight[:, k] / scale) + zero, 0, _TOP)
            if correction is not None:
                error = (weight[:, k] - (levels[:, k] - zero) * scale) / correction[k, k]
                weight[:, k + 1 :] -= np.outer(error, correction[k, k + 1 :])
    return Grouped(
        levels.reshape(rows, -1, size).astype(np.uint8),
        np.stack(scales, axis=1).astype(np.float32),
        np.stack(zeros, axis=1).astype(np.uint8),
    )


def _correction(moments_KK: NDArray[np.float64]) -> NDArray[np.float64]:
    """Upper Cholesky factor of the inverse of the damped moments: its rows say how later inputs make up for one."""
    damped = moments_KK + np.eye(len(moments_KK)) * max(_DAMPING * np.diag(moments_KK).mean(), 1e-12)
    factor: NDArray[np.float64] = np.linalg.cholesky(np.linalg.inv(damped)).T
    return factor


def _least_error(group_NG: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and zero point of each row with the least squared error."""
    low, high = np.minimum(group_NG.min(axis=1), 0), np.maximum(group_NG.max(axis=1), 0)
    least = np.full(len(group_NG), np.inf)
    scales, zeros = np.ones_like(low), np.zeros_like(low)
    for share in _SHRUNK:
        scale = np.maximum((high - low) * share / _TOP, np.finfo(np.float32).tiny).astype(np.float32).astype(float)
        zero = np.clip(np.round(-low * share / scale), 0, _TOP)
        held = (np.clip(np.round(group_NG / scale[:, None]) + zero[:, None], 0, _TOP) - zero[:, None]) * scale[:, None]
        error = ((held - group_NG) ** 2).sum(axis=1)
        better = error < least
        least = np.where(better, error, least)
        scales, zeros = np.where(better, scale, scales), np.where(better, zero, zeros)
    return scales, zeros
