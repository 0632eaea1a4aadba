"""Several files of one model within one budget, timed against the float files of their runtimes, and what to ship."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..artifacts import ProofImages, export, export_name, is_artifact, load
from ..errors import CheckFailed
from ..files import size_bytes
from ..measure.accuracy import accuracy
from ..measure.environment import versions
from ..measure.latency import interleave
from ..models import EagerRunner, Model, deployable
from ..search import Recommendation, recommend
from ..stages import RunDirectory
from ..targets import TARGETS, NotOurs, Target, read_artifact
from ..types import Agreement, Evidence, Latency, Precision, Progress, Quantization, Row, silent
from .budgeted import (
    Budgeted,
    Labelled,
    check_drop,
    export_within,
    float_accuracy,
    identity,
    read_accuracy,
    write_accuracy,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


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
    original: Model | None = None,
    reference: NDArray[np.float32] | None = None,
    wanted: Quantization = Quantization(),
    rounds: int = 100,
    threads: int = 2,
    progress: Progress = silent,
) -> Outcome:
    """Export each job within `max_drop` points of the float model, then time all with the float file of each target.

    work: directory of the search, whose finished trials are used again. original, reference: as for `export_within`.
    A job that cannot keep the budget becomes a row that says why, and leaves no file. Raises BadInput before any work
    for options that one of the targets cannot take.
    """
    check_drop(max_drop)
    for target, precision, _ in jobs:
        target.check_quantization(deployable(model), model.spec, precision, wanted)
    rows: list[Row] = []
    made: list[Budgeted] = []
    failed: list[str] = []
    with RunDirectory(work, progress).open() as directory:
        rows += _float_rows(model, original or model, jobs, data, images, directory, threads)
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
                    original=original,
                    reference=reference,
                    wanted=wanted,
                    threads=threads,
                )
            except CheckFailed as e:
                failed.append(str(e))
                rows.append(replace(_row(model.name, model.trained, target.name, precision), check=f"failed: {e}"))
                continue
            made.append(done)
            rows.append(_made_row(model, target, precision, path, done, max_drop))
        rows = _timed(rows, original or model, images, rounds, threads, progress)
    return Outcome(rows=tuple(rows), made=tuple(made), failed=tuple(failed), recommendations=recommend(rows))


def recommend_timed(sources: Sequence[str], latencies: Sequence[Latency]) -> tuple[Recommendation, ...]:
    """What to ship among files that were timed in one interleaved session; sources that are no files are left out."""
    rows = []
    for source, latency in zip(sources, latencies, strict=True):
        if is_artifact(source):
            try:
                artifact = read_artifact(Path(source))
            except NotOurs:
                continue
            row = _row(artifact.model, artifact.trained, artifact.target, artifact.precision)
            size = size_bytes(TARGETS.get(artifact.target).files(artifact.path))
            rows.append(replace(row, file=source, size_bytes=size, latency=latency))
    models = dict.fromkeys(row.name for row in rows)
    return tuple(one for name in models for one in recommend([row for row in rows if row.name == name]))


def _float_rows(
    model: Model,
    original: Model,
    jobs: Sequence[tuple[Target, Precision, Path]],
    data: Labelled,
    images: ProofImages,
    directory: RunDirectory,
    threads: int,
) -> list[Row]:
    """The original in PyTorch and, for each runtime that is here, the float file that a quantized one must beat."""
    eager = _row(original.name, original.trained, "eager", Precision.FP32)
    rows = [replace(eager, accuracy=float_accuracy(original, "test", data.test, directory, threads))]
    for name in dict.fromkeys(target.name for target, _, _ in jobs if not target.interpreted):
        target = TARGETS.get(name)
        asked = any(job.name == name and precision is Precision.FP32 for job, precision, _ in jobs)
        if not asked and Precision.FP32 in target.precisions:
            rows.append(_float_row(model, target, data, images, directory, threads))
    return rows


def _float_row(
    model: Model, target: Target, data: Labelled, images: ProofImages, directory: RunDirectory, threads: int
) -> Row:
    filename = export_name(model.name, Precision.FP32, target)

    def work(out: Path, scratch: Path) -> None:
        made = export(model, target.name, out / filename, Precision.FP32, images=images, threads=threads)
        (out / "agreement.json").write_text(json.dumps(dataclasses.asdict(made.agreement)))
        runner = load(out / filename, threads)
        write_accuracy(out / "accuracy.json", accuracy(runner, data.test, directory.progress))

    row = _row(model.name, model.trained, target.name, Precision.FP32)
    depends = {"model": identity(model), "data": data.test.digest(), "versions": versions()}
    try:
        stage = directory.stage(f"{target.name}-fp32", depends, work)
    except CheckFailed as e:
        return replace(row, check=f"failed: {e}")
    agreement = json.loads((stage.path / "agreement.json").read_text())
    return replace(
        row,
        file=str(stage.path / filename),
        size_bytes=size_bytes(target.files(stage.path / filename)),
        accuracy=read_accuracy(stage.path / "accuracy.json"),
        agreement=Agreement(**{**agreement, "evidence": Evidence(agreement["evidence"])}),
        check="the float file to beat, kept with the search",
    )


def _made_row(model: Model, target: Target, precision: Precision, path: Path, done: Budgeted, max_drop: float) -> Row:
    quantized = done.verification.artifact.quantized
    return replace(
        _row(model.name, model.trained, target.name, precision),
        file=str(path),
        size_bytes=size_bytes(target.files(path)),
        accuracy=done.accuracy,
        agreement=done.verification.agreement,
        quantized=quantized,
        check=f"ok: {done.spent(max_drop)}",
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


def _row(name: str, trained: bool, target: str, precision: str) -> Row:
    return Row(
        name=name,
        target=target,
        precision=precision,
        trained=trained,
        check="reference: the model in PyTorch, not converted" if target == "eager" else "",
    )
