"""What half precision does to a package's answers: both fp16 arithmetics against float32, on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ...types import Evidence, Progress, silent
from .arithmetic import Arithmetic
from .headroom import Inputs
from .interpreter import Interpreter


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounded:
    """Answers in one arithmetic. finite, same_class: of `images`. error: largest over the largest float32 answer."""

    arithmetic: Arithmetic
    images: int
    finite: int
    same_class: int
    error: float
    evidence: Evidence = Evidence.INTERPRETED

    @property
    def sentence(self) -> str:
        """The answers in words."""
        if self.finite < self.images:
            return f"{self.arithmetic}: not finite on {self.images - self.finite} of {self.images} images"
        return (
            f"{self.arithmetic}: same class on {self.same_class} of {self.images} images, off by at most "
            f"{self.error:.1e} of the largest"
        )


def rounded(source: Path | str, images: Sequence[Inputs], progress: Progress = silent) -> tuple[Rounded, ...]:
    """Run a package on `images` in float32 and in each fp16 arithmetic.

    The class is the largest of the first output's numbers; what a package declares float32 is not rounded, so that
    one that is float32 throughout gives the same three times.
    """
    expected = _answers(source, Arithmetic.FP32, images, progress)
    scale = float(np.abs(expected).max()) or 1.0
    found = []
    for arithmetic in (Arithmetic.FP16_FP32_ACC, Arithmetic.FP16):
        answers = _answers(source, arithmetic, images, progress)
        finite = np.isfinite(answers).all(1)
        same = finite & (answers.argmax(1) == expected.argmax(1))
        error = float(np.abs(answers - expected).max()) / scale if finite.all() else float("inf")
        found.append(
            Rounded(
                arithmetic=arithmetic,
                images=len(images),
                finite=int(finite.sum()),
                same_class=int(same.sum()),
                error=error,
            )
        )
    return tuple(found)


def _answers(
    source: Path | str, arithmetic: Arithmetic, images: Sequence[Inputs], progress: Progress
) -> NDArray[np.float64]:
    """Numbers of the first output that has any, (images, numbers); probabilities by label in the label's order."""
    interpreter = Interpreter(source, arithmetic)
    rows = []
    for done, inputs in enumerate(images):
        progress(str(arithmetic), done, len(images))
        outputs = interpreter.run(inputs).values()
        first = next(output for output in outputs if isinstance(output, Tensor | dict))
        numbers = list(first.values()) if isinstance(first, dict) else first.numpy()
        rows.append(np.asarray(numbers, np.float64).reshape(-1))
    progress(str(arithmetic), len(images), len(images))
    return np.stack(rows)
