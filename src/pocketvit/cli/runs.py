"""Commands about runs: demo, run, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import app
from .options import AsJson
from .session import Session, session

if TYPE_CHECKING:
    from ..runs import Run


@app.command()
def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Directory of the run.")] = Path("runs/digits"),
    as_json: AsJson = False,
) -> None:
    """Train, export, prove and measure on real handwritten digits: the whole main job, offline, in minutes.

    Example: pocketvit demo
    """
    with session("demo", as_json) as out:
        _run("digits", out_dir, out)


@app.command()
def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, or the name of one that ships with pocketvit.")],
    out_dir: Annotated[Path | None, typer.Option("--out", help="Directory of the run; runs/NAME if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Run a recipe; run it again to go on after an interruption. Finished stages are not redone.

    Example: pocketvit run recipes/cifar10.yaml --out runs/cifar10
    """
    with session("run", as_json) as out:
        _run(recipe, out_dir, out)


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Directory of a finished run.")],
    as_json: AsJson = False,
) -> None:
    """Print the results of a finished run again.

    Example: pocketvit report runs/digits
    """
    with session("report", as_json) as out:
        from ..runs import read_run

        found = read_run(run_dir)
        found.write_report()
        _finish(found, out)


def _run(recipe: str, out_dir: Path | None, out: Session) -> None:
    from ..pipeline import run as run_recipe
    from ..recipe import find_recipe, read_recipe

    _finish(run_recipe(read_recipe(find_recipe(recipe)), out_dir, out.progress), out)


def _finish(found: Run, out: Session) -> None:
    from rich.markup import escape

    from ..report import table

    lines: list[Any] = []
    if found.training:
        reached = [
            f"{t['name']} {t['test_top1']:.1%}{' (exported)' if t.get('exported') else ''}" for t in found.training
        ]
        lines.append(escape(f"Test top-1 after training: {', '.join(reached)}"))
    lines.append(table(found.rows))
    if found.verdict is not None:
        lines.append(escape(found.verdict.sentence))
    if found.reused:
        lines.append(f"{len(found.reused)} finished stages were not redone.")
    lines.append(escape(f"Report: {found.report}"))
    document = {
        "run": found.path,
        "report": found.report,
        "ok": found.ok,
        "rows": found.rows,
        "training": found.training,
        "verdict": found.verdict.sentence if found.verdict else None,
        "environment": found.environment,
        "reused": found.reused,
    }
    out.finish(document, *lines, ok=found.ok)
