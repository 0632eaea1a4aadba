"""Where names go beside the points of a plot, so that none covers another name or a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

_GAP = 3.0  # between a marker and its name, and between two names
_DISTANCES = (0.0, 7.0, 16.0, 28.0, 42.0, 60.0, 84.0)  # beyond the marker's edge, tried in this order
_DIRECTIONS = 16
_LEADER_FROM = 6.0  # a name further away than this needs a line to its point


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A marker: its centre and radius in pixels, x to the right and y up."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where the middle of a name stands, in pixels from its marker's centre; leader: it needs a line between."""

    dx: float
    dy: float
    leader: bool


@dataclass(frozen=True, slots=True)
class _Box:
    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: _Box) -> float:
        """Pixels that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(0.0, width) * max(0.0, height)

    def holds(self, point: tuple[float, float]) -> bool:
        """True where the point lies in the box."""
        return self.left < point[0] < self.right and self.bottom < point[1] < self.top

    def within(self, canvas: tuple[float, float]) -> bool:
        """True where no part of the box is outside."""
        return self.left >= 0 and self.bottom >= 0 and self.right <= canvas[0] and self.top <= canvas[1]

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest edge; 0 inside."""
        return math.hypot(max(self.left - x, 0.0, x - self.right), max(self.bottom - y, 0.0, y - self.top))


def places(
    dots: Sequence[Dot],
    sizes: Mapping[int, tuple[float, float]],
    canvas: tuple[float, float],
    line: Sequence[tuple[float, float]] = (),
) -> dict[int, Place]:
    """Find a place for the name of each dot in `sizes`: index of the dot -> width and height of its name in pixels.

    canvas: width and height that no name may leave. line: corners of a drawn line that names avoid where they can.
    Names are placed in the order of `sizes`, so the important come first; one that finds no free place has none.
    """
    taken: list[_Box] = []
    leaders: list[tuple[float, float]] = []  # points along the lines from names to their dots
    along = [point for start, end in pairwise(line) for point in _points(start, end)]
    found: dict[int, Place] = {}
    for i, (width, height) in sizes.items():
        others = [dot for k, dot in enumerate(dots) if k != i]
        free: list[tuple[float, Place, _Box, list[tuple[float, float]]]] = []
        for place, box in _candidates(dots[i], width, height):
            leader = _points((dots[i].x, dots[i].y), (dots[i].x + place.dx, dots[i].y + place.dy))
            leader = leader if place.leader else []
            if not box.within(canvas) or any(box.overlap(other) for other in taken):
                continue
            if any(box.holds(point) for point in leaders) or any(t.holds(point) for t in taken for point in leader):
                continue
            covered = sum(max(0.0, dot.radius + 1 - box.distance(dot.x, dot.y)) for dot in others)
            passed = sum(_passes(dots[i], place, dot) for dot in others) if place.leader else 0
            crossing = sum(box.holds(point) for point in along)
            cost = 8 * covered + 6 * passed + 3 * crossing + math.hypot(place.dx, place.dy) / 4
            free.append((cost, place, box, leader))
        if free:
            _, found[i], box, leader = min(free, key=lambda candidate: candidate[0])
            taken.append(box)
            leaders += leader
    return found


def _candidates(dot: Dot, width: float, height: float) -> Iterator[tuple[Place, _Box]]:
    """Places around a dot with the box of the name there, near ones first, right and above before left and below."""
    for distance in _DISTANCES:
        reach = dot.radius + _GAP + distance
        for step in range(_DIRECTIONS):
            angle = 2 * math.pi * step / _DIRECTIONS
            # the box touches a circle of that reach: its middle lies half its size further out
            dx = reach * math.cos(angle) + width / 2 * _towards(math.cos(angle))
            dy = reach * math.sin(angle) + height / 2 * _towards(math.sin(angle))
            x, y = dot.x + dx, dot.y + dy
            half_w, half_h = width / 2 + _GAP / 2, height / 2 + _GAP / 2
            box = _Box(x - half_w, y - half_h, x + half_w, y + half_h)
            yield Place(dx=dx, dy=dy, leader=distance > _LEADER_FROM), box


def _passes(start: Dot, place: Place, other: Dot) -> bool:
    """True where the line from a dot to its name runs over another dot."""
    x, y = other.x - start.x, other.y - start.y
    along = (x * place.dx + y * place.dy) / (place.dx**2 + place.dy**2)
    along = max(0.0, min(1.0, along))
    return math.hypot(x - along * place.dx, y - along * place.dy) < other.radius


def _towards(part: float) -> float:
    """-1, 0 or 1, softened near 0 so that names slide around a dot instead of jumping."""
    return max(-1.0, min(1.0, 2 * part))


def _points(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """Points four pixels apart along a line."""
    steps = max(1, round(math.dist(start, end) / 4))
    return [
        (start[0] + (end[0] - start[0]) * k / steps, start[1] + (end[1] - start[1]) * k / steps)
        for k in range(steps + 1)
    ]
