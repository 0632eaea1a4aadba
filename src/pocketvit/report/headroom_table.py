"""An fp16 audit for the terminal: what overflows, what rounding does to the answers, what a repair changed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from ..targets.coreml.findings import ConstantHeadroom, Headroom, OpHeadroom
    from ..targets.coreml.repair import Repaired
    from ..targets.coreml.rounding import Rounded

SHOWN = 12  # findings, rewrites and refusals, unless all are asked for


def headroom_lines(found: Headroom, answers: Iterable[Rounded], every: bool = False) -> list[RenderableType]:
    """What to print of an audit, the worst findings first."""
    from rich.markup import escape

    from ..targets.coreml.findings import State

    lines: list[RenderableType] = [escape(found.sentence)]
    findings = [item for state in State if state is not State.FINE for item in found.of(state)]
    if findings:
        lines.append(_findings(findings if every else findings[:SHOWN]))
    lines += _more(len(findings), every)
    return [*lines, *(escape(answer.sentence) for answer in answers)]


def repair_lines(repaired: Repaired, answers: Iterable[Rounded], every: bool = False) -> list[RenderableType]:
    """What to print of a repair: rewrites, what is left and why, the answers afterwards."""
    from rich.markup import escape

    lines: list[RenderableType] = [f"[bold]Repair[/bold]: {escape(repaired.sentence)}"]
    shown = None if every else SHOWN
    lines += [f"  {change.rewrite}: {escape(change.detail)}" for change in repaired.changes[:shown]]
    lines += _more(len(repaired.changes), every)
    lines += [
        f"  [red]left[/red] {escape(refusal.op)}: {escape(refusal.reason)}" for refusal in repaired.refusals[:shown]
    ]
    lines += _more(len(repaired.refusals), every)
    if repaired.path is not None:
        lines.append(f"{escape(str(repaired.path))}: {escape(repaired.after.sentence)}")
        lines += [escape(answer.sentence) for answer in answers]
    return lines


def _findings(found: list[OpHeadroom | ConstantHeadroom]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table("state", "reach", "kind", "operation", "why", box=None, pad_edge=False)
    for item in found:
        reach = "inf" if math.isinf(item.worst) else f"{item.worst:.3g}x"
        table.add_row(item.state, reach, item.kind, Text(item.name), Text(item.because))
    return table


def _more(count: int, every: bool) -> list[RenderableType]:
    return [] if every or count <= SHOWN else [f"... and {count - SHOWN} more; --all lists them, --json has each."]
