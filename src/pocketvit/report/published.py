"""What is published, as numbers that each carry their evidence and source: for the terminal, pages and JSON."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..catalogue import PublishedLatency, entry
from ..catalogue import published as about
from ..types import Evidence, plain

COUNTED = "counted by pocketvit"


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One number, how it is known and where it stands.

    value: milliseconds, a share (0..1), or a count. detail: what the source says it is of, such as which weights.
    """

    value: float
    evidence: Evidence
    source: str
    detail: str = ""


def latency(row: PublishedLatency) -> Figure:
    """Milliseconds for one image."""
    return Figure(value=row.ms, evidence=Evidence.PUBLISHED, source=row.source)


def top1(row: PublishedLatency) -> Figure | None:
    """Share (0..1) on ImageNet-1k; None where nothing is published."""
    if row.top1 is None:
        return None
    found = entry(row.model) if row.model else None
    # taken from timm's evaluation of the weights named; else the latency's own source states it
    if row.top1_source.startswith("timm ") and found is not None and found.top1_source:
        weights = row.top1_source.removeprefix("timm ")
        return Figure(value=row.top1, evidence=Evidence.PUBLISHED, source=found.top1_source, detail=weights)
    return Figure(value=row.top1, evidence=Evidence.PUBLISHED, source=row.source)


def params(row: PublishedLatency) -> Figure | None:
    """Parameters, as the latency's source states them, else as counted for the model it names."""
    if row.params is not None:
        return Figure(value=row.params, evidence=Evidence.PUBLISHED, source=row.source)
    found = entry(row.model) if row.model else None
    if found is None or found.params is None:
        return None
    return Figure(value=found.params, evidence=Evidence.MEASURED, source=COUNTED)


def macs(row: PublishedLatency) -> Figure | None:
    """Multiply-accumulates, as stated, else as counted where the row's resolution is the one that was counted."""
    if row.macs is not None:
        return Figure(value=row.macs, evidence=Evidence.PUBLISHED, source=row.source)
    found = entry(row.model) if row.model else None
    if found is None or found.macs is None or row.resolution != found.input_size[-1]:
        return None
    return Figure(value=found.macs, evidence=Evidence.MEASURED, source=COUNTED)


def sources(rows: Iterable[PublishedLatency]) -> tuple[str, ...]:
    """Every source that a number of these rows stands on, in the order in which they come."""
    figures = [figure for row in rows for figure in (latency(row), top1(row), params(row)) if figure]
    return tuple(dict.fromkeys(figure.source for figure in figures if figure.evidence is Evidence.PUBLISHED))


def family(row: PublishedLatency) -> str:
    """What sizes of one architecture share: 'EfficientFormerV2' of 'EfficientFormerV2-S0', as the source writes it."""
    model = (row.model or row.name).lower().removeprefix("tf_").replace("mobile_former", "mobileformer")
    words = re.match(r"[a-z]+?(?:v\d+|(?![a-z]))", model)
    key = words.group() if words else model
    return row.name[: len(key)] if row.name.lower().startswith(key) else key


def row_document(row: PublishedLatency, front: bool) -> dict[str, Any]:
    """A row for JSON: every number with its evidence and source. front: no other row beats it."""
    kept = ("model", "name", "os", "toolchain_stated", "resolution", "resolution_assumed", "read_from", "note")
    numbers = {"latency_ms": latency(row), "top1": top1(row), "params": params(row), "macs": macs(row)}
    return {"front": front} | {key: getattr(row, key) for key in kept} | plain(numbers)


def documents(model: str) -> list[dict[str, Any]]:
    """All that is published about an architecture, one number each, for JSON; nothing where nothing is.

    metric: top1 (share 0..1), params, macs, or latency_ms with its device and toolchain. setting: what the source says
    the number is of.
    """
    found = []
    known = entry(model)
    if known is not None and known.top1 is not None:
        setting = f"weights {known.weights}, {known.top1_size} px"
        figure = Figure(value=known.top1, evidence=Evidence.PUBLISHED, source=known.top1_source or "")
        found.append({"metric": "top1", "setting": setting, **plain(figure)})
    for claim in about(model).claims:
        figure = Figure(value=claim.value, evidence=Evidence.PUBLISHED, source=claim.source, detail=claim.note)
        found.append({"metric": claim.metric, "setting": claim.setting, "status": claim.status, **plain(figure)})
    for row in (row for row in about(model).latencies if not row.failed):
        size = f"{row.resolution} px{' (assumed)' if row.resolution_assumed else ''}" if row.resolution else ""
        where = {"device": row.device, "toolchain": row.toolchain, "setting": size, "read_from": row.read_from}
        figure = Figure(value=row.ms, evidence=Evidence.PUBLISHED, source=row.source, detail=row.note)
        found.append({"metric": "latency_ms", **where, **plain(figure)})
    return found


def sentences(found: Sequence[Mapping[str, Any]], shown: int = 3) -> list[str]:
    """What `documents` gave, for people: settings with their numbers and source, then where latencies are known.

    shown: how many settings; the sentence after them says how many are left to JSON.
    """
    settings: dict[tuple[str, str], list[str]] = {}
    for one in found:
        if one["metric"] != "latency_ms":
            settings.setdefault((one["setting"], one["source"]), []).append(_words(one["metric"], one["value"]))
    lines = [
        f"published: {', '.join(numbers)} ({setting}) in {source}" for (setting, source), numbers in settings.items()
    ]
    if len(lines) > shown:
        lines[shown:] = [f"published: {len(lines) - shown} more, which --json has"]
    devices = Counter(one["device"] for one in found if one["metric"] == "latency_ms")
    if devices:
        listed = ", ".join(f"{device} ({count})" for device, count in devices.most_common(shown))
        others = f" and {len(devices) - shown} devices more" if len(devices) > shown else ""
        lines.append(f"published latencies: {listed}{others}; see pocketvit choose --device NAME")
    return lines


def _words(metric: str, value: float) -> str:
    if metric == "top1":
        return f"top-1 {100 * value:.1f}%"
    return f"{value / 1e6:.3g} M parameters" if metric == "params" else f"{value / 1e9:.3g} G multiply-accumulates"
