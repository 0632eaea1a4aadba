"""The terminal table: one row per candidate, readable from 80 columns up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..types import Evidence, Row
from . import cells

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

LONGEST_CHECK = 64  # characters; what says more goes below the table as a numbered note


def table(rows: Sequence[Row]) -> Table:
    """Lay the rows out for the terminal.

    A number that was not measured carries its evidence below it; a number that is missing is replaced by words.
    Where all rows are of one model its name is the title, otherwise it stands in each row. A long check shows its
    first words and continues in a note below the table.
    """
    from rich import box
    from rich.table import Table

    notes = list(dict.fromkeys(cells.plain(row.check) for row in rows if len(row.check) > LONGEST_CHECK))
    models = {cells.model(row) for row in rows}
    one_model = len(models) == 1
    result = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, 0),
        pad_edge=False,
        show_edge=False,
        title=_text(models.pop(), "bold") if one_model else None,
        title_justify="left",
        caption=_below(rows, notes),
        caption_justify="left",
    )
    result.add_column("target:precision" if one_model else "candidate", max_width=28, overflow="fold")
    for heading in ("top-1", "agreement", "size", "latency ms", "quant.\nlayers"):
        result.add_column(heading, justify="right", no_wrap=True)
    result.add_column("check", overflow="fold")
    for row in rows:
        candidate = _text(cells.form(row), "bold")
        if not one_model:
            candidate.append(f"\n{cells.model(row)}", style="" if row.trained else "yellow")
        result.add_row(
            candidate,
            _number(cells.top1(row), with_detail=False),
            _number(cells.agreement(row)),
            _number(cells.size(row)),
            _number(cells.latency(row), after=cells.ratio(row, rows)),
            _number(cells.layers(row)),
            _check(row, notes),
        )
    return result


def _check(row: Row, notes: Sequence[str]) -> Text:
    words = cells.plain(row.check)
    if words in notes:
        words = f"{words.partition(': ')[0][:LONGEST_CHECK]}, see note {notes.index(words) + 1}"
    return _text(words, "red" if cells.failed(row) else "")


def _below(rows: Sequence[Row], notes: Sequence[str]) -> Text | None:
    """The notes, then what the numbers stand on."""
    if not rows:
        return None
    text = _text("".join(f"Note {i}: {note}\n" for i, note in enumerate(notes, start=1)))
    return text.append(" ".join(cells.conditions(rows)), style="dim")


def _text(words: str, style: str = "") -> Text:
    """Text that rich shows as it is: square brackets in it are not markup."""
    from rich.text import Text

    return Text(words, style=style)


def _number(cell: cells.Cell, *, after: str = "", with_detail: bool = True) -> Text:
    text = _text(cell.text, "dim" if cell.key is None else "")
    if after:
        text.append(f" {after}", style="dim")
    if with_detail and cell.detail:
        text.append(f"\n{cell.detail}", style="dim")
    if cell.evidence not in (None, Evidence.MEASURED):
        text.append(f"\n{cell.evidence}", style="yellow")
    return text
