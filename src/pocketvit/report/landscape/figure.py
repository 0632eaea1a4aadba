"""The survey's figure as SVG or PNG, drawn by matplotlib; text in an SVG stays text."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...catalogue import Choice, PublishedLatency
from ...files import replace_file
from .. import published
from ..plots import FRONT
from .layout import GREY, LARGEST, TEXT, UNKNOWN, Landscape, landscape, parameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INK, _SOFT, _GRID = "#1c1f24", "#626a76", "#eceef1"
_WIDTH, _HEIGHT = 760.0, 470.0  # of the whole figure, in points, as are all lengths here
_LEFT, _RIGHT, _BOTTOM, _TOP = 52.0, 176.0, 84.0, 56.0  # margins: axis, legend, axis and sources, title
_DPI = 160  # of a PNG
_SOURCE_LINES = 3
_FAINT = 0.25
_STYLE: Any = {
    "font.family": ["DejaVu Sans", "sans-serif"],  # the first ships with matplotlib
    "font.size": 10,
    "svg.fonttype": "none",
    "svg.hashsalt": "pocketvit",  # the same figure is the same file
    "text.parse_math": False,  # a $ in a name is a $
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "axes.edgecolor": _SOFT,
}


def write_figure(choice: Choice, path: Path, around: Sequence[PublishedLatency]) -> None:
    """Draw to `path` in the format of its suffix; see formats.write."""
    import matplotlib

    canvas = (_WIDTH - _LEFT - _RIGHT, _HEIGHT - _BOTTOM - _TOP)
    drawn = landscape(choice, canvas, around)
    kind = path.suffix.lower().removeprefix(".")
    with matplotlib.rc_context(_STYLE), replace_file(path) as partial:
        figure = _figure(drawn, canvas)
        figure.savefig(partial, format=kind, dpi=_DPI, metadata={"Date": None} if kind == "svg" else None)


def _figure(drawn: Landscape, canvas: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH / 72, _HEIGHT / 72), facecolor="white")
    axes = figure.add_axes((_LEFT / _WIDTH, _BOTTOM / _HEIGHT, canvas[0] / _WIDTH, canvas[1] / _HEIGHT))
    _axes(axes, drawn)
    _points(axes, drawn)
    _names(axes, drawn)
    _legend(figure, axes, drawn)
    across = _LEFT / _WIDTH
    figure.text(across, 1 - 20 / _HEIGHT, f"Published latency on {drawn.device}", size=14, weight="bold")
    toolchain = textwrap.shorten(drawn.toolchain, 120, placeholder=" …")
    figure.text(across, 1 - 38 / _HEIGHT, toolchain, size=10, color=_SOFT)
    figure.text(across, 42 / _HEIGHT, _sources(drawn), size=7, color=_SOFT, va="top", linespacing=1.3)
    return figure


def _axes(axes: Axes, drawn: Landscape) -> None:
    from matplotlib.ticker import NullLocator

    if drawn.x.log:
        axes.set_xscale("log")
    axes.set_xlim(drawn.x.low, drawn.x.high)
    axes.set_ylim(drawn.y.low, drawn.y.high)
    axes.set_xticks(drawn.x.ticks, [f"{tick:g}" for tick in drawn.x.ticks])
    axes.set_yticks(drawn.y.ticks, [f"{tick:g}" for tick in drawn.y.ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.grid(color=_GRID, zorder=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(f"latency, ms{' (logarithmic)' if drawn.x.log else ''}")
    axes.set_ylabel("ImageNet-1k top-1, %")


def _points(axes: Axes, drawn: Landscape) -> None:
    ms, top1 = [corner[0] for corner in drawn.front], [corner[1] for corner in drawn.front]
    axes.plot(ms, top1, color=FRONT, linestyle=(0, (2, 2)), linewidth=1.4, zorder=1)
    for order, point in enumerate(drawn.points):
        known = point.params is not None
        axes.scatter(
            point.ms,
            point.top1,
            s=(2 * point.radius) ** 2,
            marker="o" if known else "D",
            facecolor=point.colour if known else "white",
            edgecolor="white" if known else point.colour,
            linewidth=0.8 if known else 1.4,
            alpha=1 if point.inside else _FAINT,
            zorder=2 + order / len(drawn.points),
        )


def _names(axes: Axes, drawn: Landscape) -> None:
    for i, place in drawn.names.items():
        point = drawn.points[i]
        line = {"arrowstyle": "-", "color": FRONT, "linewidth": 0.7, "shrinkA": 1, "shrinkB": point.radius}
        axes.annotate(
            point.row.name,
            (point.ms, point.top1),
            (place.dx, place.dy),
            textcoords="offset points",
            ha="center",
            va="center_baseline",
            size=TEXT * 0.86,
            color=_INK,
            arrowprops=line if place.leader else None,
            zorder=4,
        )


def _legend(figure: Figure, axes: Axes, drawn: Landscape) -> None:
    from matplotlib.lines import Line2D

    def marker(label: str, radius: float, **style: object) -> Line2D:
        return Line2D([], [], linestyle="", marker="o", markersize=2 * radius, label=label, **style)  # type: ignore[arg-type]

    families = [marker(name, 4, color=colour) for name, colour in drawn.families]
    keys = [marker(parameters(count), radius, color=GREY, alpha=0.6) for count, radius in drawn.sizes]
    if any(point.params is None for point in drawn.points):
        keys.append(Line2D([], [], linestyle="", marker="D", markersize=2 * UNKNOWN, markerfacecolor="white"))
        keys[-1].set(markeredgecolor=GREY, label="not known")
    lines = [Line2D([], [], color=FRONT, linestyle=(0, (2, 2)), label="best for its time")]
    if not all(point.inside for point in drawn.points):
        lines.append(marker("outside the budget", 4, color=GREY, alpha=_FAINT))
    left = 1 - (_RIGHT - 14) / _WIDTH
    top = 1 - _TOP / _HEIGHT
    for title, handles in (("", lines), ("family", families), ("parameters (area)", keys)):
        if not handles:
            continue
        found = figure.legend(
            handles=handles,
            title=title,
            loc="upper left",
            bbox_to_anchor=(left, top),
            frameon=False,
            fontsize=8.5,
            title_fontsize=8.5,
            alignment="left",
            borderaxespad=0,
            labelspacing=0.55 if handles is not keys else 0.8,
            handleheight=0.7 if handles is not keys else 2 * LARGEST / 10,
            handletextpad=0.8,
        )
        found.get_title().set_color(_SOFT)
        top -= found.get_window_extent().height / figure.dpi * 72 / _HEIGHT + 8 / _HEIGHT


def _sources(drawn: Landscape) -> str:
    """What the figure stands on, in a few lines; sources that find no room are counted."""
    named = published.sources(point.row for point in drawn.points)
    lines: list[str] = []
    for shown in range(len(named), 0, -1):
        more = [f"and {len(named) - shown} more"] if shown < len(named) else []
        lines = textwrap.wrap(f"Latency and top-1 are published. Sources: {'; '.join([*named[:shown], *more])}", 165)
        if len(lines) <= _SOURCE_LINES:
            break
    return "\n".join(lines[:_SOURCE_LINES])
