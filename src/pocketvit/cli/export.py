"""The command that makes files: export."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import BadInput, PocketvitError
from . import app
from .options import MODEL_HELP, AsJson, Calibration, Data, Passes, Pretrained, Strict, Threads
from .session import Session, session

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ..artifacts import ProofImages
    from ..models import Model
    from ..quantization import Outcome
    from ..targets import Target
    from ..types import Precision, Quantization

    Job = tuple[Target, Precision, Path]


@app.command()
def export(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    to: Annotated[list[str], typer.Option("--to", metavar="TARGET[:PRECISION]", help="Repeatable; fp32 if left out.")],
    out_dir: Annotated[Path, typer.Option("--out", help="Directory for the files.")] = Path("exported"),
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The file itself, with a single --to.")] = None,
    passes: Passes = None,
    data: Data = "photos",
    max_drop: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Most points of top-1 a file may lose; keeps layers float to get there."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option("--keep", metavar="LAYER", help="A layer that stays float; repeatable.")
    ] = None,
    calibrator: Annotated[
        str | None,
        typer.Option(metavar="C", help="minmax, percentile, mse or entropy; auto (with --max-drop) measures them."),
    ] = None,
    group_size: Annotated[int, typer.Option(help="4-bit weights that share one scale.")] = 32,
    calibration: Calibration = 128,
    rounds: Annotated[int, typer.Option(min=1, help="With --max-drop: times each file is run.")] = 100,
    strict: Strict = False,
    pretrained: Pretrained = False,
    threads: Threads = 2,
    as_json: AsJson = False,
) -> None:
    """Convert a model to files, reload each from disk, and prove it against the model on real images.

    With --max-drop every file's own top-1 on the test images stays within so many points of the model's: the
    calibrator is chosen by measurement, layers that cost too much accuracy stay float, and the files are timed against
    the float file of the same runtime. Interrupted, the same command goes on (OUT/search keeps what was tried).

    Example: pocketvit export my_vit --to onnx:w8a8-dynamic --to coreml:fp16 --data folder:photos

    Example: pocketvit export my_vit --to openvino:w8a8 --max-drop 0.5 --data folder:photos

    Example: pocketvit export my_vit --to coreml:fp16 --pass ane
    """
    with session("export", as_json) as out:
        from ..artifacts import check_export, is_artifact, proof_images, reference_logits
        from ..models import create
        from ..passes import apply, parse_passes, same_function
        from ..quantization import check_drop, export_files, labelled
        from ..types import Precision

        if output is not None and len(to) != 1:
            raise BadInput(f"--output names one file, but {len(to)} targets were asked for; use --out DIR.")
        measured = calibrator in (None, "auto") and max_drop is not None
        if calibrator == "auto" and max_drop is None:
            raise BadInput("--calibrator auto belongs to --max-drop, which has a search; name one instead.")
        wanted = _wanted(keep or [], None if measured else calibrator, group_size)
        if max_drop is not None:
            check_drop(max_drop)
        configs = parse_passes(passes or [], "--pass")
        if is_artifact(model):
            raise BadInput(f"{model} is an exported file already; export starts from the model it was made from.")
        name = "+".join([model.rstrip("/"), *(re.sub(r"[:=,]", "-", text) for text in passes or [])])
        jobs = [check_export(text, out_dir, output, name) for text in to]
        if calibrator not in (None, "auto") and all(job[1] is not Precision.W8A8 for job in jobs):
            raise BadInput(f"--calibrator {calibrator} sets ranges of activations; none of the files is w8a8.")
        if keep and not any(job[1].is_quantized for job in jobs):
            raise BadInput("--keep keeps layers from being quantized; none of the files is.")
        original = create(model, pretrained=pretrained)
        images = proof_images(original.spec, data, calibration=calibration, strict=strict, progress=out.progress)
        made_from = apply(original, configs, images=images.calibration)
        # a rewrite must give what the model gave before it
        expected = original if same_function(configs) else made_from
        reference = reference_logits(expected, images.verification, threads)
        if max_drop is not None:
            found = export_files(
                made_from,
                jobs,
                max_drop=max_drop,
                data=labelled(original, data, strict=strict),
                images=images,
                work=output.with_name(f".{output.stem}-search") if output else out_dir / "search",
                original=original,
                reference=reference,
                wanted=wanted,
                rounds=rounds,
                threads=threads,
                progress=out.progress,
            )
            _tell_budget(out, made_from, found, max_drop)
        else:
            _plainly(out, made_from, jobs, data, images, reference, wanted, threads)


def _wanted(keep: list[str], calibrator: str | None, group_size: int) -> Quantization:
    from ..registry import close_matches
    from ..types import ASKED, Calibrator, Quantization

    known = [c.value for c in Calibrator]
    if calibrator is not None and calibrator not in known:
        hint = close_matches(calibrator, known)
        raise BadInput(f"There is no calibrator {calibrator!r}.{hint} Known: {', '.join(known)}.")
    chosen = None if calibrator is None else Calibrator(calibrator)
    return Quantization(keep=dict.fromkeys(sorted(keep), ASKED), calibrator=chosen, group_size=group_size)


def _plainly(
    out: Session,
    model: Model,
    jobs: list[Job],
    data: str,
    images: ProofImages,
    reference: NDArray[Any],
    wanted: Quantization,
    threads: int,
) -> None:
    """Make and prove each file; one that does not hold up is a red line, and the others are still made."""
    from rich.markup import escape

    from ..artifacts import export as run_export
    from ..files import size_bytes

    document: list[dict[str, Any]] = []
    skipped = f" ({images.skipped} unreadable ones skipped)" if images.skipped else ""
    lines = [
        f"[bold]{escape(model.display_name)}[/bold], proven on {len(images.verification)} images of "
        f"{escape(data)}{skipped}"
    ]
    for done, (target, precision, path) in enumerate(jobs):
        out.progress("export", done, len(jobs))
        try:
            found = run_export(
                model,
                target.name,
                path,
                precision,
                images=images,
                reference=reference,
                threads=threads,
                quantization=wanted,
            )
        except PocketvitError as e:
            if isinstance(e, BadInput):
                raise
            document.append({"target": target.name, "precision": precision, "ok": False, "check": f"failed: {e}"})
            lines.append(f"  [red]failed[/red] {escape(str(e))}")
            continue
        size = size_bytes(target.files(path))
        counted = found.artifact.quantized
        document.append(
            {
                "target": target.name,
                "precision": precision,
                "ok": True,
                "file": path,
                "size_bytes": size,
                "quantized": counted,
                "agreement": found.agreement,
                "check": found.sentence,
            }
        )
        layers = f", {counted} layers quantized" if counted else ""
        lines.append(f"  {escape(str(path))}  {size / 1e6:.2f} MB{layers}  {escape(found.described)}")
        lines += [f"    {escape(line)}" for line in _kept(counted.kept if counted else {})]
    out.finish(
        {"model": model.name, "trained": model.trained, "skipped": images.skipped, "files": document},
        *lines,
        ok=all(entry["ok"] for entry in document),
    )


def _kept(kept: Any) -> list[str]:
    """Layers that stayed float, those with one reason on one line."""
    by_reason: dict[str, list[str]] = {}
    for layer, why in kept.items():
        by_reason.setdefault(why, []).append(layer)
    lines = []
    for why, layers in by_reason.items():
        shown = ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")
        lines.append(f"float: {shown}: {why}")
    return lines


def _tell_budget(out: Session, model: Model, found: Outcome, max_drop: float) -> None:
    """The table of all files, what each kept layer is for, and what to ship."""
    from rich.markup import escape

    from ..report.table import table

    lines: list[Any] = [table(found.rows)]
    for made in found.made:
        artifact = made.verification.artifact
        chosen = ""
        if made.calibrators:
            measured = ", ".join(f"{name} {db:.1f}" for name, db in made.calibrators.items())
            chosen = f", calibrator {made.calibrator} (dB: {measured})"
        lines.append(
            f"[bold]{artifact.target}:{artifact.precision}[/bold] {escape(str(artifact.path))}: "
            f"{made.trials} file{'s' if made.trials > 1 else ''} tried{chosen}; {made.spent(max_drop)}"
        )
        lines += [f"  {escape(line)}" for line in _kept(artifact.quantized.kept if artifact.quantized else {})]
    lines += [escape(one.sentence) for one in found.recommendations]
    out.finish(
        {
            "model": model.name,
            "trained": model.trained,
            "max_drop": max_drop,
            "rows": [row.to_dict() for row in found.rows],
            "files": [
                {
                    "target": made.verification.artifact.target,
                    "precision": made.verification.artifact.precision,
                    "file": made.verification.artifact.path,
                    "drop": made.drop,
                    "kept": made.reasons,
                    "quantized": made.verification.artifact.quantized,
                    "trials": made.trials,
                    "calibrator": made.calibrator,
                    "calibrators": made.calibrators,
                    "search_top1": made.search_top1,
                    "search_reference": made.search_reference,
                }
                for made in found.made
            ],
            "failed": found.failed,
            "recommended": [
                {"target": one.target, "precision": one.row.precision, "gains": one.gains, "why": one.sentence}
                for one in found.recommendations
            ],
        },
        *lines,
        ok=not found.failed,
    )
