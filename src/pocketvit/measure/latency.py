"""Latency of several runners, interleaved in one process so that drift hits all of them alike."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BadInput
from ..types import Evidence, Latency, Progress, Runner, silent

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SETTLING_NS = 2_000_000  # longer than threads of the runner before spin


def interleave(
    runners: Sequence[Runner],
    images: Sequence[NDArray[np.float32]],
    *,
    rounds: int = 50,
    warmup: int = 5,
    seed: int = 0,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """Time each runner on its own image (1, C, H, W): every round runs all of them, in shuffled order.

    Before each timed run the same runner runs untimed, once or for two milliseconds: the threads of the one before it
    still spin for a while (libgomp's and OpenVINO's for about one), and its data fills the caches.

    Only ratios within one call mean anything: clocks, caches and neighbours change between calls.
    """
    if rounds < 1 or warmup < 0:
        raise BadInput(f"A bench needs at least one round and no negative warm-up, not {rounds} and {warmup}.")
    for runner in runners:
        if runner.evidence is Evidence.INTERPRETED:
            raise BadInput(
                f"{runner.name} is interpreted on this machine, and the time of that says nothing about a device; "
                "leave it out."
            )
    order = list(range(len(runners)))
    shuffle = random.Random(seed)
    times: list[list[float]] = [[] for _ in runners]
    for done in range(-warmup, rounds):
        shuffle.shuffle(order)
        for i in order:
            settled = time.perf_counter_ns() + _SETTLING_NS
            runners[i](images[i])
            while time.perf_counter_ns() < settled:
                runners[i](images[i])
            start = time.perf_counter_ns()
            runners[i](images[i])
            elapsed = time.perf_counter_ns() - start
            if done >= 0:
                times[i].append(elapsed / 1e6)
        progress("latency, interleaved", done + 1 + warmup, rounds + warmup)
    return tuple(_summary(runner, ms) for runner, ms in zip(runners, times, strict=True))


def _summary(runner: Runner, ms: list[float]) -> Latency:
    p10, median, p90 = (float(p) for p in np.percentile(ms, (10, 50, 90)))
    return Latency(
        median_ms=median, p10_ms=p10, p90_ms=p90, runs=len(ms), threads=runner.threads, evidence=runner.evidence
    )
