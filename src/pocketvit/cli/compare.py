"""The compare command: one model in the forms of the mobile tutorial and in today's, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import app
from .options import MODEL_HELP, AsJson, Data, ModelArgs, Pretrained, Threads
from .session import session

if TYPE_CHECKING:
    from ..comparison import Comparison

_OPERATORS = 5  # of a form's profile


@app.command()
def compare(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    data: Data = "photos",
    split: Annotated[str, typer.Option(help="For the accuracy: train, val, test or all.")] = "test",
    images: Annotated[int, typer.Option(min=1, help="Images for the accuracy.")] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Times each is run; all are interleaved.")] = 30,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="New directory: files, chart.")] = Path(
        "compared"
    ),
    model_args: ModelArgs = None,
    pretrained: Pretrained = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Compare a model in PyTorch with its quantized, optimised and lite forms, today's and those of the old tutorial.

    Today: torchao and PT2E dynamic int8, torch.compile, ExecuTorch. Retired: TorchScript, quantize_dynamic, PyTorch
    Mobile; what this build of PyTorch lacks is listed with the reason. Each is proven against the model on real
    images before it is timed. torch.compile takes a minute or so for each of its forms.

    Example: pocketvit compare my_vit --data folder:photos --out compared
    """
    with session("compare", as_json) as out:
        from rich.markup import escape

        from ..comparison import compare as run_compare
        from ..configs import read_pairs
        from ..measure.environment import environment
        from ..models import create
        from ..report import table
        from ..report.cells import failed

        made = create(model, pretrained=pretrained, **read_pairs("--arg", model_args or []))
        found = run_compare(
            made,
            out_dir,
            data=data,
            split=split,
            images=images,
            rounds=rounds,
            threads=threads,
            progress=out.progress,
        )
        described = environment(threads)
        document = {
            "model": made.name,
            "trained": made.trained,
            "data": data,
            "note": found.note or None,
            "candidates": [
                row.to_dict() | {"profile": ops} for row, ops in zip(found.rows, found.profiles, strict=True)
            ],
            "chart": found.chart,
            "environment": described,
        }
        out.finish(
            document,
            table(found.rows),
            *([escape(found.note)] if found.note else []),
            *map(escape, _form_lines(found)),
            f"{rounds} interleaved rounds at batch 1 on {escape(described['cpu'])}: compare within this table only",
            f"Chart: {escape(str(found.chart))}",
            ok=not any(map(failed, found.rows)),
        )


def _form_lines(found: Comparison) -> list[str]:
    """How each form was made, what compiling it took, and its self CPU time, as the tutorial prints."""
    from ..report.cells import form

    lines = ["How each was made, and self CPU time of one image by torch.profiler, in ms:"]
    for row, ops in zip(found.rows, found.profiles, strict=True):
        if row.latency is None:
            continue
        first = f"; first image {row.settings['first_call_s']} s" if "first_call_s" in row.settings else ""
        lines.append(f"  {row.settings['step']}, {form(row)}: {row.settings['how']}{first}")
        if ops is None:
            lines.append("    its runtime offers no profile")
        else:
            top = ", ".join(f"{op.op} {op.ms:.2f} ({op.calls}x)" for op in ops[:_OPERATORS])
            integers = row.settings.get("integer_products")
            products = f"; integer products in the profile: {integers}" if integers else ""
            lines.append(f"    {row.settings['self_cpu_ms']}: {top}{products}")
    return lines
