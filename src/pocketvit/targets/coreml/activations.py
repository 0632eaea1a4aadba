"""Whether the 8-bit activations of a package can hold what its fp32 twin computes there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .interpreter import Interpreter
from .likeness import Pair
from .program import Op
from .ranges import HIGHEST, LEVELS, LOWEST

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_COARSEST = 4.0  # times the step that the images shown need: calibration may have seen values four times as large
# share of the values: calibrators cut off a thousandth, but where values are few (behind a pooling) new images more
_CLIPPED = 0.05


@dataclass(slots=True)
class _Held:
    """A pair and what the twin shows of its value."""

    pair: Pair
    scale: float
    zero_point: float
    low: float = math.inf
    high: float = -math.inf
    outside: int = 0
    total: int = 0

    def look(self, x: Tensor) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        # a level beyond the ends: many values may lie at one (that of SiLU), which rounding the zero point moves
        least, largest = (self.scale * (end - self.zero_point) for end in (LOWEST - 1, HIGHEST + 1))
        self.outside += int(((x < least) | (x > largest)).sum())
        self.total += x.numel()

    def complaint(self) -> str | None:
        needed = (max(self.high, 0.0) - min(self.low, 0.0)) / LEVELS
        runs = f"from {self.low:.3g} to {self.high:.3g}"
        if needed and self.scale > _COARSEST * needed:
            return (
                f"the activation {self.pair.name!r} has a step of {self.scale:.3g} in 8 bits, "
                f"{self.scale / needed:.0f} times what its range {runs} needs"
            )
        if self.outside > _CLIPPED * self.total:
            return f"8 bits cut off {self.outside / self.total:.1%} of the activation {self.pair.name!r}, {runs}"
        return None


def unfit(
    pairs: Sequence[Pair], constants: Mapping[str, Any], twin: Interpreter, images: NDArray[np.float32]
) -> Iterator[str]:
    """Sentences, one for each pair whose numbers are damaged, or too coarse or too narrow for the twin's values.

    constants: of the package. images: (N, C, H, W).
    """
    held: dict[tuple[str, str], _Held] = {}
    for pair in pairs:
        found = _numbers(pair, constants)
        if isinstance(found, str):
            yield found
        else:
            held[pair.reader, pair.parameter] = _Held(pair, *found)

    def look(op: Op, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
        for parameter in ("x", "y"):
            if (op.name, parameter) in held:
                held[op.name, parameter].look(arguments[parameter])

    if held:
        for image in images:
            twin.run({"image": image[None]}, look)
    yield from filter(None, (one.complaint() for one in held.values()))


def _numbers(pair: Pair, constants: Mapping[str, Any]) -> tuple[float, float] | str:
    """Scale and zero point of a pair, or what is wrong with them."""
    found = []
    for op in (pair.quantize, pair.dequantize):
        if "axis" in op.inputs:
            return f"{op} has a scale for each channel, which pocketvit does not write"
        numbers = [_one(op, name, constants) for name in ("scale", "zero_point")]
        found.append(numbers)
    if found[0] != found[1] or any(math.isnan(number) for number in found[0]):
        return f"{pair.quantize} rounds with scale and zero point {found[0]}, {pair.dequantize} widens with {found[1]}"
    scale, zero_point = found[0]
    if not 0 < scale < math.inf:
        return f"{pair.quantize} has a scale of {scale:g}"
    return scale, zero_point


def _one(op: Op, parameter: str, constants: Mapping[str, Any]) -> float:
    """A scalar argument; not a number where it is something else."""
    (given,) = op.inputs.get(parameter, (None,))
    value = constants.get(given) if isinstance(given, str) else torch.as_tensor(given.data) if given else None
    return float(value) if isinstance(value, Tensor) and value.numel() == 1 else math.nan
