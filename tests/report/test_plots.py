"""The Pareto front against its definition, and the figures against the rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pocketvit.errors import BadInput
from pocketvit.pareto import pareto
from pocketvit.report import plots


def beats(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


def test_pareto_is_what_its_definition_says():
    chance = random.Random(0)
    for case in range(2000):
        # Few distinct values, so that ties and duplicates are common.
        points = [(chance.randrange(6) / 2, chance.randrange(5) / 4) for _ in range(chance.randrange(12))]
        expected = {i for i, p in enumerate(points) if not any(beats(q, p) for q in points)}
        front = pareto(points)
        assert set(front) == expected, f"case {case}: {points} gave {front}, not {sorted(expected)}"
        assert len(front) == len(expected)
        assert [points[i][0] for i in front] == sorted(points[i][0] for i in front)


def test_pareto_refuses_what_is_not_a_number():
    with pytest.raises(BadInput, match="NaN"):
        pareto([(1.0, 0.5), (float("nan"), 0.6)])


def test_a_failed_file_is_shown_faint_and_never_on_the_front(rows):
    best = max(range(len(rows)), key=lambda i: rows[i].target == "torch_export" and rows[i].precision == "w8a8")
    rows[best] = replace(rows[best], latency=replace(rows[best].latency, median_ms=0.01, p10_ms=0.01, p90_ms=0.01))
    front, markers = plots.figure(rows, plots.LATENCY).data
    assert 0.01 in markers.x
    assert 0.01 not in front.x
    assert markers.marker.opacity[list(markers.x).index(0.01)] < 1


def test_hover_holds_every_setting_and_the_evidence(rows):
    words = plots.hover(rows[2], rows)
    for part in ("onnx:w8a8-dynamic", "96.9%", "360 images", "0.387", "421 kB", "31.2 dB", "26/26", "0.17×"):
        assert part in words, f"{part} is not in {words}"
    for key, value in rows[2].settings.items():
        assert f"{key}: {value}" in words
    assert words.count("measured") == 5, words
    assert "&lt;b&gt;" in plots.hover(replace(rows[2], name="<b>"), rows)


def test_every_row_is_drawn_or_spoken_of(rows):
    for cost in (plots.LATENCY, plots.SIZE):
        drawn = len(plots.figure(rows, cost).data[1].x)
        assert drawn + len(plots.unplotted(rows, cost)) == len(rows)


def test_costs_far_apart_get_a_logarithmic_axis(rows, one):
    assert plots.figure(rows, plots.LATENCY).layout.xaxis.type == "log"
    near = plots.figure([one(ms=1.0), one(ms=2.0)], plots.LATENCY).layout.xaxis
    assert (near.type, near.rangemode) == (None, "tozero")


def test_precisions_have_their_own_markers():
    from pocketvit.types import Precision

    names = [plots.symbol(precision)[0] for precision in Precision]
    assert len(set(names)) == len(names)
    assert plots.symbol("w3") == plots.OTHER_SYMBOL
