"""Pooling over one, two or three spatial axes: average, maximum, Euclidean norm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from . import Ints, handles
from .padding import Pads, explicit, window_pads

_AVERAGE = {3: F.avg_pool1d, 4: F.avg_pool2d, 5: F.avg_pool3d}
_MAXIMUM = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}


@handles("avg_pool")
def avg_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    exclude_padding_from_average: bool = False,
    ceil_mode: bool = False,
) -> Tensor:
    """The mean of each window; padded zeros count unless excluded.

    What ceil_mode adds behind the padding never counts, as in PyTorch, to which MIL refers.
    """
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    counts = windows.counts(padding=not exclude_padding_from_average)
    if windows.symmetric:
        half, whole = windows.starts, not exclude_padding_from_average
        return _AVERAGE[x.ndim](x, kernel_sizes, windows.strides, half, ceil_mode, whole)
    if all(count == k for axis, k in zip(counts, kernel_sizes, strict=True) for count in axis):
        return _AVERAGE[x.ndim](explicit(x, windows.reach), kernel_sizes, windows.strides)
    divisor = torch.ones((), device=x.device)
    for axis in counts:
        divisor = divisor.unsqueeze(-1) * torch.tensor(axis, dtype=x.dtype, device=x.device)
    return _sum(x, windows) / divisor


@handles("max_pool")
def max_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The largest element of each window; padding never wins."""
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    windows.counts(padding=False)
    if windows.symmetric:
        return _MAXIMUM[x.ndim](x, kernel_sizes, windows.strides, windows.starts, ceil_mode=ceil_mode)
    return _MAXIMUM[x.ndim](explicit(x, windows.reach, -math.inf), kernel_sizes, windows.strides)


@handles("l2_pool")
def l2_pool(
    x: Tensor,
    kernel_sizes: Ints,
    strides: Ints | None = None,
    pad_type: str = "valid",
    pad: Ints | None = None,
    ceil_mode: bool = False,
) -> Tensor:
    """The square root of the sum of squares of each window; one or two spatial axes."""
    if x.ndim > 4:
        raise BadInput("l2_pool takes one or two spatial axes")
    windows = _windows(x, kernel_sizes, strides, pad_type, pad, ceil_mode)
    windows.counts(padding=True)
    return _sum(x.square(), windows).sqrt()


@dataclass(frozen=True, slots=True)
class _Windows:
    """Where windows lie. reach: padding up to the last window's end; symmetric: torch's own padding does the same."""

    sizes: Ints
    kernel: Ints
    strides: Ints
    pads: Pads
    outputs: Ints

    @property
    def starts(self) -> Ints:
        return tuple(before for before, _ in self.pads)

    @property
    def reach(self) -> Pads:
        ends = [(out - 1) * s + k for out, s, k in zip(self.outputs, self.strides, self.kernel, strict=True)]
        return [(b, max(a, e - n - b)) for (b, a), e, n in zip(self.pads, ends, self.sizes, strict=True)]

    @property
    def symmetric(self) -> bool:
        return all(b == a and b <= k // 2 for (b, a), k in zip(self.pads, self.kernel, strict=True))

    def counts(self, padding: bool) -> list[list[int]]:
        """Elements in each window, axis by axis; BadInput for a window that has none."""
        found = []
        for n, k, s, (before, after), out in zip(
            self.sizes, self.kernel, self.strides, self.pads, self.outputs, strict=True
        ):
            low, high = (-before, n + after) if padding else (0, n)
            starts = range(-before, -before + out * s, s)
            found.append([min(start + k, high) - max(start, low) for start in starts])
        if min(min(axis) for axis in found) < 1:
            raise BadInput("one of its windows lies outside what it pools, where Core ML defines no result")
        return found


def _windows(
    x: Tensor, kernel_sizes: Ints, strides: Ints | None, pad_type: str, pad: Ints | None, ceil_mode: bool
) -> _Windows:
    sizes, axes = tuple(x.shape[2:]), x.ndim - 2
    strides = strides or (1,) * axes
    if not 1 <= axes <= 3 or len(kernel_sizes) != axes or len(strides) != axes or min(*kernel_sizes, *strides) < 1:
        raise BadInput(f"its windows {list(kernel_sizes)} and strides {list(strides)} do not fit {axes} spatial axes")
    pads = window_pads(pad_type, pad, sizes, kernel_sizes, strides)
    if ceil_mode and (axes > 2 or pad_type.lower().startswith("same") or any(b != a for b, a in pads)):
        raise BadInput("ceil_mode is for one or two spatial axes with symmetric padding of type valid or custom")
    outputs = []
    for n, k, s, (before, after) in zip(sizes, kernel_sizes, strides, pads, strict=True):
        room = n + before + after - k
        if room < 0:
            raise BadInput(f"its window of {k} is larger than {n} elements with their padding")
        out = (room + s - 1 if ceil_mode else room) // s + 1
        # a window that starts in the padding behind is dropped, but only where there is padding
        outputs.append(out - 1 if ceil_mode and before and (out - 1) * s >= n + before else out)
    return _Windows(sizes, kernel_sizes, strides, pads, tuple(outputs))


def _sum(x: Tensor, windows: _Windows) -> Tensor:
    """The sum of each window, padding as zeros."""
    x = explicit(x, windows.reach)
    if x.ndim == 3:  # torch sums in two and three dimensions
        return F.avg_pool2d(x.unsqueeze(2), (1, *windows.kernel), (1, *windows.strides), divisor_override=1).squeeze(2)
    return (F.avg_pool2d if x.ndim == 4 else F.avg_pool3d)(x, windows.kernel, windows.strides, divisor_override=1)
