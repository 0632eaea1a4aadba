"""What every loaded file has in common as a Runner: one image at a time through a runtime's own call."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..types import Artifact, OpTime, Runner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    RunOne = Callable[[NDArray[np.float32]], NDArray[np.float32]]
    Profile = Callable[[NDArray[np.float32], int], tuple[OpTime, ...]]


class FileRunner(Runner):
    """Runs `run_one`: contiguous float32 (1, *spec.size) -> logits (1, classes); `profiled` where there is one."""

    def __init__(self, artifact: Artifact, threads: int, run_one: RunOne, profiled: Profile | None = None) -> None:
        self.name = artifact.display_name
        self.threads = threads
        self.classes = artifact.classes
        self.spec = artifact.spec
        self._run_one = run_one
        self._profiled = profiled

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        images = self._checked(images)
        logits = np.empty((len(images), self.classes), np.float32)
        for i in range(len(images)):
            logits[i] = self._run_one(images[i : i + 1])[0]
        return logits

    def profile(self, images: NDArray[np.float32], runs: int) -> tuple[OpTime, ...] | None:
        """Time per operation kind on the first image, averaged over `runs`."""
        if self._profiled is None:
            return None
        images = self._checked(images)
        if runs < 1 or len(images) == 0:
            raise BadInput(f"Profiling {self.name} needs an image and at least one run.")
        return self._profiled(images[:1], runs)

    def _checked(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        import numpy as np

        if images.shape[1:] != self.spec.size:
            raise BadInput(f"{self.name} takes images of shape {self.spec.size}, not {images.shape[1:]}.")
        if images.dtype != np.float32:
            raise BadInput(f"{self.name} takes float32 images in [0, 1], not {images.dtype}.")
        return np.ascontiguousarray(images)


class Stopwatch:
    """Adds up time per operation kind; `per_run` averages over the runs it saw."""

    def __init__(self) -> None:
        self._totals: dict[str, tuple[float, int]] = {}

    def add(self, op: str, ms: float) -> None:
        """Count one execution of `op`."""
        total, calls = self._totals.get(op, (0.0, 0))
        self._totals[op] = total + ms, calls + 1

    def per_run(self, runs: int) -> tuple[OpTime, ...]:
        """Return milliseconds and calls (rounded up) per inference, most expensive first."""
        times = [OpTime(op=op, ms=ms / runs, calls=-(-calls // runs)) for op, (ms, calls) in self._totals.items()]
        return tuple(sorted(times, key=lambda time: -time.ms))
