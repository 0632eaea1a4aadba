"""An audit for the terminal: totals, the most wasteful findings, the sweep, the score. Readable from 80 columns."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..measure.ane.audit import Audit, Group
from ..measure.ane.compute_plan import Score
from ..measure.ane.matches import Severity
from ..measure.ane.sweep import Sweep
from .cells import percent, plain, size_text

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.measure import Measurement
    from rich.table import Table

SHOWN = 7  # groups of findings, and disagreements, unless all are asked for
LOCATED = {"weight": " (weight's name)", "after": " (after that weight)", "op": " (operation)"}  # of a file's places


def audit_lines(
    audit: Audit, *, sweep: Sweep | None = None, score: Score | None = None, every: bool = False
) -> list[RenderableType]:
    """What to print, top to bottom; `every` shows all groups of findings instead of the first 7."""
    from rich.markup import escape

    groups = audit.groups if every else audit.groups[:SHOWN]
    lines: list[RenderableType] = [*map(escape, totals(audit))]
    if groups:
        lines.append(_findings(groups))
        lines.append(_reading(groups))
    if len(audit.groups) > len(groups):
        lines.append(f"... and {len(audit.groups) - len(groups)} more; --all lists them, --html and --json have each.")
    lines += rest(audit)
    if sweep is not None:
        if sweep.points:
            lines += [f"Padded traffic at other sizes, {sweep.evidence}:", _sizes(sweep)]
        lines += map(escape, sweep_lines(sweep))
    if score is not None:
        lines += map(escape, score_lines(score, every))
    return lines


def before_lines(before: Audit, after: Audit) -> list[RenderableType]:
    """What passes changed, as a table of the counts before and after them."""
    from rich.table import Table

    table = Table(title=f"before and after ({after.evidence})", title_justify="left", box=None, pad_edge=False)
    for heading, justify in (("", "left"), ("before", "right"), ("after", "right")):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for name, values in (
        ("padded traffic", [size_text(one.padded_bytes) for one in (before, after)]),
        ("of it without computation", [size_text(one.wasted_bytes) for one in (before, after)]),
        ("layout copies", [str(one.layout_copies) for one in (before, after)]),
        ("transposes", [str(one.transposes) for one in (before, after)]),
        ("operations", [str(one.ops) for one in (before, after)]),
        ("highest rank", [str(one.highest_rank) for one in (before, after)]),
        ("off the Neural Engine", [str(one.off_engine) for one in (before, after)]),
    ):
        table.add_row(name, *values)
    return [table]


def totals(audit: Audit) -> tuple[str, ...]:
    """What the whole model moves, in three sentences; a fourth where sizes are not known."""
    return (
        f"{audit.ops} operations, rank {audit.highest_rank} at most, {size_text(audit.weight_bytes)} of weights; "
        + off_engine_text(audit),
        f"moves {size_text(audit.padded_bytes)} padded, {size_text(audit.logical_bytes)} without padding "
        f"({audit.padding_ratio:.2f}x); {size_text(audit.wasted_bytes)} ({percent(audit.wasted_share)}) carry no "
        "computation",
        f"{audit.layout_copies} layout copies move {size_text(audit.layout_copy_bytes)}, {audit.transposes} of them "
        f"transposes; largest activation {size_text(audit.largest_bytes)} (all {audit.evidence})",
        *unknown(audit),
    )


def unknown(audit: Audit) -> list[str]:
    """How many operations no count of bytes holds, in a sentence; none where all are known."""
    return [f"sizes unknown: {audit.left_out} operations left out of the bytes"] if audit.left_out else []


def off_engine_text(audit: Audit) -> str:
    """How many operations are predicted to run elsewhere, and how many for which reason."""
    reasons = ", ".join(f"{plain(reason)} {count}" for reason, count in audit.off_engine_reasons.items())
    return f"{audit.off_engine} {audit.evidence} off the Neural Engine{f' ({reasons})' if reasons else ''}"


def rest(audit: Audit) -> list[str]:
    """What the findings leave to the total, in a sentence; none where they leave nothing."""
    if not audit.small_padding_bytes:
        return []
    left = size_text(audit.small_padding_bytes)
    return [f"{left} padding in operations that waste less than a fifth, which no finding names"]


def _reading(groups: tuple[Group, ...]) -> str:
    """How to read the places."""
    after = "; after: the module is that of the last weight before it" if any(_is_after(g) for g in groups) else ""
    return f"[dim]where: the module, * for any number, and its worst line or operation{after}[/dim]"


def _is_after(group: Group) -> bool:
    return group.worst.located == "after"


def _findings(groups: tuple[Group, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("wasted", justify="right", no_wrap=True)
    table.add_column("rule", no_wrap=True)
    table.add_column("places", justify="right", no_wrap=True)
    table.add_column("where", overflow="fold", ratio=1)
    table.add_column("fix", max_width=29)
    for group in groups:
        line = f" {group.worst.source}" if group.worst.source else LOCATED.get(group.worst.located, "")
        table.add_row(
            waste(group),
            group.rule,
            str(group.count),
            _Place(plain(f"{group.where}{line}")),
            group.rewrite.value,
        )
    return table


class _Place:
    """A path and what follows it, broken between the two, else after a dot or an underscore, last within a word."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        from rich.text import Text

        lines = [""]
        for word in self.text.split():
            for part in [word] if len(word) <= options.max_width else re.split(r"(?<=[._])", word):
                gap = " " if lines[-1] and part is word else ""
                if lines[-1] and len(lines[-1] + gap + part) > options.max_width:
                    lines.append("")
                    gap = ""
                lines[-1] += gap + part
        yield from (Text(line, overflow="fold") for line in lines)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        from rich.measure import Measurement

        longest = max(map(len, re.split(r"(?<=[._ ])", self.text)))
        return Measurement(min(longest, options.max_width), min(len(self.text), options.max_width))


def _sizes(sweep: Sweep) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_edge=False)
    for name in ("side, px", "bytes/pixel", "padded", "padding", "wasted"):
        table.add_column(name, justify="right", no_wrap=True)
    for point in sweep.points:
        table.add_row(
            str(point.size),
            f"{point.bytes_per_pixel:,.0f}",
            size_text(point.padded_bytes),
            f"{point.padding_ratio:.2f}x",
            size_text(point.wasted_bytes),
        )
    return table


def waste(group: Group) -> str:
    """The bytes a group wastes, or its severity where it has none to show."""
    if group.severity is Severity.BLOCKS or not group.wasted_bytes:
        return group.severity.value
    return size_text(group.wasted_bytes)


def sweep_lines(sweep: Sweep) -> tuple[str, ...]:
    """The cliffs, the sizes with other windows, and the sizes refused, each reason once."""
    lines = [
        f"cliff at {cliff.size} px: {cliff.excess:.2f}x what its neighbours predict, mostly {plain(cliff.place)}"
        for cliff in sweep.cliffs
    ]
    if not sweep.cliffs and len(sweep.points) > 2:
        lines.append("no cliff between these sizes")
    if 0 < len(sweep.points) <= 2:
        lines.append("a cliff shows against two other sizes; too few of these are accepted")
    lines += [
        f"windows become {plain(point.windows)} at {point.size} px, from {plain(sweep.windows)}: another model there"
        for point in sweep.points
        if point.windows != sweep.windows
    ]
    reasons: dict[str, list[int]] = {}
    for refused in sweep.refused:
        reasons.setdefault(plain(refused.reason), []).append(refused.size)
    lines += [f"refused at {', '.join(map(str, sizes))} px: {reason}" for reason, sizes in reasons.items()]
    return tuple(lines)


def score_lines(score: Score, every: bool = False) -> tuple[str, ...]:
    """Where the plan puts the operations, how our prediction compares, and where the two differ."""
    cost = "" if score.cost_on_engine is None else f", {percent(score.cost_on_engine)} of the estimated cost"
    lines = [
        f"compute plan ({score.evidence} on the user's Mac): {score.on_engine} of {score.of} operations on the Neural "
        f"Engine{cost}",
        f"prediction over {score.matched} operations: precision {_share(score.precision)}, recall "
        f"{_share(score.recall)}; {score.not_in_file} of the plan not in the file, {score.not_in_plan} the other way",
    ]
    shown = score.disagreements if every else score.disagreements[:SHOWN]
    for one in shown:
        expected = f"off the engine ({one.reason})" if one.reason else "on it"
        lines.append(plain(f"  {one.kind} {one.name} runs on {one.preferred}, predicted {expected}"))
    if len(score.disagreements) > len(shown):
        lines.append(f"  ... and {len(score.disagreements) - len(shown)} more disagreements; --all lists them")
    return tuple(lines)


def _share(value: float | None) -> str:
    return "unknown" if value is None else percent(value)
