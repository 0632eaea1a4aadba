from __future__ import annotations

import numpy as np
import pytest

from pocketvit.errors import BadInput
from pocketvit.measure import latency
from pocketvit.measure.latency import interleave
from pocketvit.types import Runner


class Recorder(Runner):
    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.threads, self.classes, self.calls = name, 1, 2, calls

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self.calls.append(self.name)
        return np.zeros((len(images), 2), np.float32)


def test_every_round_times_every_candidate_in_changing_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "_SETTLING_NS", 0)
    calls: list[str] = []
    runners = [Recorder(name, calls) for name in "abc"]
    image = np.zeros((1, 3, 2, 2), np.float32)
    found = interleave(runners, [image] * 3, rounds=20, warmup=2)
    assert calls[::2] == calls[1::2], "each timed run follows an untimed one of its own"
    rounds = ["".join(calls[i : i + 6 : 2]) for i in range(0, len(calls), 6)]
    assert len(rounds) == 22
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 1, "the order never changed"
    assert [f.runs for f in found] == [20, 20, 20]
    assert all(f.p10_ms <= f.median_ms <= f.p90_ms for f in found)


def test_a_candidate_settles_before_it_is_timed() -> None:
    calls: list[str] = []
    interleave([Recorder(name, calls) for name in "ab"], [np.zeros((1, 3, 2, 2), np.float32)] * 2, rounds=1, warmup=0)
    assert len(calls) > 8, "what does nothing runs many times in two milliseconds"
    assert calls == sorted(calls) or calls == sorted(calls, reverse=True), "one after the other"


def test_a_bench_without_rounds_is_refused() -> None:
    with pytest.raises(BadInput, match="at least one round"):
        interleave([], [], rounds=0)
