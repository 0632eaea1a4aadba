"""The ranges of activations, from what calibration images show a package of them; found by interpreting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ...types import Calibrator
from .interpreter import Interpreter
from .program import Op

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 255  # steps between the 256 values of 8 bits
LOWEST, HIGHEST = -128, 127
_BINS = 2048
_OUTSIDE = 1e-4  # share of the values that the percentile calibrator cuts off at each end
_SHRUNK = np.linspace(0.05, 1.0, 39)  # of each end of what was seen: what the MSE calibrator tries
_NARROWEST = 2.0**-14  # scale: the smallest number that fp16 holds with all its digits


@dataclass(frozen=True, slots=True)
class Affine:
    """How 8 bits hold a value: scale * (level - zero_point), levels from -128 to 127."""

    scale: float
    zero_point: int

    @property
    def low(self) -> float:
        """The least value that has a level."""
        return self.scale * (LOWEST - self.zero_point)

    @property
    def high(self) -> float:
        """The largest value that has a level."""
        return self.scale * (HIGHEST - self.zero_point)


def affine(low: float, high: float) -> Affine | None:
    """The scale, as fp16 holds it, and the zero point for a range; None where fp16 holds no such scale.

    Zero is always a level, so that padding and what a ReLU cut off stay exact.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    with np.errstate(over="ignore"):
        scale = float(np.float16((high - low) / LEVELS))
    if not _NARROWEST <= scale < np.inf:
        return None
    return Affine(scale, int(np.clip(round(LOWEST - low / scale), LOWEST, HIGHEST)))


@dataclass(slots=True)
class _Seen:
    """What one value showed: its ends, then how often each of as many equal parts between them (None: no parts)."""

    low: float = 0.0
    high: float = 0.0
    counts: torch.Tensor | None = None

    def widen(self, x: torch.Tensor) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))

    def fill(self, x: torch.Tensor) -> None:
        if not 0 < self.high - self.low < np.inf:
            return  # nothing to choose from
        found = torch.histc(x.double(), _BINS, self.low, self.high)
        self.counts = found if self.counts is None else self.counts + found


def observe(
    path: Path, readers: Mapping[str, str], images: NDArray[np.float32], calibrator: Calibrator
) -> dict[str, tuple[float, float]]:
    """The range of the activation that each operation reads, by the operation's name.

    readers: parameter that takes the activation, by name of the operation. Arithmetic is float32, so that a range
    does not depend on how some hardware rounds. Images (N, C, H, W) run twice where what lies between the ends
    matters too.
    """
    package, seen = Interpreter(path), {name: _Seen() for name in readers}

    def each(what: str) -> None:
        def look(op: Op, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
            if op.name in readers:
                getattr(seen[op.name], what)(arguments[readers[op.name]])

        for image in images:
            package.run({"image": image[None]}, look)

    each("widen")
    if calibrator is Calibrator.MINMAX:
        return {name: (found.low, found.high) for name, found in seen.items()}
    each("fill")
    choose = {Calibrator.PERCENTILE: _percentile, Calibrator.MSE: _least_error}[calibrator]
    return {
        name: (found.low, found.high)
        if found.counts is None
        else choose(np.linspace(found.low, found.high, _BINS + 1), found.counts.numpy())
        for name, found in seen.items()
    }


def _percentile(edges: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """All but the outermost values at each end."""
    share = np.cumsum(counts) / counts.sum()
    first, last = np.searchsorted(share, _OUTSIDE, "right"), np.searchsorted(share, 1 - _OUTSIDE)
    return float(edges[first]), float(edges[last + 1])


def _least_error(edges: NDArray[np.float64], counts: NDArray[np.float64]) -> tuple[float, float]:
    """The ends, each moved in on its own, between which 8 bits hold the values with the least squared error."""
    centres, low, high = (edges[1:] + edges[:-1]) / 2, float(edges[0]), float(edges[-1])
    best, least = (low, high), np.inf
    for a in _SHRUNK if low < 0 else (1.0,):
        for b in _SHRUNK if high > 0 else (1.0,):
            form = affine(a * low, b * high)
            if form is None:
                continue
            levels = np.clip(np.round(centres / form.scale) + form.zero_point, LOWEST, HIGHEST)
            error = float((counts * (centres - form.scale * (levels - form.zero_point)) ** 2).sum())
            if error < least:
                best, least = (a * low, b * high), error
    return best
