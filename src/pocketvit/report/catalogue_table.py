"""The catalogue for the terminal: models, devices, and what a device has to offer; readable from 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ..catalogue import Choice, Entry, PublishedLatency, Setup
from ..types import Evidence
from . import published
from .cells import milliseconds as three_digits
from .cells import plain

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

SHOWN_NOTES = 3  # notes of sources beneath a choice; JSON and the page have each
_COUNTED_MARK = "c"


def models_table(listed: Iterable[tuple[str, Entry | None]]) -> Table:
    """One line for each model: its name, and what the catalogue has about it."""
    table = _table("model", "params\nM", "MACs\nG", "acts\nM", "px", "top-1 %\npublished", "weights")
    for name, entry in listed:
        if entry is None:
            table.add_row(_text(name), *[""] * 5, _text("not counted", "dim"))
            continue
        height, width = entry.input_size[1:]
        table.add_row(
            _text(name),
            _scaled(entry.params, 1e6),
            _scaled(entry.macs, 1e9),
            _scaled(entry.activations, 1e6),
            str(width) if width == height else f"{height}x{width}",
            _accuracy(entry),
            _text(entry.weights) if entry.weights else _text("none", "dim"),
        )
    return table


def setups_table(setups: Sequence[Setup]) -> Table:
    """Every device with its toolchains and how many rows each has."""
    table = _table("device", "rows", "toolchain")
    for device, group in groupby(setups, key=lambda setup: setup.device):
        for i, setup in enumerate(group):
            table.add_row(_text("" if i else device, "bold"), str(setup.rows), _text(setup.toolchain))
    return table


def choice_lines(choices: Sequence[Choice], every: bool = False) -> list[RenderableType]:
    """What to print of a device, one table for each toolchain; `every` shows rows off the front too."""
    shown = [row for choice in choices for row in _shown(choice, every)]
    sources = published.sources(shown)
    lines: list[RenderableType] = []
    for choice in choices:
        lines.append(_text(choice.device, "bold").append(f", {plain(choice.toolchain)}", style="not bold"))
        if choice.rows:
            lines += [_rows(choice, every, sources), _text(_said(choice, every), "dim")]
        lines += [_text(reason, "dim" if choice.rows else "") for reason in choice.reasons]
        lines.append("")
    return lines + [_text(line, "dim") for line in _beneath(shown, sources)]


def _shown(choice: Choice, every: bool) -> tuple[PublishedLatency, ...]:
    return choice.rows if every else tuple(choice.rows[i] for i in choice.front)


def _rows(choice: Choice, every: bool, sources: Sequence[str]) -> Table:
    front = {choice.rows[i] for i in choice.front}
    headings = ("latency ms\npublished", "top-1 %\npublished", "params\nM", "px", "read\nfrom")
    table = _table("model", *headings, narrowest=10)
    for row in _shown(choice, every):
        best = "● " if every and row in front else "  " if every else ""
        assumed = "?" if row.resolution_assumed else ""
        table.add_row(
            _text(f"{best}{row.model or row.name}").append("" if row.model else " (not in timm)", style="dim"),
            _marked(f"{row.ms:g}", published.latency(row), sources),
            _marked(f"{100 * (row.top1 or 0.0):.1f}", published.top1(row), sources),
            _marked(_scaled(published.params(row), 1e6), published.params(row), sources),
            f"{row.resolution}{assumed}" if row.resolution else "",
            _text(row.read_from.replace("_", " ").removesuffix(" digitised")),
        )
    return table


def _marked(digits: str, found: published.Figure | None, sources: Sequence[str]) -> Text:
    """A number with the mark of its source."""
    if found is None:
        return _text("not known", "dim")
    mark = str(sources.index(found.source) + 1) if found.evidence is Evidence.PUBLISHED else _COUNTED_MARK
    return _text(digits).append(f" [{mark}]", style="dim")


def _said(choice: Choice, every: bool) -> str:
    best, rows = len(choice.front), len(choice.rows)
    if every:
        return f"● {best} of {rows} that no other beats in both time and top-1."
    others = f"; --all shows the other {rows - best}" if rows > best else ""
    return f"{best} of {rows} that no other beats in both time and top-1{others}."


def _beneath(shown: Sequence[PublishedLatency], sources: Sequence[str]) -> list[str]:
    """The marks in words, then what the sources say about these rows."""
    if not shown:
        return []
    lines = [f"[{i}] published: {plain(source)}" for i, source in enumerate(sources, start=1)]
    weights = dict.fromkeys(found.detail for row in shown if (found := published.top1(row)) and found.detail)
    if weights:
        lines.append(f"top-1 as timm evaluated the weights that were timed: {', '.join(weights)}.")
    if any(found.evidence is not Evidence.PUBLISHED for row in shown if (found := published.params(row))):
        lines.append(f"[{_COUNTED_MARK}] measured: {published.COUNTED}")
    if any(row.resolution_assumed for row in shown):
        lines.append("? the source does not say at which size; this one is usual for the model.")
    notes = list(dict.fromkeys(plain(row.note) for row in shown if row.note))
    if len(notes) > SHOWN_NOTES:
        return [*lines, f"{len(notes)} notes about how these were measured and read: --json has each."]
    return lines + [f"note: {note}" for note in notes]


def _accuracy(entry: Entry) -> str:
    """Top-1 in percent, and the size it was measured at where that is not the counted one."""
    if entry.top1 is None:
        return ""
    elsewhere = entry.top1_size not in (None, entry.input_size[-1])
    return f"{100 * entry.top1:.1f}{f' @{entry.top1_size}' if elsewhere else ''}"


def _scaled(count: float | published.Figure | None, unit: float) -> str:
    value = count.value if isinstance(count, published.Figure) else count
    return "" if value is None else three_digits(value / unit)


def _text(words: str, style: str = "") -> Text:
    """Text that rich shows as it is: square brackets in it are not markup."""
    from rich.text import Text

    return Text(plain(words), style=style)


def _table(first: str, *headings: str, narrowest: int = 20) -> Table:
    """An empty table. narrowest: characters of the first column, the one to give way on a narrow terminal."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    result.add_column(first, overflow="fold", min_width=narrowest)
    for heading in headings:
        words = heading in ("weights", "toolchain", "read\nfrom")
        result.add_column(heading, justify="left" if words else "right", no_wrap=not words, overflow="fold")
    return result
