"""The Pareto front of cost against accuracy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .errors import BadInput


def pareto(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the (cost, accuracy) points that no other point beats, by increasing cost.

    A point is beaten by one that costs no more and scores no less and is better in one of the two; equal points
    do not beat each other. Raises BadInput for a coordinate that is not a number.
    """
    if any(math.isnan(value) for point in points for value in point):
        raise BadInput("A Pareto front needs numbers; one of the points holds a NaN.")
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        best = points[front[-1]] if front else None
        if best is None or points[i][1] > best[1] or points[i] == best:
            front.append(i)
    return tuple(front)
