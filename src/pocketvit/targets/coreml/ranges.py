"""The ranges of activations, from what calibration images show a package of them; found by interpreting it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...types import Calibrator
from .._ranges import Histogram
from .interpreter import Interpreter
from .program import Op

if TYPE_CHECKING:
    from numpy.typing import NDArray

LEVELS = 255  # steps between the 256 values of 8 bits
LOWEST, HIGHEST = -128, 127
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


def observe(
    path: Path, readers: Mapping[str, str], images: NDArray[np.float32], calibrator: Calibrator
) -> dict[str, tuple[float, float]]:
    """The range of the activation that each operation reads, by the operation's name.

    readers: parameter that takes the activation, by name of the operation. Arithmetic is float32, so that a range
    does not depend on how some hardware rounds. Images (N, C, H, W) run twice where what lies between the ends
    matters too.
    """
    package, seen = Interpreter(path), {name: Histogram() for name in readers}

    def each(what: str) -> None:
        def look(op: Op, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
            if op.name in readers:
                getattr(seen[op.name], what)(arguments[readers[op.name]].numpy())

        for image in images:
            package.run({"image": image[None]}, look)

    each("widen")
    if calibrator is not Calibrator.MINMAX:
        each("fill")
    return {name: found.range(calibrator) for name, found in seen.items()}
