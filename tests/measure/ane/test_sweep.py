"""Cliffs: found where a case was built to have one, and nowhere else."""

from __future__ import annotations

import pytest
from torch import nn

from pocketvit.measure.ane.sweep import SIZES, SweepPoint, find_cliffs, sweep_point

from .modules import records


def points(bytes_per_pixel, sizes=SIZES):
    return [
        SweepPoint(
            size=size,
            ops=1,
            logical_bytes=1,
            padded_bytes=round(value * size**2),
            wasted_bytes=0,
            places={"a": round(value * size**2)},
        )
        for size, value in zip(sizes, bytes_per_pixel, strict=True)
    ]


@pytest.mark.parametrize(
    ("values", "cliffs"),
    [
        ([10] * 7, []),
        ([10 + (size / 100) ** 2 for size in SIZES], []),  # global attention: grows with the area
        ([3000 / size for size in SIZES], []),  # a last axis that is padded at every size
        ([10, 10, 14, 10, 10, 10, 10], [288]),
        ([10, 10, 10, 10, 10, 10, 13], [512]),
        ([13, 10, 10, 10, 10, 10, 10], [224]),
        ([10, 10, 10, 14, 14, 14, 14], [320]),  # a step counts where it rises
        ([10, 10, 10.5, 10, 10, 10, 10], []),
    ],
)
def test_cliffs_of_constructed_curves(values, cliffs):
    found = find_cliffs(points(values))
    assert [cliff.size for cliff in found] == cliffs, [(cliff.size, round(cliff.excess, 2)) for cliff in found]
    assert all(cliff.excess >= 1.1 for cliff in found)


def test_two_sizes_show_no_cliff():
    assert find_cliffs(points([10, 50], (224, 256))) == ()
    assert find_cliffs([]) == ()


def swept(module, sizes):
    return [sweep_point(size, records(module, (1, 32, size, size))) for size in sizes]


def test_a_map_that_needs_one_more_row_of_lanes_is_a_cliff():
    """Stride 8: 32 columns at 256 px fill one row of 64 bytes exactly, 36 at 288 px need two."""
    module = nn.Sequential(
        nn.Conv2d(32, 8, 8, stride=8), *(nn.Sequential(nn.Conv2d(8, 512, 1), nn.Conv2d(512, 8, 1)) for _ in range(3))
    )
    found = swept(module, (192, 224, 256, 288, 384))
    (cliff,) = find_cliffs(found)
    assert cliff.size == 288, [(point.size, round(point.bytes_per_pixel)) for point in found]
    assert cliff.place == "*.*"


def test_a_model_of_whole_rows_has_none():
    module = nn.Sequential(nn.Conv2d(32, 64, 1), nn.Conv2d(64, 64, 3, padding=1))
    found = swept(module, (64, 96, 128, 160, 192))
    assert find_cliffs(found) == ()
    assert {point.padding_ratio for point in found} == {1.0}
    assert len({round(point.bytes_per_pixel) for point in found}) == 1
