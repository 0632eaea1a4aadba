"""The bar chart of a comparison: how long each form of one model takes, drawn by matplotlib."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BadInput
from ..files import replace_file
from ..types import Row
from . import cells
from .plots import FRONT, PALETTE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_INK, _SOFT = "#1c1f24", "#626a76"
_BAR, _AROUND = 0.36, 1.5  # inches of height: one bar, and title, axis and legend
_WIDTH = 8.0
_DPI = 160


def check_chart() -> None:
    """Raise BadInput unless a chart can be drawn here."""
    if importlib.util.find_spec("matplotlib") is None:
        raise BadInput("The bar chart needs matplotlib: pip install 'pocketvit[plot]'")


def write_chart(rows: Sequence[Row], path: Path) -> None:
    """Draw rows of one model to `path` (.png or .svg), whole or not at all.

    One bar per row, in order: its median latency with p10 and p90, coloured by settings["step"], with the ratio to the
    first row at its end. A row that was not timed has its place and says so.
    """
    import matplotlib

    check_chart()
    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "pocketvit", "text.parse_math": False, "text.color": _INK}
    with matplotlib.rc_context(style), replace_file(path) as partial:
        figure(rows).savefig(partial, format=path.suffix.removeprefix("."), dpi=_DPI)


def figure(rows: Sequence[Row]) -> Figure:
    """The chart as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    result = Figure(figsize=(_WIDTH, _AROUND + _BAR * len(rows)), facecolor="white", layout="constrained")
    axes = result.add_subplot()
    steps = dict.fromkeys(row.settings.get("step", "") for row in rows)
    colours = dict(zip(steps, PALETTE, strict=False))
    longest = max((row.latency.p90_ms for row in rows if row.latency), default=1.0)
    for place, row in enumerate(rows):
        if row.latency is None:
            words = "failed" if cells.failed(row) else "unavailable here"
            axes.barh(place, 0)  # every form has a bar, if an empty one
            axes.text(longest * 0.01, place, words, va="center", size=8, color=_SOFT, style="italic")
            continue
        ms, low, high = row.latency.median_ms, row.latency.p10_ms, row.latency.p90_ms
        axes.barh(place, ms, height=0.7, color=colours[row.settings.get("step", "")])
        axes.errorbar(ms, place, xerr=[[ms - low], [high - ms]], ecolor=FRONT, elinewidth=1, capsize=2, fmt="none")
        label = f"{cells.milliseconds(ms)} ms  {cells.ratio(row, rows)}"
        axes.text(high + longest * 0.01, place, label, va="center", size=8)
    axes.set_yticks(range(len(rows)), [cells.form(row) for row in rows], size=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first row on top
    axes.set_xlim(0, longest * 1.22)  # room for the words at the end of the longest
    axes.set_xlabel("latency, ms at batch 1 (median; line: p10–p90)", color=_SOFT, size=8)
    axes.tick_params(colors=_SOFT, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.set_title(cells.model(rows[0]), loc="left", size=11, weight="bold")
    legend = [Patch(color=colour, label=step) for step, colour in colours.items() if step]
    result.legend(handles=legend, loc="outside lower left", ncols=len(legend), frameon=False, fontsize=8)
    return result
