"""The audit command: what a device would make of a model or file, without the device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import BadInput
from . import app
from .options import AsJson, Pretrained
from .session import session


class Subject(StrEnum):
    """What an audit is for."""

    ANE = "ane"


@app.command()
def audit(
    source: Annotated[
        str, typer.Argument(metavar="FILE|MODEL", help="A .mlpackage, or a model by name, directory or hf:org/name.")
    ],
    subject: Annotated[Subject, typer.Option("--for", help="ane: Apple's Neural Engine.")] = Subject.ANE,
    sweep: Annotated[bool, typer.Option("--sweep", help="Go over input sizes, 224 to 512, and find cliffs.")] = False,
    sizes: Annotated[
        list[int] | None,
        typer.Option("--size", metavar="PX", help="A size of the sweep, instead of those; repeatable."),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(metavar="JSON", help="Compute plan of FILE from a Mac; scores the prediction.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Write a page with every group of findings.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Print every group of findings.")] = False,
    pretrained: Pretrained = False,
    as_json: AsJson = False,
) -> None:
    """Count what keeps a model from running well on the Neural Engine, and name the line and the fix.

    Padding, layout copies, ranks and kinds of operations are predicted from the graph; nothing is timed.

    Example: pocketvit audit levit_128s --for ane --sweep
    """
    with session("audit", as_json) as out:
        from rich.markup import escape

        if html is not None:
            _check_page(html)
        from ..audits import audit_ane
        from ..measure.ane.rules import RULES
        from ..measure.ane.sweep import SIZES
        from ..report.audit_page import write_audit_page
        from ..report.audit_table import audit_lines

        swept = tuple(sizes or (SIZES if sweep else ()))
        found = audit_ane(source, pretrained=pretrained, sizes=swept, plan=plan, progress=out.progress)
        lines = audit_lines(found.audit, sweep=found.sweep, score=found.score, every=all_)
        if html is not None:
            title = f"{found.name} on the Neural Engine"
            write_audit_page(found.audit, title=title, path=html, sweep=found.sweep, score=found.score)
            lines.append(f"Page: {escape(str(html))}")
        document: dict[str, Any] = {
            "name": found.name,
            "for": subject,
            "is_file": found.is_file,
            "audit": found.audit,
            "groups": found.audit.groups,
            "sweep": found.sweep,
            "score": found.score,
            "rules": [
                {"id": rule.id, "fact": rule.fact, "source": rule.source, "reported": rule.reported} for rule in RULES
            ],
            "html": html,
        }
        out.finish(document, f"[bold]{escape(found.name)}[/bold] on the Neural Engine", *lines)


def _check_page(path: Path) -> None:
    """Raise BadInput unless a new page can be written there."""
    from ..files import check_writable

    if path.is_dir():
        raise BadInput(f"{path} is a directory; --html needs the name of a file.")
    if path.exists():
        raise BadInput(f"{path} exists; choose another name for the page or remove it.")
    check_writable(path)
