"""Which precision to ship: a quantized file is recommended only where the interleaved times show that it gains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Precision, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """What to ship of one runtime's files. row: the fastest that is safe to name; sentence: why, with the numbers."""

    target: str
    row: Row
    gains: bool
    sentence: str


def recommend(rows: Sequence[Row]) -> tuple[Recommendation, ...]:
    """One recommendation for each target that was timed in a float and in a quantized precision.

    The rows come from one interleaved session. A quantized file gains when its p90 lies below the best float file's
    median and its median below that one's p10: neither of the two spreads then explains the difference.
    """
    result = []
    for target in dict.fromkeys(row.target for row in rows):
        timed = [row for row in rows if row.target == target and row.latency and "failed" not in row.check]
        floats = [row for row in timed if not Precision(row.precision).is_quantized]
        others = [row for row in timed if Precision(row.precision).is_quantized]
        if floats and others:
            plain = min(floats, key=_median)
            gaining = [row for row in others if _gains(row, plain)]
            result.append(_between(target, plain, min(gaining or others, key=_median), bool(gaining)))
    return tuple(result)


def _gains(quantized: Row, plain: Row) -> bool:
    a, b = plain.latency, quantized.latency
    assert a is not None
    assert b is not None  # both were timed
    return b.p90_ms < a.median_ms and b.median_ms < a.p10_ms


def _between(target: str, plain: Row, quantized: Row, gains: bool) -> Recommendation:
    a, b = plain.latency, quantized.latency
    assert a is not None
    assert b is not None  # both were timed
    name, base = quantized.precision, plain.precision
    spread = (
        f"{b.median_ms:.3g} ms (p10-p90 {b.p10_ms:.3g}-{b.p90_ms:.3g}) against {a.median_ms:.3g} "
        f"({a.p10_ms:.3g}-{a.p90_ms:.3g}) of {base}, ratio {b.median_ms / a.median_ms:.2f}"
    )
    if gains:
        sentence = f"{target}: {name} gains on this machine: {spread}{_accuracy(plain, quantized)}."
        return Recommendation(target=target, row=quantized, gains=True, sentence=sentence)
    if b.median_ms > a.median_ms:
        found = f"for speed {base} won on this machine; {name} is slower"
    else:
        found = f"{name} shows no gain beyond the spread on this machine, so {base} stays"
    sentence = f"{target}: {found}: {spread}{_smaller(plain, quantized)}."
    return Recommendation(target=target, row=plain, gains=False, sentence=sentence)


def _smaller(plain: Row, quantized: Row) -> str:
    if not plain.size_bytes or not quantized.size_bytes or quantized.size_bytes >= plain.size_bytes:
        return ""
    return f"; it takes {quantized.size_bytes / plain.size_bytes:.2f} of the bytes"


def _accuracy(plain: Row, quantized: Row) -> str:
    if plain.accuracy is None or quantized.accuracy is None:
        return "; accuracy was not measured"
    return f"; top-1 {100 * quantized.accuracy.top1:.2f}% against {100 * plain.accuracy.top1:.2f}%"


def _median(row: Row) -> float:
    assert row.latency is not None
    return row.latency.median_ms
