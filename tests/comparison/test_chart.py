"""The bar chart: every row has its place, and the bars are as long as the numbers say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from pocketvit.errors import BadInput
from pocketvit.report.comparison import figure, write_chart
from pocketvit.types import Latency, Row


def _row(target: str, ms: float | None, step: str, check: str = "ok") -> Row:
    latency = None if ms is None else Latency(median_ms=ms, p10_ms=ms * 0.9, p90_ms=ms * 1.2, runs=5, threads=1)
    return Row(
        name="a$b$_vit",
        target=target,
        precision="fp32",
        trained=False,
        file=None,
        size_bytes=None,
        accuracy=None,
        agreement=None,
        latency=latency,
        quantized=None,
        check=check,
        settings={"step": step},
    )


@pytest.fixture
def rows() -> list[Row]:
    return [
        _row("eager", 10.0, "original", "reference"),
        _row("int8", 4.0, "quantized"),
        _row("bad", None, "quantized", "failed: 3.1 dB"),
        _row("mobile", None, "lite", "not run, unavailable here: no XNNPACK"),
    ]


def test_a_bar_for_every_row_as_long_as_its_median(rows: list[Row]) -> None:
    (axes,) = figure(rows).axes
    bars = [bar for group in axes.containers if hasattr(group, "patches") for bar in group.patches]
    assert [bar.get_width() for bar in bars] == [10.0, 4.0, 0, 0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"{row.target}:fp32" for row in rows]
    words = [text.get_text() for text in axes.texts]
    assert words == ["10.0 ms  1.00×", "4.00 ms  0.40×", "failed", "unavailable here"]
    assert axes.get_title(loc="left") == "a$b$_vit (UNTRAINED)"


def test_steps_have_colours_of_their_own(rows: list[Row]) -> None:
    drawn = figure(rows)
    (axes,) = drawn.axes
    bars = [bar for group in axes.containers if hasattr(group, "patches") for bar in group.patches]
    assert bars[0].get_facecolor() != bars[1].get_facecolor()
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["original", "quantized", "lite"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_it_is_written_whole(rows: list[Row], tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"chart.{suffix}"
    write_chart(rows, path)
    if suffix == "png":
        with Image.open(path) as image:
            assert image.width == 8 * 160
    else:
        text = path.read_text()
        assert "unavailable here" in text
        assert "a$b$_vit (UNTRAINED)" in text
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nothing_timed_still_gives_a_chart(tmp_path: Path) -> None:
    write_chart([_row("eager", None, "original", "failed: nothing")], tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 1000


def test_without_matplotlib_the_command_that_installs_it_is_named(
    rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    with pytest.raises(BadInput, match=r"pip install 'pocketvit\[plot\]'"):
        write_chart(rows, tmp_path / "chart.png")
