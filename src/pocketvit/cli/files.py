"""Commands about exported files: verify, eval, bench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput
from ..types import Runner
from . import app
from .options import (
    ANY_HELP,
    MODEL_HELP,
    Arithmetic,
    AsJson,
    Calibration,
    Data,
    Mean,
    Passes,
    Pretrained,
    Std,
    Strict,
    Threads,
    foreign_spec,
)
from .session import session

if TYPE_CHECKING:
    pass


@app.command()
def verify(
    artifact: Annotated[Path, typer.Argument(help="An exported file.")],
    against: Annotated[str, typer.Option("--against", metavar="MODEL", help=MODEL_HELP)],
    passes: Passes = None,
    data: Data = "photos",
    calibration: Calibration = 128,
    strict: Strict = False,
    pretrained: Pretrained = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Hold an exported file against the model it came from, on real images and on its golden vectors.

    Example: pocketvit verify exported/my_vit_fp32.onnx --against my_vit --data folder:photos
    """
    with session("verify", as_json) as out:
        from rich.markup import escape

        from ..artifacts import proof_images
        from ..artifacts import verify as run_verify
        from ..models import create
        from ..passes import apply, parse_passes
        from ..targets import NotOurs, read_artifact, target_of

        try:
            read_artifact(artifact)  # a file that cannot be read is refused before the model is built
        except NotOurs as e:
            if target_of(artifact).foreign is None:
                raise
            raise BadInput(
                f"{artifact} was not made by pocketvit, so there is nothing to hold it against; `pocketvit eval` "
                "scores it."
            ) from e
        configs = parse_passes(passes or [], "--pass")
        original = create(against, pretrained=pretrained)
        images = proof_images(original.spec, data, calibration=calibration, strict=strict, progress=out.progress)
        model = apply(original, configs, images=images.calibration)
        found = run_verify(artifact, model, images=images.verification, threads=threads)
        lines = [f"[bold]{escape(found.artifact.display_name)}[/bold]: {escape(found.described)}"]
        numbers, worst = found.agreement, images.names[found.agreement.worst_image]
        lines += [
            f"  cosine {numbers.cosine:.6f}, largest error {numbers.max_abs_error:.2e} on {escape(worst)}, "
            f"smallest margin {numbers.smallest_margin:.2e}",
            f"  golden vectors in the file: {found.golden.sqnr_db:.1f} dB on {found.golden.images} images",
        ]
        if found.proof:
            lines.append(f"  {escape(found.proof)}")
        lines += [f"  also: {escape(failure)}" for failure in found.failures[1:]]
        out.finish(
            {
                "file": artifact,
                "model": found.artifact.model,
                "ok": not found.failures,
                "check": found.sentence,
                "floor_db": found.artifact.precision.floor_db,
                "agreement": found.agreement,
                "worst_image": worst,
                "skipped": images.skipped,
                "golden": found.golden,
                "proof": found.proof,
                "failures": found.failures,
            },
            *lines,
            ok=not found.failures,
        )


@app.command(name="eval")
def evaluate(
    source: Annotated[str, typer.Argument(metavar="MODEL|ARTIFACT", help=ANY_HELP)],
    data: Data,
    split: Annotated[str, typer.Option(help="train, val, test or all.")] = "test",
    mean: Mean = None,
    std: Std = None,
    arithmetic: Arithmetic = None,
    strict: Strict = False,
    pretrained: Pretrained = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Measure the accuracy of a model or of an exported file itself, on every image.

    Example: pocketvit eval exported/my_vit_w8a8.xml --data folder:photos

    Example: pocketvit eval somebodys.mlpackage --data folder:photos --arithmetic fp16
    """
    with session("eval", as_json) as out:
        from rich.markup import escape

        from ..artifacts import load
        from ..data import open_data
        from ..measure.accuracy import accuracy

        foreign = foreign_spec(mean, std)
        loaded = load(source, threads, pretrained=pretrained, foreign=foreign)
        if arithmetic is not None:
            loaded = loaded.computing_in(arithmetic)
        dataset = open_data(data, split, strict=strict, progress=out.progress)
        runner = loaded.in_order_of(dataset.labels)
        found = accuracy(runner, dataset, out.progress)
        skipped = f", {found.skipped} unreadable ones skipped" if found.skipped else ""
        by_name = runner.spec.labels == tuple(dataset.labels)
        matched = _matched(loaded, runner, dataset.labels)
        out.finish(
            {
                "name": runner.name,
                "data": data,
                "split": split,
                "accuracy": found,
                "class_names_match": by_name,
                "classes_matched_by": "name" if by_name else "position",
                "note": matched or None,
            },
            f"[bold]{escape(runner.name)}[/bold]: top-1 {found.top1:.2%}, top-5 {found.top5:.2%} on {found.images} "
            f"images of {escape(data)} ({split}{skipped}), {found.evidence}"
            + (f"; {escape(matched)}" if matched else ""),
        )


@app.command()
def bench(
    sources: Annotated[list[str], typer.Argument(metavar="MODEL|ARTIFACT...", help=ANY_HELP)],
    rounds: Annotated[int, typer.Option(min=1, help="Times each is run; all are interleaved.")] = 50,
    warmup: Annotated[int, typer.Option(min=0, help="Rounds before the clock starts.")] = 5,
    data: Data = "photos",
    profile: Annotated[bool, typer.Option("--profile", help="Add the most expensive operations.")] = False,
    pretrained: Pretrained = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Time models and files against each other at batch 1, interleaved in one process.

    Example: pocketvit bench my_vit exported/my_vit_fp32.onnx exported/my_vit_w8a8.xml --profile
    """
    with session("bench", as_json) as out:
        from rich.markup import escape
        from rich.table import Table

        from ..artifacts import bench as run_bench
        from ..artifacts import load, profiles
        from ..measure.environment import environment
        from ..quantization import recommend_timed

        runners = [load(source, threads, pretrained=pretrained) for source in sources]
        found = run_bench(runners, data=data, rounds=rounds, warmup=warmup, progress=out.progress)
        profiled = profiles(runners, data) if profile else [None] * len(runners)
        described = environment(threads)
        table = Table("candidate", "median ms", "p10 - p90", "ratio", box=None, pad_edge=False)
        for runner, latency in zip(runners, found, strict=True):
            table.add_row(
                escape(runner.name),
                f"{latency.median_ms:.2f}",
                f"{latency.p10_ms:.2f} - {latency.p90_ms:.2f}",
                f"{latency.median_ms / found[0].median_ms:.2f}x",
            )
        note = (
            f"{rounds} interleaved rounds after {warmup} of warm-up, batch 1, {threads} threads, {described['cpu']}; "
            "measured: compare within this table only"
        )
        lines: list[Any] = [table, note]
        recommended = recommend_timed(sources, found)
        lines += [escape(one.sentence) for one in recommended]
        for runner, ops in zip(runners, profiled, strict=True):
            if profile and ops is None:
                lines.append(f"{escape(runner.name)}: its runtime offers no profile")
            elif ops:
                top = ", ".join(f"{op.op} {op.ms:.2f} ms ({op.calls}x)" for op in ops[:5])
                lines.append(f"{escape(runner.name)}: {escape(top)}")
        document = {
            "candidates": [
                {"name": runner.name, "source": source, "latency": latency, "profile": ops}
                for source, runner, latency, ops in zip(sources, runners, found, profiled, strict=True)
            ],
            "environment": described,
            "recommended": [
                {"target": one.target, "precision": one.row.precision, "gains": one.gains, "why": one.sentence}
                for one in recommended
            ],
        }
        out.finish(document, *lines)


def _matched(loaded: Runner, ordered: Runner, labels: tuple[str, ...]) -> str:
    """How the classes of a model and of the data were matched, in words; nothing where they are simply the same."""
    if ordered is not loaded:
        return "classes matched by name"
    if not loaded.spec.labels:
        return "classes matched by position (the model has no names for them)"
    pairs = zip(loaded.spec.labels, labels, strict=False)
    differ = next(((ours, theirs) for ours, theirs in pairs if ours != theirs), None)
    if differ is None:
        return ""
    return f"classes matched by position ({differ[0]!r} in the model is {differ[1]!r} in the data)"
