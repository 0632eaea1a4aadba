"""The terminal table: one row per candidate, readable from 80 columns up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..types import Evidence, Row
from . import cells

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def table(rows: Sequence[Row]) -> Table:
    """Lay the rows out for the terminal.

    A number that was not measured carries its evidence below it; a number that is missing is replaced by words.
    Where all rows are of one model its name is the title, otherwise it stands in each row.
    """
    from rich import box
    from rich.table import Table

    models = {cells.model(row) for row in rows}
    one_model = len(models) == 1
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        show_edge=False,
        title=_text(models.pop(), "bold") if one_model else None,
        title_justify="left",
        caption=_text(" ".join(cells.conditions(rows)), "dim") if rows else None,
        caption_justify="left",
    )
    result.add_column("target:precision" if one_model else "model, target", min_width=12, overflow="fold")
    for heading in ("top-1", "agreement", "size", "latency ms", "layers\n8-bit"):
        result.add_column(heading, justify="right")
    result.add_column("check", ratio=1, min_width=16, overflow="fold")
    for row in rows:
        candidate = _text(cells.form(row), "bold")
        if not one_model:
            candidate.append(f"\n{cells.model(row)}", style="" if row.trained else "yellow")
        latency = _number(cells.latency(row))
        times = cells.ratio(row, rows)
        if times:
            latency.append(f"\n{times}", style="dim")
        result.add_row(
            candidate,
            _number(cells.top1(row), with_detail=False),
            _number(cells.agreement(row)),
            _number(cells.size(row)),
            latency,
            _number(cells.layers(row)),
            _text(cells.plain(row.check), "red" if cells.failed(row) else ""),
        )
    return result


def _text(words: str, style: str = "") -> Text:
    """Text that rich shows as it is: square brackets in it are not markup."""
    from rich.text import Text

    return Text(words, style=style)


def _number(cell: cells.Cell, *, with_detail: bool = True) -> Text:
    text = _text(cell.text, "dim" if cell.key is None else "")
    if with_detail and cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    if cell.evidence not in (None, Evidence.MEASURED):
        text.append(f"\n{cell.evidence}", style="yellow")
    return text
