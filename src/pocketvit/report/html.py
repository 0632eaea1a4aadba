"""One page that holds a whole run and opens offline: plots, sortable table, training, environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..files import replace_file
from ..types import Evidence, Row
from . import cells, plots
from .budget import Budget, verdict
from .page import document, evidence_tag, plot_scripts, text

COLUMNS = ("candidate", "top-1", "agreement", "size", "latency, ms", "layers quantized", "check")


def write_html(
    rows: Sequence[Row],
    environment: Mapping[str, str],
    *,
    title: str,
    about: str,
    path: Path,
    training: Sequence[Mapping[str, object]] = (),
    budget: Budget | None = None,
) -> None:
    """Write the page to `path`, whole or not at all.

    The first row is the reference that latency ratios and the budget's accuracy drop refer to. training: one
    mapping per trained model with a `name` and any further keys; floats under keys that contain 'top1' are shares
    (0..1). The page's Content-Security-Policy allows its own three scripts by hash and no connection of any kind.
    """
    body = "\n".join(
        [
            f"<header><h1>{text(title)}</h1><p class=about>{text(about)}</p>{_verdict(rows, budget)}</header>",
            _plots(rows),
            _candidates(rows),
            _training(training),
            _environment(environment),
        ]
    )
    page = document(title, body, scripts=plot_scripts())
    with replace_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _verdict(rows: Sequence[Row], budget: Budget | None) -> str:
    if budget is None:
        return ""
    result = verdict(rows, budget)
    return f'<p class="verdict {"met" if result.met else "missed"}">{text(result.sentence)}</p>'


def _plots(rows: Sequence[Row]) -> str:
    figures = "".join(_plot(rows, cost) for cost in (plots.LATENCY, plots.SIZE))
    colours = plots.target_colours(rows)
    targets = "".join(f'<li><i style="background:{c}"></i>{text(t)}</li>' for t, c in colours.items())
    precisions = "".join(
        f"<li><b>{plots.symbol(p)[1]}</b>{text(p)}</li>" for p in dict.fromkeys(row.precision for row in rows)
    )
    hollow = "" if all(row.trained for row in rows) else "<li><b>○</b>hollow: UNTRAINED</li>"
    faint = "<li><b style='opacity:.4'>●</b>faint: failed its check</li>" if any(map(cells.failed, rows)) else ""
    return (
        f"<section><h2>What accuracy costs</h2><ul class=legend>{targets}</ul>"
        f"<ul class=legend>{precisions}{hollow}{faint}<li><i class=dots></i>best for its cost</li></ul>"
        f"<div class=plots>{figures}</div></section>"
    )


def _plot(rows: Sequence[Row], cost: plots.Cost) -> str:
    figure = plots.figure(rows, cost).to_json()  # plotly writes "<" as an escape, so no name can end the element
    left_out = "".join(f"<li>{text(sentence)}</li>" for sentence in plots.unplotted(rows, cost))
    beneath = f"<p>Not in this plot:</p><ul>{left_out}</ul>" if left_out else ""
    label = f"Accuracy over {cost.name}; the same numbers are in the table below."
    return (
        f"<figure><h3>Accuracy and {cost.name}</h3>"
        f'<div class=plot id="plot-{cost.name}" role=img aria-label="{label}"></div>'
        f'<script type="application/json" data-for="plot-{cost.name}">{figure}</script>'
        f"<noscript>The plot needs JavaScript; the table below has every number.</noscript>"
        f"<figcaption>{beneath}</figcaption></figure>"
    )


def _candidates(rows: Sequence[Row]) -> str:
    heads = "".join(
        f'<th scope=col class="{"words" if name in ("candidate", "check") else "number"}">'
        f"<button type=button>{name}</button></th>"
        for name in COLUMNS
    )
    notes = " ".join(cells.conditions(rows))
    body = "\n".join(_candidate(row, rows) for row in rows)
    return (
        f"<section><h2>Every candidate</h2><p class=notes>{text(notes)} A click on a heading sorts.</p>"
        f'<div class=scroll tabindex=0 role=region aria-label="Candidates"><table id=candidates>'
        f"<thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div></section>"
    )


def _candidate(row: Row, rows: Sequence[Row]) -> str:
    known = {"file": row.file} if row.file else {}
    settings = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in {**known, **row.settings}.items())
    details = f"<details><summary>settings</summary><dl>{settings}</dl></details>" if settings else ""
    name = f"{text(row.name)}" + ("" if row.trained else " <em class=untrained>UNTRAINED</em>")
    colour = plots.target_colours(rows)[row.target]
    sign = f'<i class=sign style="color:{colour}" aria-hidden=true>{plots.symbol(row.precision)[1]}</i>'
    form = text(cells.form(row)).replace(":", ":<wbr>")
    times = cells.ratio(row, rows)
    latency = cells.latency(row)
    check = "failed" if cells.failed(row) else ""
    return (
        f'<tr><th scope=row data-key="{text(cells.form(row))}">{sign}<strong>{form}</strong>'
        f"<small>{name}</small>{details}</th>"
        f"{_number(cells.top1(row))}{_number(cells.agreement(row))}{_number(cells.size(row))}"
        f"{_number(latency, more=times)}{_number(cells.layers(row))}"
        f'<td class="check {check}" data-key="{text(row.check)}">{text(row.check) or "not checked"}</td></tr>'
    )


def _number(cell: cells.Cell, more: str = "") -> str:
    if cell.key is None:
        return f"<td class=missing>{text(cell.text)}</td>"
    after = f" <span class=times>{text(more)}</span>" if more else ""
    detail = f"<small>{text(cell.detail)}</small>" if cell.detail else ""
    return f'<td class=number data-key="{cell.key}">{text(cell.text)}{after}{detail}{evidence_tag(cell.evidence)}</td>'


def _training(training: Sequence[Mapping[str, object]]) -> str:
    if not training:
        return ""
    keys = list(dict.fromkeys(key for result in training for key in result))
    numeric = {key for key in keys if any(isinstance(result.get(key), int | float) for result in training)}
    heads = "".join(
        f"<th scope=col class={'number' if key in numeric else 'words'}>{text(key.replace('_', ' '))}</th>"
        for key in keys
    )
    body = "".join(
        f"<tr>{''.join(_trained(key, result.get(key), key in numeric) for key in keys)}</tr>" for result in training
    )
    return (
        "<section><h2>Training</h2>"
        "<p class=notes>Shares are of the images in that split; every number was measured on this machine.</p>"
        '<div class="scroll narrow" tabindex=0 role=region aria-label=Training><table id=training>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div></section>"
    )


def _trained(key: str, value: object, numeric: bool) -> str:
    if value is None:
        return "<td class=missing>not measured</td>" if numeric else "<td class=words>–</td>"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"<td class=words>{text(value)}</td>"
    words = cells.percent(value) if "top1" in key else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f"<td class=number>{words}{evidence_tag(Evidence.MEASURED)}</td>"


def _environment(environment: Mapping[str, str]) -> str:
    items = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value)}</dd></div>" for key, value in environment.items())
    return f"<section><h2>Environment</h2><dl class=environment>{items}</dl></section>"
