"""An audit as one page that opens offline, without scripts: totals, findings by waste, the sweep, the sources."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..files import replace_file
from ..measure.ane.audit import Audit, Group
from ..measure.ane.compute_plan import Score
from ..measure.ane.matches import Severity
from ..measure.ane.rules import RULES
from ..measure.ane.sweep import Sweep, SweepPoint
from .audit_table import LOCATED, off_engine_text, rest, score_lines, sweep_lines, unknown, waste
from .cells import percent, size_text
from .page import document, evidence_tag, text

_WIDTH, _HEIGHT, _LEFT, _BASE = 720, 260, 64, 36  # of the sweep's plot, in its own units
_STYLE = """
h1 { overflow-wrap: anywhere; }
.totals { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 12rem), 1fr)); gap: 1rem 1.5rem;
  margin: 1.5rem 0 0; }
.totals dt { color: var(--soft); font-size: 0.8rem; }
.totals dd { font-size: 1.35rem; font-variant-numeric: tabular-nums; letter-spacing: -0.01em; }
.totals dd small { font-size: 0.75rem; letter-spacing: 0; }
td.wide { min-width: 14rem; overflow-wrap: anywhere; }
td.wide small { color: var(--soft); }
.bar { display: block; height: 4px; margin-top: 0.35rem; border-radius: 2px; background: var(--warn); }
.kind { font-size: 0.75rem; padding: 0.05rem 0.4rem; border: 1px solid var(--line); border-radius: 4px; }
.kind.blocks { color: var(--bad); background: var(--bad-paper); border-color: transparent; }
.kind.risk { color: var(--warn); }
svg.sweep { width: 100%; height: auto; display: block; }
svg.sweep text { fill: var(--soft); font-size: 12px; }
svg.sweep .grid { stroke: var(--grid); }
svg.sweep .padded { fill: none; stroke: var(--accent); stroke-width: 2; }
svg.sweep .logical { fill: none; stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 4 4; }
svg.sweep circle { fill: var(--accent); }
svg.sweep circle.cliff { fill: var(--bad); }
.sources dd { margin: 0 0 0.9rem; color: var(--soft); font-size: 0.9rem; overflow-wrap: anywhere; }
.sources dt { font-weight: 600; font-size: 0.9rem; }
@media (max-width: 600px) {
  #findings thead { display: none; }
  #findings, #findings tbody { display: block; }
  #findings tr { display: block; padding: 0.6rem 0.7rem; border-top: 1px solid var(--line); }
  #findings tr:first-child { border-top: 0; }
  #findings td { display: block; border: 0; padding: 0.1rem 0; min-width: 0; text-align: left; white-space: normal;
    overflow-wrap: anywhere; }
  #findings td:first-child { font-weight: 600; }
  #findings td[data-name]::before { content: attr(data-name) ": "; color: var(--soft); font-size: 0.8rem; }
}
"""


def write_audit_page(
    audit: Audit, *, title: str, path: Path, sweep: Sweep | None = None, score: Score | None = None
) -> None:
    """Write the page to `path`, whole or not at all."""
    body = "\n".join([_header(audit, title), _findings(audit), _sweep(sweep), _score(score), _sources(audit)])
    # without scripts, its policy lets nothing run: the page is text, styles and drawn lines
    page = document(title, body, style=_STYLE)
    with replace_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _header(audit: Audit, title: str) -> str:
    facts = [
        ("padded traffic", size_text(audit.padded_bytes), f"{audit.padding_ratio:.2f}x the logical"),
        ("logical traffic", size_text(audit.logical_bytes), "activations read and written"),
        ("wasted", size_text(audit.wasted_bytes), f"{percent(audit.wasted_share)} carry no computation"),
        ("layout copies", str(audit.layout_copies), f"{size_text(audit.layout_copy_bytes)} moved"),
        ("transposes", str(audit.transposes), "among the layout copies"),
        ("operations", str(audit.ops), off_engine_text(audit)),
        ("highest rank", str(audit.highest_rank), "5 is the most Core ML takes"),
        ("weights", size_text(audit.weight_bytes), f"largest activation {size_text(audit.largest_bytes)}"),
    ]
    cells = "".join(
        f"<div><dt>{name}</dt><dd>{value}<small>{text(more)}</small>{evidence_tag(audit.evidence)}</dd></div>"
        for name, value, more in facts
    )
    left_out = "".join(f"<p class=about>{line}</p>" for line in unknown(audit))
    about = (
        "What the Neural Engine would have to move for one image, counted from the graph. The last axis of every "
        "activation is padded to 64 bytes; reshapes that keep it are free. Nothing ran on a Neural Engine, and no "
        "number here is a time."
    )
    return f"<header><h1>{text(title)}</h1><p class=about>{about}</p><dl class=totals>{cells}</dl>{left_out}</header>"


def _findings(audit: Audit) -> str:
    groups = audit.groups
    left = "".join(f"<p class=notes>{text(line)}</p>" for line in rest(audit))
    if not groups:
        return f"<section><h2>Findings</h2><p class=notes>No rule applies.</p>{left}</section>"
    most = max(group.wasted_bytes for group in groups) or 1
    rows = "\n".join(_finding(group, most) for group in groups)
    return (
        "<section><h2>Findings, most wasteful first</h2><p class=notes>Places alike stand in one line, with * for "
        "their numbers and the worst of them below; in a file, after is the module of the last weight before. Waste "
        "is charged to one line only, and what no line names stands last, so that they add up to the waste above.</p>"
        '<div class=scroll tabindex=0 role=region aria-label="Findings"><table id=findings><thead><tr>'
        "<th scope=col class=number>wasted</th><th scope=col>rule</th><th scope=col class=number>places</th>"
        "<th scope=col>where</th><th scope=col>what</th><th scope=col>fix</th></tr></thead>"
        f"<tbody>\n{rows}\n</tbody></table></div>{left}</section>"
    )


def _finding(group: Group, most: int) -> str:
    worst = group.worst
    place = worst.source or LOCATED.get(worst.located, "")
    bar = f'<span class=bar style="width:{100 * group.wasted_bytes / most:.1f}%"></span>' if group.wasted_bytes else ""
    severity = f'<span class="kind {group.severity}">{group.severity}</span>'
    # the first column names the severity of what wastes nothing; one that wastes all the same says it by its rule
    first = waste(group) if waste(group) != group.severity else severity
    kind = f" {severity}" if first != severity and group.severity is not Severity.WASTE else ""
    return (
        f"<tr><td class=number>{first}{bar}</td><td data-name=rule>{text(group.rule)}{kind}</td>"
        f"<td class=number data-name=places>{group.count}</td>"
        f"<td class=wide data-name=where>{text(group.where)}<small>{text(place)}</small></td>"
        f"<td class=wide data-name=what>{text(worst.what)}<small>{text(worst.op)} {text(worst.shapes)}</small></td>"
        f"<td data-name=fix>{text(group.rewrite.value)}</td></tr>"
    )


def _sweep(sweep: Sweep | None) -> str:
    if sweep is None:
        return ""
    said = "".join(f"<li>{text(line)}</li>" for line in sweep_lines(sweep))
    rows = "".join(
        f"<tr><th scope=row>{p.size}</th><td class=number>{p.bytes_per_pixel:,.0f}</td>"
        f"<td class=number>{size_text(p.padded_bytes)}</td><td class=number>{p.padding_ratio:.2f}x</td>"
        f"<td class=number>{size_text(p.wasted_bytes)}</td><td class=number>{p.ops}</td></tr>"
        for p in sweep.points
    )
    table = (
        "<div class='scroll narrow'><table><thead><tr><th scope=col>side, px</th><th scope=col class=number>bytes "
        "per pixel</th><th scope=col class=number>padded</th><th scope=col class=number>padding</th>"
        "<th scope=col class=number>wasted</th><th scope=col class=number>operations</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )
    plot = _plot(sweep) if len(sweep.points) > 1 else ""
    head = f"<h2>Input sizes</h2>{evidence_tag(sweep.evidence)}"
    return f"<section>{head}{plot}<ul>{said}</ul>{table if rows else ''}</section>"


def _plot(sweep: Sweep) -> str:
    """Bytes per pixel over the side, padded and logical; both from zero, so that heights compare."""
    points = sweep.points
    top = max(point.bytes_per_pixel for point in points) * 1.1
    first, last = points[0].size, points[-1].size
    cliffs = {cliff.size for cliff in sweep.cliffs}

    def at(size: int, value: float) -> tuple[float, float]:
        across = _LEFT + (_WIDTH - _LEFT - 24) * (size - first) / (last - first)
        return across, _HEIGHT - _BASE - (_HEIGHT - _BASE - 12) * value / top

    def line(of: Sequence[tuple[SweepPoint, float]]) -> str:
        return " ".join("{:.1f},{:.1f}".format(*at(point.size, value)) for point, value in of)

    padded = line([(point, point.bytes_per_pixel) for point in points])
    logical = line([(point, point.logical_bytes / point.size**2) for point in points])
    marks = ""
    for point in points:
        x, y = at(point.size, point.bytes_per_pixel)
        radius, kind = (6, ' class="cliff"') if point.size in cliffs else (4, "")
        marks += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}"{kind}/>'
        marks += f'<text x="{x:.1f}" y="{_HEIGHT - 12}" text-anchor="middle">{point.size}</text>'
    grid = ""
    for part in (0.0, 0.5, 1.0):
        value = top / 1.1 * part
        _, y = at(first, value)
        grid += f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
        grid += f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:,.0f}</text>'
    return (
        f'<figure><h3>Bytes moved per pixel</h3><svg class="sweep" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        'aria-label="Padded and logical traffic per pixel over the side of the input; the table has the numbers.">'
        f'{grid}<polyline class="logical" points="{logical}"/><polyline class="padded" points="{padded}"/>{marks}'
        "</svg><figcaption>Solid: padded; dashed: without padding; a red dot is a cliff.</figcaption></figure>"
    )


def _score(score: Score | None) -> str:
    if score is None:
        return ""
    said = "".join(f"<li>{text(line)}</li>" for line in score_lines(score, every=True))
    return f"<section><h2>Against the compute plan</h2><ul>{said}</ul></section>"


def _sources(audit: Audit) -> str:
    used = {finding.rule for finding in audit.findings}
    items = "".join(
        f"<dt>{rule.id}{' (reported by users)' if rule.reported else ''}</dt>"
        f"<dd>{text(rule.fact)}<br>{text(rule.source)}</dd>"
        for rule in RULES
        if rule.id in used
    )
    return f"<section><h2>What the rules rest on</h2><dl class=sources>{items}</dl></section>" if items else ""
