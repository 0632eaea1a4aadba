"""What the survey's figure shows and where: points, axes, the front, families, and the place of each name."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ...catalogue import Choice, PublishedLatency
from ...errors import BadInput
from .. import published
from ..plots import LOG_FROM_SPREAD, PALETTE
from .places import Dot, Place, places

OTHERS = "other families"
GREY = PALETTE[-1]
LARGEST, SMALLEST, UNKNOWN = 13.0, 3.0, 4.0  # radius of a marker, pixels; UNKNOWN where parameters are not known
TEXT = 10.5  # height of a name, pixels
_NARROW, _WIDE = "ijlt.,:;|!-'() 1frI", "mwMWQO@%"


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """One axis: its ends, its ticks, and whether it is logarithmic."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """How far along the axis a value stands, from 0 to 1."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One row of the figure. top1: percent. params: None where not known. inside: within the budget."""

    row: PublishedLatency
    ms: float
    top1: float
    params: float | None
    family: str
    colour: str
    radius: float
    inside: bool
    front: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Landscape:
    """What a figure shows, whatever draws it.

    points: in the order of drawing, the front and small markers on top. front: corners of the step line, milliseconds
    and percent. families: name and colour. sizes: parameters and radius of the markers that explain the size.
    names: place of each name, by index into points.
    """

    device: str
    toolchain: str
    points: tuple[Point, ...]
    front: tuple[tuple[float, float], ...]
    families: tuple[tuple[str, str], ...]
    sizes: tuple[tuple[float, float], ...]
    x: Axis
    y: Axis
    names: dict[int, Place]


def landscape(choice: Choice, canvas: tuple[float, float], around: Sequence[PublishedLatency] = ()) -> Landscape:
    """Work out a figure whose plotting area is `canvas` pixels wide and high; see `formats.write` for the rest."""
    foreign = [r for r in (*choice.rows, *around) if (r.device, r.toolchain) != (choice.device, choice.toolchain)]
    if foreign:
        raise BadInput(f"{foreign[0].name} was timed on another device or toolchain; such rows share no figure.")
    points = _points(choice, around)
    if not points:
        raise BadInput(f"{choice.device} with {choice.toolchain} has no row with a latency and a top-1 to draw.")
    x, y = _latency_axis([p.ms for p in points]), _accuracy_axis([p.top1 for p in points])
    inside = sorted((p.ms, p.top1) for p in points if p.front)
    front = _steps(inside)
    dots = [Dot(x=x.at(p.ms) * canvas[0], y=y.at(p.top1) * canvas[1], radius=p.radius) for p in points]
    line = [(x.at(ms) * canvas[0], y.at(top1) * canvas[1]) for ms, top1 in front]
    sizes = {i: (text_width(points[i].row.name), TEXT * 1.2) for i in _named(points)}
    families = dict.fromkeys((p.family, p.colour) for p in sorted(points, key=lambda p: (p.colour == GREY, p.family)))
    return Landscape(
        device=choice.device,
        toolchain=choice.toolchain,
        points=points,
        front=front,
        families=tuple(families),
        sizes=_sizes(points),
        x=x,
        y=y,
        names=places(dots, sizes, canvas, line),
    )


def text_width(words: str) -> float:
    """About how many pixels wide a name is; rather too many than too few, since fonts differ."""
    return TEXT * sum(0.36 if c in _NARROW else 0.95 if c in _WIDE else 0.66 if c.isupper() else 0.6 for c in words)


def parameters(count: float) -> str:
    """'3.5 M' or '82 M'."""
    return f"{count / 1e6:.3g} M"


def _points(choice: Choice, around: Sequence[PublishedLatency]) -> tuple[Point, ...]:
    front = {choice.rows[i] for i in choice.front}
    rows = list(choice.rows) + [row for row in around if row not in choice.rows and not row.failed]
    rows = [row for row in rows if row.top1 is not None]
    counts = {row: found.value for row in rows if (found := published.params(row))}
    most = max(counts.values(), default=1.0)
    families = _families(rows, front)
    points = [
        Point(
            row=row,
            ms=row.ms,
            top1=100 * (row.top1 or 0.0),
            params=counts.get(row),
            family=families[published.family(row).lower()][0],
            colour=families[published.family(row).lower()][1],
            radius=max(SMALLEST, LARGEST * math.sqrt(counts[row] / most)) if row in counts else UNKNOWN,
            inside=row in choice.rows,
            front=row in front,
        )
        for row in rows
    ]
    return tuple(sorted(points, key=lambda p: (p.inside, p.front, -p.radius)))


def _families(rows: Sequence[PublishedLatency], front: set[PublishedLatency]) -> dict[str, tuple[str, str]]:
    """Name and colour of each family; those on the front and with most rows have a colour of their own."""
    weights: Counter[str] = Counter()
    names: dict[str, str] = {}
    for row in rows:
        name = published.family(row)
        weights[name.lower()] += 1 + 1000 * (row in front)
        if names.setdefault(name.lower(), name).islower():  # as a source writes it, if any does
            names[name.lower()] = name
    ordered = sorted(weights, key=lambda key: (-weights[key], key))
    alone = len(PALETTE) if len(ordered) <= len(PALETTE) else len(PALETTE) - 1
    coloured = {key: (names[key], colour) for key, colour in zip(ordered[:alone], PALETTE, strict=False)}
    return coloured | dict.fromkeys(ordered[alone:], (OTHERS, GREY))


def _named(points: Sequence[Point]) -> list[int]:
    """Which points have their name beside them, the important first: the front and the extremes within the budget."""
    inside = [i for i, p in enumerate(points) if p.inside] or list(range(len(points)))
    extremes: list[Callable[[Point], float]] = [
        lambda p: p.ms,
        lambda p: -p.ms,
        lambda p: p.top1,
        lambda p: -p.top1,
        lambda p: -(p.params or 0.0),
    ]
    front = [i for i in inside if points[i].front]
    return list(dict.fromkeys([*front, *(min(inside, key=lambda i: key(points[i])) for key in extremes)]))


def _steps(front: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """Corners of the line below which everything is beaten: across first, then up."""
    corners: list[tuple[float, float]] = []
    for ms, top1 in front:
        if corners:
            corners.append((ms, corners[-1][1]))
        corners.append((ms, top1))
    return tuple(corners)


def _sizes(points: Sequence[Point]) -> tuple[tuple[float, float], ...]:
    """Up to three round counts of parameters within the range that is drawn, and their radii."""
    most = max((p.params for p in points if p.params), default=0.0)
    if not most:
        return ()
    decade = 10.0 ** math.floor(math.log10(most))
    counts = [m * decade for m in (5, 2, 1, 0.5, 0.2, 0.1) if m * decade <= most]
    drawn = [(count, LARGEST * math.sqrt(count / most)) for count in (counts[0], counts[1], counts[3])]
    return tuple((count, radius) for count, radius in drawn if radius >= SMALLEST)


def _latency_axis(values: Sequence[float]) -> Axis:
    if max(values) / min(values) < LOG_FROM_SPREAD:
        high = max(values) * 1.08
        return Axis(low=0.0, high=high, ticks=_ticks(0.0, high))
    low, high = min(values) / 1.25, max(values) * 1.25
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low > 30 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = (m * 10.0**e for e in decades for m in steps)
    return Axis(low=low, high=high, ticks=tuple(t for t in ticks if low <= t <= high), log=True)


def _accuracy_axis(values: Sequence[float]) -> Axis:
    margin = max(1.0, 0.09 * (max(values) - min(values)))
    low, high = min(values) - margin, min(100.0, max(values) + margin)
    return Axis(low=low, high=high, ticks=_ticks(low, high))


def _ticks(low: float, high: float) -> tuple[float, ...]:
    """Round values between two ends, five to ten of them."""
    rough = (high - low) / 8
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
    return tuple(round(k * step, 10) for k in range(math.ceil(low / step), math.floor(high / step) + 1))
