"""Convolutions and pools from their definitions, window by window in float64 with numpy alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

Pads = list[tuple[int, int]]


def padding(
    kind: str, pad: Sequence[int] | None, sizes: Sequence[int], windows: Sequence[int], strides: Sequence[int]
) -> Pads:
    """Amounts before and after each axis: what it takes for ceil(size / stride) windows, or as given."""
    if kind == "valid":
        return [(0, 0)] * len(sizes)
    if kind == "custom":
        flat = list(pad or [0] * 2 * len(sizes))
        return [(flat[2 * i], flat[2 * i + 1]) for i in range(len(sizes))]
    pads = []
    for size, window, stride in zip(sizes, windows, strides, strict=True):
        end = (math.ceil(size / stride) - 1) * stride + window  # of the last window, counted from the first's start
        total = max(0, end - size)
        small, large = math.floor(total / 2), math.ceil(total / 2)
        pads.append((small, large) if kind == "same" else (large, small))
    return pads


def windows_of(x: np.ndarray, starts: Sequence[range], extents: Sequence[int], steps: Sequence[int]):
    """Each window's place in the result, and its elements (n, c, *kernel)."""
    for place in itertools.product(*(range(len(r)) for r in starts)):
        corner = [r[i] for r, i in zip(starts, place, strict=True)]
        cut = tuple(slice(c, c + e, d) for c, e, d in zip(corner, extents, steps, strict=True))
        yield place, x[(slice(None), slice(None), *cut)]


def conv(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    groups: int = 1,
) -> np.ndarray:
    """Sum of products of each window, group by group."""
    x, weight = np.asarray(x, np.float64), np.asarray(weight, np.float64)
    axes = x.ndim - 2
    strides, dilations = list(strides or [1] * axes), list(dilations or [1] * axes)
    extents = [(k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilations, strict=True)]
    padded = np.pad(x, [(0, 0), (0, 0), *padding(pad_type, pad, x.shape[2:], extents, strides)])
    counts = [(n - e) // s + 1 for n, e, s in zip(padded.shape[2:], extents, strides, strict=True)]
    starts = [range(0, count * s, s) for count, s in zip(counts, strides, strict=True)]
    n, c_out, c_in = x.shape[0], weight.shape[0], weight.shape[1]
    found = np.zeros((n, c_out, *counts))
    kernels = weight.reshape(groups, c_out // groups, -1)
    for place, window in windows_of(padded, starts, extents, dilations):
        grouped = window.reshape(n, groups, c_in * math.prod(weight.shape[2:])).transpose(1, 0, 2)
        products = grouped @ kernels.transpose(0, 2, 1)  # groups, n, c_out / groups
        found[(slice(None), slice(None), *place)] = products.transpose(1, 0, 2).reshape(n, c_out)
    return found if bias is None else found + np.asarray(bias, np.float64).reshape(-1, *[1] * axes)


def conv_transpose(
    x: np.ndarray,
    weight: np.ndarray,
    size: Sequence[int],
    bias: np.ndarray | None = None,
    groups: int = 1,
    **parameters: object,
) -> np.ndarray:
    """The transpose of the matrix that `conv` is, for an image of `size`, times x: nothing else is assumed."""
    shape = (weight.shape[1] * groups, *size)
    units = np.eye(math.prod(shape)).reshape(-1, *shape)
    matrix = conv(units, weight, groups=groups, **parameters).reshape(len(units), -1)  # type: ignore[arg-type]
    found = (np.asarray(x, np.float64).reshape(len(x), -1) @ matrix.T).reshape(len(x), *shape)
    return found if bias is None else found + np.asarray(bias, np.float64).reshape(-1, *[1] * len(size))


def pool(
    x: np.ndarray,
    reduce: Callable[[np.ndarray, int, int], np.ndarray],
    kernel_sizes: Sequence[int],
    strides: Sequence[int] | None = None,
    pad_type: str = "valid",
    pad: Sequence[int] | None = None,
    ceil_mode: bool = False,
) -> np.ndarray:
    """reduce(the real elements (n, c, m) of a window, how many it holds with padding, its full size) -> (n, c)."""
    x = np.asarray(x, np.float64)
    strides = list(strides or [1] * len(kernel_sizes))
    amounts = padding(pad_type, pad, x.shape[2:], kernel_sizes, strides)
    counts = []
    for n, k, s, (before, after) in zip(x.shape[2:], kernel_sizes, strides, amounts, strict=True):
        steps = (n + before + after - k) / s
        count = (math.ceil(steps) if ceil_mode else math.floor(steps)) + 1
        dropped = ceil_mode and before + after > 0 and (count - 1) * s >= n + before
        counts.append(count - 1 if dropped else count)
    found = np.zeros((*x.shape[:2], *counts))
    for place in np.ndindex(*counts):
        cut, padded = [], 1
        for i, n, k, s, (before, after) in zip(place, x.shape[2:], kernel_sizes, strides, amounts, strict=True):
            inside = [j for j in range(i * s - before, i * s - before + k) if -before <= j < n + after]
            padded *= len(inside)
            cut.append([j for j in inside if 0 <= j < n])
        window = x[(slice(None), slice(None), *np.ix_(*cut))].reshape(*x.shape[:2], -1)
        found[(slice(None), slice(None), *place)] = reduce(window, padded, math.prod(kernel_sizes))
    return found
