"""Several files of one model within one budget, timed against the float files of their runtimes, and what to ship."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..artifacts import ProofImages, export, export_name, load
from ..errors import CheckFailed
from ..files import size_bytes
from ..measure.accuracy import accuracy
from ..measure.latency import interleave
from ..models import EagerRunner, Model, weights_sha256
from ..search import Recommendation, recommend
from ..stages import RunDirectory
from ..targets import TARGETS, Target
from ..types import Agreement, Evidence, Precision, Progress, Quantization, Row, Runner, silent
from .budgeted import Budgeted, Labelled, check_drop, export_within, read_accuracy, write_accuracy


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """rows: the model in PyTorch, then float and quantized file of each target. made: by row name; failed: why not."""

    rows: tuple[Row, ...]
    made: tuple[Budgeted, ...]
    failed: tuple[str, ...]
    recommendations: tuple[Recommendation, ...]


def export_files(
    model: Model,
    jobs: Sequence[tuple[Target, Precision, Path]],
    *,
    max_drop: float,
    data: Labelled,
    images: ProofImages,
    work: Path,
    wanted: Quantization = Quantization(),
    rounds: int = 100,
    threads: int = 2,
    progress: Progress = silent,
) -> Outcome:
    """Export each job within `max_drop` points of the float model, then time all with the float file of each target.

    work: directory of the search, whose finished trials are used again. A job that cannot keep the budget becomes a
    row that says why, and leaves no file.
    """
    check_drop(max_drop)
    rows: list[Row] = []
    made: list[Budgeted] = []
    failed: list[str] = []
    with RunDirectory(work, progress).open() as directory:
        rows += _float_rows(model, jobs, data, images, directory, threads)
        for target, precision, path in jobs:
            try:
                done = export_within(
                    model,
                    target.name,
                    path,
                    precision,
                    max_drop=max_drop,
                    data=data,
                    images=images,
                    directory=directory,
                    wanted=wanted,
                    threads=threads,
                )
            except CheckFailed as e:
                failed.append(str(e))
                rows.append(replace(_row(model, target.name, precision), check=f"failed: {e}"))
                continue
            made.append(done)
            rows.append(_made_row(model, target, precision, path, done, max_drop))
    rows = _timed(rows, model, images, rounds, threads, progress)
    return Outcome(rows=tuple(rows), made=tuple(made), failed=tuple(failed), recommendations=recommend(rows))


def _float_rows(
    model: Model,
    jobs: Sequence[tuple[Target, Precision, Path]],
    data: Labelled,
    images: ProofImages,
    directory: RunDirectory,
    threads: int,
) -> list[Row]:
    """The model in PyTorch and, for each runtime that exists here, the float file that a quantized one must beat."""
    rows = [_scored(_row(model, "eager", Precision.FP32), EagerRunner(model, threads), data, directory)]
    for name in dict.fromkeys(target.name for target, _, _ in jobs if not target.interpreted):
        target = TARGETS.get(name)
        asked = any(job.name == name and precision is Precision.FP32 for job, precision, _ in jobs)
        if asked or Precision.FP32 not in target.precisions:
            continue

        def work(out: Path, scratch: Path, target: Target = target) -> None:
            path = out / export_name(model.name, Precision.FP32, target)
            made = export(model, target.name, path, Precision.FP32, images=images, threads=threads)
            (out / "agreement.json").write_text(json.dumps(dataclasses.asdict(made.agreement)))

        depends = {"weights": weights_sha256(model.module), "model": [model.name, model.spec], "target": name}
        stage = directory.stage(f"{name}-fp32", depends, work)
        path = stage.path / export_name(model.name, Precision.FP32, target)
        agreement = json.loads((stage.path / "agreement.json").read_text())
        row = replace(
            _row(model, name, Precision.FP32),
            file=str(path),
            size_bytes=size_bytes(target.files(path)),
            agreement=Agreement(**{**agreement, "evidence": Evidence(agreement["evidence"])}),
            check="the float file to beat, kept with the search",
        )
        rows.append(_scored(row, load(path, threads), data, directory))
    return rows


def _scored(row: Row, runner: Runner, data: Labelled, directory: RunDirectory) -> Row:
    def work(out: Path, scratch: Path) -> None:
        write_accuracy(out / "accuracy.json", accuracy(runner, data.test, directory.progress))

    depends = {"row": [row.name, row.target, row.size_bytes], "data": data.test.digest()}
    stage = directory.stage(f"{row.target}-fp32-test", depends, work)
    return replace(row, accuracy=read_accuracy(stage.path / "accuracy.json"))


def _made_row(model: Model, target: Target, precision: Precision, path: Path, done: Budgeted, max_drop: float) -> Row:
    quantized = done.verification.artifact.quantized
    return replace(
        _row(model, target.name, precision),
        file=str(path),
        size_bytes=size_bytes(target.files(path)),
        accuracy=done.accuracy,
        agreement=done.verification.agreement,
        quantized=quantized,
        check=f"ok: loses {done.drop:.2f} of {max_drop:g} points",
    )


def _timed(
    rows: Sequence[Row], model: Model, images: ProofImages, rounds: int, threads: int, progress: Progress
) -> list[Row]:
    """Time every row that its own runtime runs here, interleaved, so that their ratios mean something."""
    runs = [i for i, row in enumerate(rows) if row.accuracy and row.accuracy.evidence is Evidence.MEASURED]
    runners = [load(rows[i].file or "", threads) if rows[i].file else EagerRunner(model, threads) for i in runs]
    image = images.verification[:1]
    times = interleave(runners, [image] * len(runners), rounds=rounds, warmup=10, progress=progress)
    result = list(rows)
    for i, latency in zip(runs, times, strict=True):
        result[i] = replace(result[i], latency=latency)
    return result


def _row(model: Model, target: str, precision: str) -> Row:
    return Row(
        name=model.name,
        target=target,
        precision=precision,
        trained=model.trained,
        file=None,
        size_bytes=None,
        accuracy=None,
        agreement=None,
        latency=None,
        quantized=None,
        check="reference: the model in PyTorch, not converted" if target == "eager" else "",
    )
