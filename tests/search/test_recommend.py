"""int8 is recommended only where its times and those of float do not overlap."""

from __future__ import annotations

import pytest

from pocketvit.search import recommend
from pocketvit.types import Accuracy, Latency, Row


def row(precision: str, p10: float, median: float, p90: float, target: str = "onnx", **others: object) -> Row:
    latency = Latency(median_ms=median, p10_ms=p10, p90_ms=p90, runs=50, threads=2)
    values = {"accuracy": Accuracy(top1=0.9, top5=1.0, images=100), "size_bytes": 1000, "check": "ok", **others}
    return Row(
        name="m", target=target, precision=precision, trained=True, file="f", agreement=None, latency=latency,
        quantized=None, **values,  # type: ignore[arg-type]
    )  # fmt: skip


FLOAT = row("fp32", 9.5, 10.0, 11.0)


@pytest.mark.parametrize(
    ("quantized", "gains"),
    [
        (row("w8a8", 4.5, 5.0, 6.0), True),
        (row("w8a8", 9.0, 9.4, 9.9), True),  # little, and apart
        (row("w8a8", 8.0, 9.6, 9.9), False),  # the median lies in float's spread
        (row("w8a8", 4.0, 9.0, 12.0), False),  # its own spread covers float's median
        (row("w8a8", 11.0, 12.0, 13.0), False),
    ],
)
def test_only_a_gain_beyond_the_spread_counts(quantized: Row, gains: bool) -> None:
    (found,) = recommend([FLOAT, quantized])
    assert found.gains is gains, found.sentence
    assert found.row is (quantized if gains else FLOAT)
    assert f"ratio {quantized.latency.median_ms / 10:.2f}" in found.sentence  # type: ignore[union-attr]


def test_slower_is_called_slower_and_the_size_is_still_told() -> None:
    (found,) = recommend([FLOAT, row("w8a8", 11.0, 12.0, 13.0, size_bytes=300)])
    assert "for speed fp32 won on this machine; w8a8 is slower" in found.sentence
    assert "it takes 0.30 of the bytes" in found.sentence


def test_a_file_that_gains_is_not_hidden_by_a_faster_one_that_wavers() -> None:
    (found,) = recommend([FLOAT, row("w8", 7.0, 7.9, 10.5), row("w8a8", 7.9, 8.0, 8.1)])
    assert (found.row.precision, found.gains) == ("w8a8", True), found.sentence
    (found,) = recommend([FLOAT, row("w8", 8.5, 9.6, 9.9)])
    assert "w8 shows no gain beyond the spread on this machine, so fp32 stays" in found.sentence


def test_the_best_of_each_kind_is_compared_within_its_own_runtime() -> None:
    rows = [
        FLOAT, row("bf16", 4.8, 5.0, 5.2), row("w8", 6.0, 6.5, 7.0), row("w8a8", 3.0, 3.1, 3.2),
        row("fp32", 1.0, 1.1, 1.2, "openvino"), row("w8a8", 2.0, 2.1, 2.2, "openvino"),
        row("fp32", 1.0, 1.1, 1.2, "executorch"),
    ]  # fmt: skip
    onnx, openvino = recommend(rows)
    assert (onnx.row.precision, onnx.gains) == ("w8a8", True)
    assert "of bf16" in onnx.sentence
    assert (openvino.row.precision, openvino.gains) == ("fp32", False)


def test_a_failed_file_is_never_recommended() -> None:
    assert recommend([FLOAT, row("w8a8", 1.0, 1.1, 1.2, check="failed: 3 dB")]) == ()
