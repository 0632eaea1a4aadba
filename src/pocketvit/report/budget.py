"""Whether a run met its budget, in a sentence; names the nearest miss when it did not."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import BadInput
from ..types import Evidence, Row
from . import cells


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """What a file may cost; None means no limit.

    max_top1_drop: share (0..1) of top-1 below the first row's. max_latency_ms: median. max_size_bytes: on disk.
    Raises BadInput for a budget without a limit, or with one that cannot be kept.
    """

    max_top1_drop: float | None = None
    max_latency_ms: float | None = None
    max_size_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_top1_drop is None and self.max_latency_ms is None and self.max_size_bytes is None:
            raise BadInput("A budget needs a limit: max_top1_drop, max_latency_ms or max_size_bytes.")
        if self.max_top1_drop is not None and not 0 <= self.max_top1_drop < 1:
            raise BadInput(f"max_top1_drop is a share from 0 to 1 (0.01 is one point), not {self.max_top1_drop}.")
        for name in ("max_latency_ms", "max_size_bytes"):
            limit = getattr(self, name)
            if limit is not None and not 0 < limit < math.inf:
                raise BadInput(f"{name} must be a positive number, not {limit}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What came of a budget.

    met: whether a file keeps every limit. row: that file, else the nearest miss, else None. sentence: for people.
    """

    met: bool
    row: Row | None
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limit:
    """One limit held against one row: `over` is the relative overshoot, 0 when kept; None when not known."""

    words: str
    over: float | None
    excess: str


def verdict(rows: Sequence[Row], budget: Budget) -> Verdict:
    """Judge the files among the rows: those with a file whose check did not fail. The first row is the reference.

    The fastest file that keeps every limit is named (the smallest where no latency is known), else the one whose
    worst relative overshoot is least.
    """
    if not rows:
        return Verdict(met=False, row=None, sentence="The budget cannot be judged: there are no candidates.")
    if budget.max_top1_drop is not None and rows[0].accuracy is None:
        reference = f"{cells.form(rows[0])} of {cells.model(rows[0])}"
        sentence = f"The budget cannot be judged: the accuracy of the first row, {reference}, is not known."
        return Verdict(met=False, row=None, sentence=sentence)
    judged = [(row, _limits(row, rows[0], budget)) for row in rows if row.file is not None and not cells.failed(row)]
    asked = " and ".join(limit.words for limit in _limits(rows[0], rows[0], budget))
    known = [(row, limits) for row, limits in judged if all(limit.over is not None for limit in limits)]
    kept = [row for row, limits in known if all(limit.over == 0 for limit in limits)]
    if kept:
        row = min(kept, key=_cheapest)
        best = "fastest" if row.latency else "smallest"
        sentence = f"Budget met ({asked}): {_named(row)} is the {best} file that keeps it, with {_numbers(row)}."
        return Verdict(met=True, row=row, sentence=sentence)
    if not known:
        sentence = f"Budget not met ({asked}): no file has every number that it asks for."
        return Verdict(met=False, row=None, sentence=sentence)
    row, limits = min(known, key=lambda pair: (max(limit.over or 0.0 for limit in pair[1]), _cheapest(pair[0])))
    short = " and ".join(limit.excess for limit in limits if limit.over)
    sentence = f"Budget not met ({asked}). The nearest miss is {_named(row)}, {short}: {_numbers(row)}."
    return Verdict(met=False, row=row, sentence=sentence)


def _limits(row: Row, reference: Row, budget: Budget) -> list[_Limit]:
    limits = []
    if budget.max_top1_drop is not None and reference.accuracy is not None:
        least = reference.accuracy.top1 - budget.max_top1_drop
        words = f"top-1 at least {_points(least)}%"
        short = None if row.accuracy is None else max(0.0, least - row.accuracy.top1)
        # Shares are ratios of counts: a billionth is rounding, far below one image.
        short = 0.0 if short is not None and short < 1e-9 else short
        over = None if short is None else short / max(least, 1e-9)
        limits.append(_Limit(words=words, over=over, excess=f"{_points(short or 0)} points of top-1 short"))
    if budget.max_latency_ms is not None:
        most = budget.max_latency_ms
        ms = None if row.latency is None else max(0.0, row.latency.median_ms - most)
        words = f"latency at most {cells.milliseconds(most)} ms"
        excess = f"{cells.milliseconds(ms or 0)} ms over"
        limits.append(_Limit(words=words, over=None if ms is None else ms / most, excess=excess))
    if budget.max_size_bytes is not None:
        limit = budget.max_size_bytes
        extra = None if row.size_bytes is None else max(0, row.size_bytes - limit)
        words = f"size at most {cells.size_text(limit)}"
        excess = f"{cells.size_text(extra or 0)} over"
        limits.append(_Limit(words=words, over=None if extra is None else extra / limit, excess=excess))
    return limits


def _points(share: float) -> str:
    """A share as points with two decimals, so that one image in some thousands still shows."""
    return f"{100 * share:.2f}"


def _cheapest(row: Row) -> tuple[float, float, float]:
    return (
        row.latency.median_ms if row.latency else math.inf,
        float(row.size_bytes) if row.size_bytes is not None else math.inf,
        -row.accuracy.top1 if row.accuracy else 0.0,
    )


def _named(row: Row) -> str:
    return f"{cells.form(row)} of {cells.model(row)}"


def _numbers(row: Row) -> str:
    parts = []
    if row.accuracy:
        parts.append(f"top-1 {_points(row.accuracy.top1)}%{_tag(row.accuracy.evidence)}")
    if row.latency:
        parts.append(f"{cells.milliseconds(row.latency.median_ms)} ms{_tag(row.latency.evidence)}")
    if row.size_bytes is not None:
        parts.append(f"{cells.size_text(row.size_bytes)}{_tag(Evidence.MEASURED)}")
    return ", ".join(parts)


def _tag(evidence: Evidence) -> str:
    return f" ({evidence})"
