"""The audit command: what a device would make of a model or file, without the device."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from ..errors import BadInput
from ..types import InputSpec, plain
from . import app
from .options import AsJson, Mean, Passes, Pretrained, Std, Strict, check_new_file, foreign_spec
from .session import Session, session

_DERIVED = ("padding_ratio", "wasted_share", "small_padding_bytes")  # what an audit works out from its counts


class Subject(StrEnum):
    """What an audit is for."""

    ANE = "ane"
    FP16 = "fp16"


@app.command()
def audit(
    source: Annotated[
        str, typer.Argument(metavar="FILE|MODEL", help="A .mlpackage, or a model by name, directory or hf:org/name.")
    ],
    subject: Annotated[
        Subject, typer.Option("--for", help="ane: Apple's Neural Engine; fp16: a package's numbers.")
    ] = Subject.ANE,
    passes: Passes = None,
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
    data: Annotated[str | None, typer.Option(metavar="D", help="fp16: real images, as for eval; photos.")] = None,
    images: Annotated[int | None, typer.Option(min=2, help="fp16: how many of them; 8.")] = None,
    strict: Strict = False,
    repair: Annotated[bool, typer.Option("--repair", help="fp16: rewrite what overflows, exactly.")] = False,
    repair_to: Annotated[
        Path | None, typer.Option("--out", metavar="NEW", help="fp16: the rewritten package, with --repair.")
    ] = None,
    mean: Mean = None,
    std: Std = None,
    pretrained: Pretrained = False,
    as_json: AsJson = False,
) -> None:
    """Count what keeps a model from running well on the Neural Engine, and name the line and the fix.

    Padding, layout copies, ranks and kinds of operations are predicted from the graph; nothing is timed. For fp16 the
    file is interpreted on real images, and values that overflow or vanish are named and, where it is exact, repaired.

    Example: pocketvit audit levit_128s --for ane --sweep

    Example: pocketvit audit levit_128s --for ane --pass ane

    Example: pocketvit audit my.mlpackage --for fp16 --data folder:photos --repair --out repaired.mlpackage
    """
    with session("audit", as_json) as out:
        from rich.markup import escape

        if subject is Subject.FP16:
            _refuse_options(subject, {"--sweep": sweep, "--size": sizes, "--plan": plan, "--html": html})
            _refuse_options(subject, {"--pass": passes})
            if repair != (repair_to is not None):
                raise BadInput("--repair and --out NEW.mlpackage go together.")
            foreign = foreign_spec(mean, std)
            _audit_fp16(out, source, data or "photos", images or 8, strict, repair_to, foreign, all_)
        _refuse_options(subject, {"--data": data, "--images": images, "--strict": strict, "--repair": repair})
        _refuse_options(subject, {"--out": repair_to, "--mean": mean, "--std": std})
        if html is not None:
            check_new_file(html, "--html")
        from ..audits import audit_ane
        from ..measure.ane.rules import RULES
        from ..measure.ane.sweep import SIZES
        from ..passes import parse_passes
        from ..report.audit_page import write_audit_page
        from ..report.audit_table import audit_lines, before_lines

        swept = tuple(sizes or (SIZES if sweep else ()))
        configs = parse_passes(passes or [], "--pass")
        found = audit_ane(source, pretrained=pretrained, passes=configs, sizes=swept, plan=plan, progress=out.progress)
        lines = before_lines(found.before, found.audit) if found.before is not None else []
        lines += audit_lines(found.audit, sweep=found.sweep, score=found.score, every=all_)
        if html is not None:
            title = f"{found.name} on the Neural Engine"
            write_audit_page(found.audit, title=title, path=html, sweep=found.sweep, score=found.score)
            lines.append(f"Page: {escape(str(html))}")
        document: dict[str, Any] = {
            "name": found.name,
            "for": subject,
            "is_file": found.is_file,
            "audit": plain(found.audit) | {name: getattr(found.audit, name) for name in _DERIVED},
            "before": found.before,
            "groups": found.audit.groups,
            "sweep": found.sweep,
            "score": found.score,
            "rules": [
                {"id": rule.id, "fact": rule.fact, "source": rule.source, "reported": rule.reported} for rule in RULES
            ],
            "html": html,
        }
        out.finish(document, f"[bold]{escape(found.name)}[/bold] on the Neural Engine", *lines)


def _refuse_options(subject: Subject, given: dict[str, Any]) -> None:
    """Raise BadInput for an option that the audit asked for does not have."""
    for option, value in given.items():
        if value:
            other = next(one for one in Subject if one is not subject)
            raise BadInput(f"{option} is no option of an audit for {subject}; it belongs to --for {other}.")


def _audit_fp16(
    out: Session,
    source: str,
    data: str,
    images: int,
    strict: bool,
    repair_to: Path | None,
    foreign: InputSpec | None,
    every: bool,
) -> NoReturn:
    """Audit, print, and leave: with exit code 1 when a repair leaves something that overflows."""
    from rich.markup import escape

    from ..audits import audit_fp16
    from ..report.headroom_table import headroom_lines, repair_lines

    found = audit_fp16(
        source,
        data=data,
        images=images,
        strict=strict,
        repair_to=repair_to,
        foreign=foreign,
        progress=out.progress,
    )
    lines = headroom_lines(found.headroom, found.before, every)
    if found.repaired is not None:
        lines += repair_lines(found.repaired, found.after, every)
    title = f"[bold]{escape(found.name)}[/bold] in fp16, on {escape(data)}; {found.headroom.evidence}"
    document = {"name": found.name, "for": Subject.FP16, "audit": found}
    out.finish(document, title, *lines, ok=found.repaired is None or not found.repaired.refusals)
    raise AssertionError("finish leaves")
