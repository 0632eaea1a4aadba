"""Verdicts on budgets: the fastest that keeps them, the nearest miss, and what cannot be judged."""

from __future__ import annotations

import pytest

from pocketvit.errors import BadInput
from pocketvit.report import Budget, verdict


def form(result):
    return None if result.row is None else f"{result.row.target}:{result.row.precision}"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (Budget(max_top1_drop=0.01), "openvino:w8a8"),  # 96.67 is above 96.22
        (Budget(max_top1_drop=0.004), "openvino:fp32"),  # 96.67 is below 96.82; 0.291 ms beats 0.387
        (Budget(max_top1_drop=0.004, max_size_bytes=500_000), "onnx:w8a8-dynamic"),
        (Budget(max_latency_ms=0.3, max_size_bytes=500_000), "openvino:w8a8"),
        (Budget(max_size_bytes=410_000), "executorch:w8a8"),
    ],
)
def test_the_fastest_file_that_keeps_the_budget(rows, budget, expected):
    result = verdict(rows, budget)
    assert (result.met, form(result)) == (True, expected), result.sentence
    assert expected in result.sentence
    assert "(measured)" in result.sentence


def test_the_drop_may_be_exactly_used_up(one):
    rows = [one("pytorch", top1=0.9, size=None), one("onnx", top1=0.8)]
    assert verdict(rows, Budget(max_top1_drop=0.1)).met
    assert not verdict(rows, Budget(max_top1_drop=0.0999)).met


def test_the_nearest_miss_is_the_least_overshoot(rows):
    result = verdict(rows, Budget(max_top1_drop=0.0, max_latency_ms=0.25))
    # openvino:w8a8 misses by 0.55 points (0.6%), openvino:fp32 by 0.041 ms (16%).
    assert (result.met, form(result)) == (False, "openvino:w8a8"), result.sentence
    assert "0.55 points of top-1 short" in result.sentence
    assert "ms over" not in result.sentence


def test_the_reference_and_failed_files_are_no_candidates(one):
    failed = one("onnx", ms=0.1, check="failed: 3.0 dB")
    slow = one("openvino", ms=2.0)
    rows = [one("pytorch", ms=0.05, size=None), failed, slow]
    assert form(verdict(rows, Budget(max_latency_ms=3.0))) == "openvino:fp32"


def test_what_cannot_be_judged_is_said(rows, one):
    coreml = [row for row in rows if row.target == "coreml"]
    assert "no file has every number" in verdict([rows[0], *coreml], Budget(max_latency_ms=1.0)).sentence
    assert "accuracy of the first row" in verdict(coreml, Budget(max_top1_drop=0.1)).sentence
    assert "no candidates" in verdict([], Budget(max_latency_ms=1.0)).sentence
    small = verdict([one(ms=None, size=9000), one(ms=None, size=5000)], Budget(max_size_bytes=10_000))
    assert small.row is not None
    assert small.row.size_bytes == 5000
    assert "smallest" in small.sentence


def test_untrained_is_said(one):
    assert "UNTRAINED" in verdict([one(trained=False)], Budget(max_latency_ms=9.0)).sentence


@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"max_top1_drop": -0.1},
        {"max_top1_drop": 1.5},
        {"max_latency_ms": 0.0},
        {"max_latency_ms": float("nan")},
        {"max_size_bytes": -1},
    ],
)
def test_a_budget_that_is_none(limits):
    with pytest.raises(BadInput):
        Budget(**limits)
