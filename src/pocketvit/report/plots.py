"""Accuracy against what it costs: the Pareto front, as plotly figures."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..pareto import pareto
from ..types import Row
from . import cells

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Mid-tones that read on white and on near-black.
PALETTE = (
    "#3b82f6",
    "#f59e0b",
    "#10b981",
    "#ef4444",
    "#8b5cf6",
    "#06b6d4",
    "#ec4899",
    "#84cc16",
    "#b45309",
    "#64748b",
)
# plotly's name of the marker, and the character that stands for it in the legend.
SYMBOLS = {
    "fp32": ("circle", "●"),
    "fp16": ("triangle-up", "▲"),
    "bf16": ("triangle-down", "▼"),
    "w8": ("square", "■"),
    "w8a8": ("diamond", "◆"),
    "w8a8-dynamic": ("star", "★"),
    "w4": ("pentagon", "⬟"),
    "integer-only": ("hexagon", "⬢"),
}
OTHER_SYMBOL = ("x", "✖")
FRONT = "#8a919c"
LOG_FROM_SPREAD = 5  # costs further apart than this factor are drawn on a logarithmic axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """What a candidate is charged for: the x axis of a plot."""

    name: str
    title: str
    cell: Callable[[Row], cells.Cell]
    scale: float = 1.0  # from the cell's key to the axis

    def of(self, row: Row) -> float | None:
        """The row's cost in the axis's unit, or None where it is not known."""
        key = self.cell(row).key
        return None if key is None else key * self.scale


LATENCY = Cost(name="latency", title="latency, ms (median; bar: p10–p90)", cell=cells.latency)
SIZE = Cost(name="size", title="file size, MB", cell=cells.size, scale=1e-6)


def figure(rows: Sequence[Row], cost: Cost) -> Figure:
    """Top-1 over cost: one marker per row that has both numbers, and the front as a step line.

    Colour stands for the target, shape for the precision; hollow is an untrained model, faint a file that failed
    its check, which is never on the front. The hover text holds everything known about the row. Colours of text and
    grid are left to the page.
    """
    from plotly import graph_objects as go

    shown = [(row, x, row.accuracy.top1 * 100) for row in rows if row.accuracy and (x := cost.of(row)) is not None]
    colours = target_colours(rows)
    sound = [(x, y) for row, x, y in shown if not cells.failed(row)]
    front = [sound[i] for i in pareto(sound)]
    result = go.Figure()
    result.add_scatter(
        x=[x for x, _ in front],
        y=[y for _, y in front],
        mode="lines",
        line={"color": FRONT, "width": 1.5, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
        name="front",
    )
    markers = go.scatter.Marker(
        color=[colours[row.target] for row, _, _ in shown],
        symbol=[symbol(row.precision)[0] + ("" if row.trained else "-open") for row, _, _ in shown],
        size=12,
        opacity=[0.4 if cells.failed(row) else 1 for row, _, _ in shown],
        line={"width": [1 if row.trained else 2 for row, _, _ in shown]},
    )
    result.add_scatter(
        x=[x for _, x, _ in shown],
        y=[y for _, _, y in shown],
        mode="markers",
        marker=markers,
        error_x=_spread([row for row, _, _ in shown]) if cost is LATENCY else None,
        hovertext=[hover(row, rows) for row, _, _ in shown],
        hovertemplate="%{hovertext}<extra></extra>",
        name="candidates",
    )
    result.update_layout(
        template="none",
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
        margin={"l": 56, "r": 16, "t": 30, "b": 52},
        xaxis=_cost_axis([x for _, x, _ in shown], cost.title),
        yaxis={"title": {"text": "top-1, %"}, "zeroline": False, "automargin": True},
    )
    return result


def unplotted(rows: Sequence[Row], cost: Cost) -> tuple[str, ...]:
    """One sentence for each row that has no marker in `figure`, with the reason its check gives."""
    sentences = []
    for row in rows:
        lacks = [name for name, value in (("accuracy", row.accuracy), (cost.name, cost.of(row))) if value is None]
        if lacks:
            check = cells.plain(row.check).partition(". ")[0].rstrip(".")  # the table has the rest
            reason = f" ({check})" if check else ""
            sentences.append(f"{cells.form(row)} of {cells.model(row)} has no {' and no '.join(lacks)}{reason}.")
    return tuple(sentences)


def target_colours(rows: Sequence[Row]) -> dict[str, str]:
    """A colour for each target, in the order in which the rows name them."""
    targets = dict.fromkeys(row.target for row in rows)
    return {target: PALETTE[i % len(PALETTE)] for i, target in enumerate(targets)}


def symbol(precision: str) -> tuple[str, str]:
    """Name plotly's marker for a precision, and the character that looks like it."""
    return SYMBOLS.get(precision, OTHER_SYMBOL)


def hover(row: Row, rows: Sequence[Row]) -> str:
    """Everything known about a row, every number with its evidence, as plotly's hover HTML (escaped)."""
    facts = [("top-1", cells.top1(row)), ("latency, ms", cells.latency(row)), ("size", cells.size(row))]
    facts += [("agreement", cells.agreement(row)), ("layers quantized", cells.layers(row))]
    lines = [f"<b>{html.escape(cells.form(row))}</b>", html.escape(cells.model(row))]
    for name, cell in facts:
        evidence = f" · {cell.evidence}" if cell.evidence else ""
        detail = f" ({cell.detail})" if cell.detail else ""
        lines.append(html.escape(f"{name}: {cell.text}{detail}{evidence}"))
    times = cells.ratio(row, rows)
    words = [f"latency against the first row: {times}"] if times else []
    words += [f"threads: {row.latency.threads}, rounds: {row.latency.runs}"] if row.latency else []
    words += [f"check: {cells.plain(row.check)}"] if row.check else []
    words += [f"{cells.plain(key)}: {cells.plain(value)}" for key, value in row.settings.items()]
    lines += [html.escape(line) for word in words for line in textwrap.wrap(word, 48, subsequent_indent="  ")]
    return "<br>".join(lines)


def _spread(rows: Sequence[Row]) -> dict[str, object]:
    """Bars from the 10th to the 90th percentile of the latency."""
    known = [row.latency for row in rows if row.latency]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, latency.p90_ms - latency.median_ms) for latency in known],
        "arrayminus": [max(0.0, latency.median_ms - latency.p10_ms) for latency in known],
        "color": FRONT,
        "thickness": 1,
        "width": 3,
    }


def _cost_axis(values: Sequence[float], title: str) -> dict[str, object]:
    axis: dict[str, object] = {"title": {"text": title}, "zeroline": False, "automargin": True}
    if not values or min(values) <= 0 or max(values) / min(values) < LOG_FROM_SPREAD:
        return axis | {"rangemode": "tozero"}
    low, high = min(values) / 1.3, max(values) * 1.3
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [m * 10.0**e for e in decades for m in (1, 2, 5)]
    return axis | {
        "type": "log",
        "range": [math.log10(low), math.log10(high)],
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
    }
