"""Traffic over input sizes: where one more pixel suddenly costs much more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ...types import Evidence
from .graph import OpRecord, anywhere

SIZES = (224, 256, 288, 320, 384, 448, 512)
CLIFF = 1.1  # times what the neighbours predict


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """One size (pixels of a side). places: padded bytes by module path, numbers as '*'.

    windows: the largest that attention works in, as "7x7"; empty where it works in none.
    """

    size: int
    ops: int
    logical_bytes: int
    padded_bytes: int
    wasted_bytes: int
    places: Mapping[str, int] = field(repr=False)
    windows: str = ""

    @property
    def bytes_per_pixel(self) -> float:
        """Padded traffic over the pixels of the image."""
        return self.padded_bytes / self.size**2

    @property
    def padding_ratio(self) -> float:
        """Padded over logical traffic."""
        return self.padded_bytes / max(self.logical_bytes, 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Cliff:
    """A size whose traffic per pixel is `excess` times what its neighbours predict; `place` stands out most."""

    size: int
    excess: float
    place: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """A size the model does not take, and its own words."""

    size: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Sizes in ascending order; every number is predicted. windows: of the model as it is, as in SweepPoint."""

    points: tuple[SweepPoint, ...]
    refused: tuple[Refused, ...]
    cliffs: tuple[Cliff, ...]
    windows: str = ""
    evidence: Evidence = Evidence.PREDICTED


def sweep_point(size: int, ops: Sequence[OpRecord], windows: str = "") -> SweepPoint:
    """Count the traffic at one size."""
    places: dict[str, int] = {}
    for op in ops:
        where = anywhere(op.module) or op.kind
        places[where] = places.get(where, 0) + op.padded_bytes
    return SweepPoint(
        size=size,
        ops=len(ops),
        logical_bytes=sum(op.logical_bytes for op in ops),
        padded_bytes=sum(op.padded_bytes for op in ops),
        wasted_bytes=sum(op.wasted_bytes for op in ops),
        places=places,
        windows=windows,
    )


def find_cliffs(points: Sequence[SweepPoint]) -> tuple[Cliff, ...]:
    """Sizes at which traffic per pixel is 1.1 times or more what the two nearest sizes predict.

    Convolutions move a constant number of bytes per pixel and global attention one that grows with the area, so the
    prediction is a straight line over the area through the neighbours: between them, or beyond them at either end,
    where it is not taken below the lower of the two. Fewer than three sizes have no cliffs.
    """
    found = []
    for i, point in enumerate(points if len(points) > 2 else ()):
        left = min(max(i - 1, 0), len(points) - 3) if i in (0, len(points) - 1) else i - 1
        a, b = [p for p in points[left : left + 3] if p is not point]
        slope = (b.bytes_per_pixel - a.bytes_per_pixel) / (b.size**2 - a.size**2)
        line = a.bytes_per_pixel + slope * (point.size**2 - a.size**2)
        excess = point.bytes_per_pixel / max(line, min(a.bytes_per_pixel, b.bytes_per_pixel))
        if excess >= CLIFF:
            found.append(Cliff(size=point.size, excess=excess, place=_cause(point, a, b)))
    return tuple(found)


def _cause(point: SweepPoint, a: SweepPoint, b: SweepPoint) -> str:
    """The place whose bytes per pixel stand out most from the mean of the neighbours."""

    def stands_out(place: str) -> float:
        near = [p.places.get(place, 0) / p.size**2 for p in (a, b)]
        return point.places[place] / point.size**2 - sum(near) / 2

    return max(point.places, key=stands_out)
