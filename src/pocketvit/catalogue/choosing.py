"""Choosing a model by what is published about a device: the rows within a budget, and their Pareto front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from ..errors import BadInput
from ..pareto import pareto
from ..registry import close_matches
from .tables import PublishedLatency, entry, latencies


class Setup(NamedTuple):
    """One device and toolchain, and how many rows it has; only rows of one setup can be compared."""

    device: str
    toolchain: str
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What one device and toolchain has to offer within a budget.

    rows: by increasing latency; each ran and has a top-1. front: indices into rows of those that no other beats.
    considered: rows of this setup. reasons: sentences that say why rows were left out and, where none is left, which
    came nearest.
    """

    device: str
    toolchain: str
    rows: tuple[PublishedLatency, ...]
    front: tuple[int, ...]
    considered: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limit:
    """One bound of a budget. excess: how far outside a row is, in parts of the bound; inside at 0 and below."""

    outside: str
    excess: Callable[[PublishedLatency], float]


def setups() -> tuple[Setup, ...]:
    """Every device and toolchain with published rows, by device, those with most rows first."""
    counted = Counter((row.device, row.toolchain) for row in latencies())
    found = [Setup(device, toolchain, rows) for (device, toolchain), rows in counted.items()]
    return tuple(sorted(found, key=lambda setup: (setup.device, -setup.rows, setup.toolchain)))


def choose(
    *,
    device: str,
    toolchain: str | None = None,
    max_ms: float | None = None,
    min_top1: float | None = None,
    max_params: int | None = None,
) -> tuple[Choice, ...]:
    """The published rows of a device within a budget: one Choice per toolchain, never mixed.

    device: its name, in upper or lower case. toolchain: a name or a part of one; all of the device's where not given.
    max_ms: milliseconds. min_top1: share (0..1). max_params: elements. Rows without a published top-1 are left out,
    since nothing says what they are good for.

    Raises BadInput for a device or toolchain without rows, with close matches and what there is, and for a toolchain
    without letters, which every name would contain.
    """
    limits = _limits(max_ms, min_top1, max_params)
    return tuple(_choice(setup, limits, sized=max_params is not None) for setup in _matching(device, toolchain))


def _matching(device: str, toolchain: str | None) -> list[Setup]:
    of_device = [setup for setup in setups() if setup.device.casefold() == device.casefold()]
    if not of_device:
        known = sorted({setup.device for setup in setups()})
        raise BadInput(
            f"There is no published latency for a device called {device!r}.{close_matches(device, known)} "
            f"Known devices: {', '.join(known)}."
        )
    if toolchain is None:
        return of_device
    if not toolchain.strip():
        raise BadInput("A toolchain without a name matches every one; leave it out to see them all.")
    exact = [setup for setup in of_device if setup.toolchain.casefold() == toolchain.casefold()]
    found = exact or [setup for setup in of_device if toolchain.casefold() in setup.toolchain.casefold()]
    if not found:
        names = [setup.toolchain for setup in of_device]
        raise BadInput(
            f"Nothing is published for {of_device[0].device} with a toolchain called {toolchain!r}."
            f"{close_matches(toolchain, names)} There is: {'; '.join(names)}."
        )
    return found


def _limits(max_ms: float | None, min_top1: float | None, max_params: int | None) -> list[_Limit]:
    limits = []
    if max_ms is not None:
        limits.append(_Limit(outside=f"slower than {max_ms:g} ms", excess=lambda row: row.ms / max_ms - 1))
    if min_top1 is not None:
        limits.append(
            _Limit(outside=f"below {min_top1:.1%} top-1", excess=lambda row: 1 - (row.top1 or 0.0) / min_top1)
        )
    if max_params is not None:
        limits.append(
            _Limit(
                outside=f"above {max_params / 1e6:g} M parameters",
                excess=lambda row: (_params(row) or 0) / max_params - 1,
            )
        )
    return limits


def _choice(setup: Setup, limits: list[_Limit], *, sized: bool) -> Choice:
    rows = [row for row in latencies() if (row.device, row.toolchain) == setup[:2]]
    usable = [row for row in rows if not _lack(row, sized)]
    kept = [row for row in usable if not _outside(row, limits)]
    kept.sort(key=lambda row: (row.ms, -(row.top1 or 0.0), row.name))
    left_out = Counter(_lack(row, sized) or _outside(row, limits) for row in rows)
    reasons = [f"Left out, {count} of {len(rows)} rows: {reason}." for reason, count in left_out.items() if reason]
    return Choice(
        device=setup.device,
        toolchain=setup.toolchain,
        rows=tuple(kept),
        front=pareto([(row.ms, row.top1 or 0.0) for row in kept]),
        considered=len(rows),
        reasons=(*reasons, *([] if kept else [_nearest(usable, limits)])),
    )


def _lack(row: PublishedLatency, sized: bool) -> str:
    """Why nothing can be said about a row; empty where something can."""
    if row.failed:
        return "the model failed to run"
    if row.top1 is None:
        return f"no published top-1 ({row.top1_source})"
    return "no published number of parameters" if sized and _params(row) is None else ""


def _outside(row: PublishedLatency, limits: list[_Limit]) -> str:
    """The first bound that a row breaks; empty where it keeps them all."""
    return next((limit.outside for limit in limits if limit.excess(row) > 0), "")


def _params(row: PublishedLatency) -> int | None:
    """As the source states them, else as counted."""
    counted = entry(row.model) if row.model else None
    return row.params or (counted.params if counted else None)


def _nearest(rows: list[PublishedLatency], limits: list[_Limit]) -> str:
    if not rows:
        return "No row has all that choosing needs."
    row = min(rows, key=lambda row: sum(max(0.0, limit.excess(row)) for limit in limits))
    return f"No row is within the budget; nearest is {row.name}, {row.ms:g} ms at {row.top1:.1%} top-1."
