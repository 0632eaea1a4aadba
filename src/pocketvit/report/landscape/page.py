"""The survey's figure as one page that opens offline: the plot by plotly, every row with its sources below."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...catalogue import Choice, PublishedLatency
from ...files import replace_file
from ...types import Evidence
from .. import published
from ..cells import percent
from ..page import document, evidence_tag, plot_scripts, text
from ..plots import FRONT
from .layout import GREY, TEXT, UNKNOWN, Axis, Landscape, Point, landscape, parameters

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

COLUMNS = ("model", "latency, ms", "top-1", "parameters", "multiply-accumulates", "input, px", "read from")
_WIDTH, _HEIGHT = 900, 560  # of the plot in pixels; fixed, since names are placed for it
_ZOOM = 1.2  # pixels of the page for one of the figure's
_MARGIN = {"l": 56, "r": 16, "t": 30, "b": 52}
_FAINT = 0.25
_STYLE = f"""
.landscape {{ display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; overflow-x: auto; }}
.landscape .plot {{ width: {_WIDTH}px; height: {_HEIGHT}px; flex: none; }}
.keys {{ padding-top: 1.6rem; }}
.keys .legend {{ flex-direction: column; margin-bottom: 1.2rem; }}
.keys h3 {{ color: var(--soft); font-weight: 400; }}
.legend b.size {{ border-radius: 50%; background: {GREY}; opacity: 0.6; margin: 0 auto; }}
.legend span.box {{ width: 1.9rem; display: flex; justify-content: center; }}
td small.cite {{ display: inline; }}
a {{ color: var(--accent); }}
ul.about {{ margin-top: 0.6rem; padding-left: 1.2rem; }}
.sources {{ padding-left: 1.6rem; margin: 0; }}
.sources li {{ color: var(--soft); font-size: 0.9rem; overflow-wrap: anywhere; margin-bottom: 0.4rem; }}
tr.front th strong::after {{ content: "\\00a0●"; color: var(--accent); }}
td.words {{ min-width: 9rem; overflow-wrap: anywhere; }}
"""


def write_landscape_page(choice: Choice, path: Path, around: Sequence[PublishedLatency] = ()) -> None:
    """Write the page to `path`, whole or not at all; see formats.write."""
    width, height = _WIDTH - _MARGIN["l"] - _MARGIN["r"], _HEIGHT - _MARGIN["t"] - _MARGIN["b"]
    drawn = landscape(choice, (width / _ZOOM, height / _ZOOM), around)
    body = "\n".join([_header(choice), _plot(drawn), _table(choice), _sources(choice)])
    page = document(_title(drawn.device), body, style=_STYLE, scripts=plot_scripts())
    with replace_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def figure(drawn: Landscape) -> Figure:
    """The plot: a step line for the front, one marker per row, names where the landscape puts them."""
    from plotly import graph_objects as go

    result = go.Figure()
    front = {"color": FRONT, "width": 1.5, "dash": "dot"}
    x, y = [corner[0] for corner in drawn.front], [corner[1] for corner in drawn.front]
    result.add_scatter(x=x, y=y, mode="lines", line=front, hoverinfo="skip", name="front")
    known = [point.params is not None for point in drawn.points]
    result.add_scatter(
        x=[point.ms for point in drawn.points],
        y=[point.top1 for point in drawn.points],
        mode="markers",
        marker={
            "color": [point.colour for point in drawn.points],
            "symbol": ["circle" if found else "diamond-open" for found in known],
            "size": [2 * _ZOOM * point.radius for point in drawn.points],
            "opacity": [1 if point.inside else _FAINT for point in drawn.points],
            "line": {"width": [1 if found else 2 for found in known]},
        },
        hovertext=[_hover(point) for point in drawn.points],
        hovertemplate="%{hovertext}<extra></extra>",
        name="models",
    )
    result.update_layout(
        template="none",
        showlegend=False,
        hovermode="closest",
        hoverlabel={"align": "left"},
        margin=_MARGIN,
        xaxis=_axis(drawn.x, f"latency, ms{' (logarithmic)' if drawn.x.log else ''}"),
        yaxis=_axis(drawn.y, "ImageNet-1k top-1, %"),
        annotations=[_name(drawn, i) for i in drawn.names],
    )
    return result


def _axis(axis: Axis, title: str) -> dict[str, object]:
    ends = [axis.low, axis.high]
    return {
        "title": {"text": title},
        "zeroline": False,
        "type": "log" if axis.log else "linear",
        "range": [math.log10(end) for end in ends] if axis.log else ends,
        "tickvals": list(axis.ticks),
        "ticktext": [f"{tick:g}" for tick in axis.ticks],
    }


def _name(drawn: Landscape, i: int) -> dict[str, object]:
    point, place = drawn.points[i], drawn.names[i]
    found: dict[str, object] = {
        "x": math.log10(point.ms) if drawn.x.log else point.ms,
        "y": point.top1,
        "text": html.escape(point.row.name),
        "font": {"size": _ZOOM * TEXT * 0.95},
        "borderpad": 0,
    }
    if not place.leader:
        return found | {"showarrow": False, "xshift": _ZOOM * place.dx, "yshift": _ZOOM * place.dy}
    line = {"showarrow": True, "arrowhead": 0, "arrowwidth": 1, "arrowcolor": FRONT, "standoff": _ZOOM * point.radius}
    return found | line | {"ax": _ZOOM * place.dx, "ay": -_ZOOM * place.dy}


def _hover(point: Point) -> str:
    row = point.row
    lines = [f"<b>{html.escape(row.name)}</b>", html.escape(row.model or "no model of timm's")]
    facts = [("latency, ms", published.latency(row)), ("top-1", published.top1(row))]
    facts += [("parameters", published.params(row)), ("multiply-accumulates", published.macs(row))]
    for name, found in facts:
        value = _value(name, found)
        known = [str(found.evidence), *filter(None, [found.detail])] if found else []
        lines.append(html.escape(" · ".join([f"{name}: {value}", *known])))
    for words in (f"read from: {row.read_from}", f"source: {row.source}", f"note: {row.note}" if row.note else ""):
        lines += [html.escape(line) for line in textwrap.wrap(words, 60, subsequent_indent="  ")]
    return "<br>".join(lines)


def _value(name: str, found: published.Figure | None) -> str:
    if found is None:
        return "not known"
    if name == "top-1":
        return percent(found.value)
    if name == "latency, ms":
        return f"{found.value:g}"  # the digits of the source
    return parameters(found.value) if name == "parameters" else f"{found.value / 1e9:.3g} G"


def _title(device: str) -> str:
    return f"Published latency on {device}"


def _header(choice: Choice) -> str:
    about = (
        f"{choice.toolchain}: {len(choice.rows)} of {choice.considered} published rows within the budget, "
        f"{len(choice.front)} of them best for their time. Nothing here was timed by pocketvit, and rows of another "
        "device or toolchain cannot be compared with these."
    )
    stated = dict.fromkeys(row.toolchain_stated for row in choice.rows if row.toolchain_stated)
    said = [*(f"As the source states the toolchain: {words}." for words in stated), *choice.reasons]
    reasons = "".join(f"<li>{text(reason)}</li>" for reason in said)
    left_out = f"<ul class=about>{reasons}</ul>" if reasons else ""
    return f"<header><h1>{text(_title(choice.device))}</h1><p class=about>{text(about)}</p>{left_out}</header>"


def _plot(drawn: Landscape) -> str:
    plot = figure(drawn).to_json()  # plotly writes "<" as an escape, so no name can end the element
    families = "".join(f'<li><i style="background:{c}"></i>{text(name)}</li>' for name, c in drawn.families)
    sizes = "".join(
        f'<li><span class=box><b class=size style="width:{side:.1f}px;height:{side:.1f}px"></b></span>'
        f"{parameters(count)}</li>"
        for count, side in ((count, 2 * _ZOOM * radius) for count, radius in drawn.sizes)
    )
    if any(point.params is None for point in drawn.points):
        sizes += f'<li><span class=box style="font-size:{3 * UNKNOWN:.0f}px">◇</span>not known</li>'
    faint = "" if all(p.inside for p in drawn.points) else f"<li><i style='background:{GREY};opacity:{_FAINT}'></i>"
    faint += "outside the budget</li>" if faint else ""
    return (
        "<section><figure><h3>Top-1 against latency</h3><div class=landscape>"
        '<div class=plot id="plot-landscape" role=img aria-label="Top-1 over latency; the table has the numbers.">'
        f'</div><script type="application/json" data-for="plot-landscape">{plot}</script>'
        "<noscript>The plot needs JavaScript; the table below has every number.</noscript>"
        f"<div class=keys><ul class=legend><li><i class=dots></i>best for its time</li>{faint}</ul>"
        f"<h3>family</h3><ul class=legend>{families}</ul><h3>parameters (area)</h3><ul class=legend>{sizes}</ul>"
        "</div></div></figure></section>"
    )


def _table(choice: Choice) -> str:
    words = ("model", "read from")
    heads = "".join(
        f'<th scope=col class="{"words" if name in words else "number"}"><button type=button>{name}</button></th>'
        for name in COLUMNS
    )
    sources = published.sources(choice.rows)
    body = "\n".join(_row(row, i in choice.front, sources) for i, row in enumerate(choice.rows))
    return (
        "<section><h2>Every row within the budget</h2><p class=notes>A dot marks the best for their time. Numbers in "
        "brackets lead to the sources below. A click on a heading sorts.</p>"
        f'<div class=scroll tabindex=0 role=region aria-label="Rows"><table id=candidates><thead><tr>{heads}</tr>'
        f"</thead><tbody>\n{body}\n</tbody></table></div></section>"
    )


def _row(row: PublishedLatency, front: bool, sources: Sequence[str]) -> str:
    known = [("latency, ms", published.latency(row)), ("top-1", published.top1(row))]
    known += [("parameters", published.params(row)), ("multiply-accumulates", published.macs(row))]
    numbers = "".join(_number(name, found, sources) for name, found in known)
    assumed = "<small>assumed</small>" if row.resolution_assumed else ""
    size = f'<td class=number data-key="{row.resolution}">{row.resolution}{assumed}</td>'
    note = f"<small>{text(row.note)}</small>" if row.note else ""
    return (
        f'<tr{" class=front" if front else ""}><th scope=row data-key="{text(row.name)}"><strong>{text(row.name)}'
        f"</strong><small>{text(row.model or 'not in timm')}</small></th>{numbers}"
        f"{size if row.resolution else '<td class=missing>not stated</td>'}"
        f'<td class=words data-key="{text(row.read_from)}">{text(row.read_from.replace("_", " "))}{note}</td></tr>'
    )


def _number(name: str, found: published.Figure | None, sources: Sequence[str]) -> str:
    if found is None:
        return "<td class=missing>not known</td>"
    place = ""
    if found.evidence is Evidence.PUBLISHED:
        number = sources.index(found.source) + 1
        place = f' <small class=cite><a href="#source-{number}">[{number}]</a></small>'
    of = f"<small>{text(found.detail)}</small>" if found.detail else ""
    value = f"{_value(name, found)}{place}{evidence_tag(found.evidence)}{of}"
    return f'<td class=number data-key="{found.value}">{value}</td>'


def _sources(choice: Choice) -> str:
    items = "".join(
        f'<li id="source-{i}">{text(source)}</li>' for i, source in enumerate(published.sources(choice.rows), start=1)
    )
    return f"<section><h2>Sources</h2><ol class=sources>{items}</ol></section>"
