"""The terminal table, rendered."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pocketvit.report import cells, table
from pocketvit.types import Evidence


def rendered(rows, width):
    out = io.StringIO()
    Console(file=out, width=width).print(table(rows))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 100, 120])
def test_nothing_is_cut_off(rows, width):
    rows[4] = replace(rows[4], accuracy=replace(rows[4].accuracy, evidence=Evidence.INTERPRETED))
    text = rendered(rows, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    squeezed = "".join(text.split())
    for row in rows:
        forms = f"{row.target}:{row.precision}"
        assert width < 100 or forms in squeezed, f"{forms} is not in {text}"
        for word in row.check.split():
            assert word in text, f"{word!r} was cut off at {width} columns:\n{text}"


def test_numbers_and_their_conditions(rows):
    text = rendered(rows, 120)
    for part in ("97.2%", "identical", "31.2 dB", "98.4% same", "421 kB", "0.387 0.17×", "0.375–0.457", "26/26"):
        assert part in text, f"{part} is not in:\n{text}"
    for part in ("360 images", "2 threads", "50 rounds", "measured on this machine"):
        assert part in " ".join(text.split()), f"{part} is not in:\n{text}"


def test_words_where_there_is_no_number(rows, one):
    line = next(line for line in rendered(rows, 120).splitlines() if "coreml:fp16" in line)
    assert line.count("not run") == 4, line  # top-1, agreement, latency, and the check itself
    assert "not measured" in rendered([one(top1=None, check="passed")], 120)
    assert "not counted" in rendered([one(precision="w8a8")], 120)


def test_evidence_is_said_where_it_is_not_a_measurement(rows):
    assert "predicted" not in rendered(rows, 120)
    rows[1] = replace(rows[1], latency=replace(rows[1].latency, evidence=Evidence.PREDICTED))
    assert "predicted" in rendered(rows, 120)


def test_untrained_in_the_title_and_in_the_rows(rows):
    untrained = [replace(row, trained=False) for row in rows]
    assert "digits_deit_distilled (UNTRAINED)" in rendered(untrained, 100)
    mixed = rendered([rows[0], replace(rows[1], trained=False)], 120)
    assert mixed.count("UNTRAINED") == 1
    assert mixed.count("digits_deit_distilled") == 2


def test_names_are_not_markup_and_cannot_steer_the_terminal(rows):
    hostile = [replace(row, name="[red]x[/red]\x1b[2Jy") for row in rows]
    text = rendered(hostile, 100)
    assert "[red]x[/red]?[2Jy" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1.0 MB"),
        (21_949_000, "21.9 MB"),
        (99_940_000, "99.9 MB"),
        (99_960_000, "100 MB"),
    ],
)
def test_sizes(size, text):
    assert cells.size_text(size) == text


@pytest.mark.parametrize(
    ("ms", "text"),
    [(0.0, "0.00"), (0.01234, "0.0123"), (0.3124, "0.312"), (3.124, "3.12"), (31.24, "31.2"), (3124.0, "3124")],
)
def test_milliseconds(ms, text):
    assert cells.milliseconds(ms) == text


def test_no_rows_no_crash():
    assert "target" in rendered([], 80) or "candidate" in rendered([], 80)


def test_long_checks_are_notes_said_once(rows):
    text = rendered(rows, 100)
    assert text.count("not run, see note") == 2, text
    assert text.count("Note ") == 2, text  # the failed file and both Core ML files, whose words are the same
    assert "364,170 of 364,170 weights" in " ".join(text.split())
