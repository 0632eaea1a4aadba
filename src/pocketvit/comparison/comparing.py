"""Makes every form of one model, proves, scores and times them, and reports in Rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from .. import files
from ..artifacts import DEFAULT_DATA, LEAST_TOP1, proof_images
from ..data import ImageDataset, open_data
from ..errors import BadInput, CheckFailed
from ..measure.accuracy import accuracy
from ..measure.agreement import compare_logits, refuse_degenerate
from ..measure.latency import interleave
from ..models import Model
from ..report.comparison import check_chart, write_chart
from ..types import Agreement, OpTime, Precision, Progress, Row, silent
from . import current, legacy
from .settings import borrowed_settings, on_one_line
from .subject import Form, Made, Subject

FORMS = (*current.FORMS, *legacy.FORMS)
CHART = "comparison.png"
_PROOF_IMAGES = 32
_PROFILED_RUNS = 5
_INTEGER_PRODUCTS = ("int_mm", "qlinear", "qconv", "quantized::linear", "quantized::conv")  # in names of operators


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """What was found. rows: one per form, the eager model first, also for what cannot be made here. profiles: self
    CPU time per operator, for rows in the same order; None where there is none. note: why there is no accuracy.
    """

    rows: tuple[Row, ...]
    profiles: tuple[tuple[OpTime, ...] | None, ...]
    chart: Path
    note: str = ""


def compare(
    model: Model,
    out: Path,
    *,
    data: str = DEFAULT_DATA,
    split: str = "test",
    images: int = 200,
    rounds: int = 30,
    threads: int = 2,
    forms: tuple[Form, ...] = FORMS,
    progress: Progress = silent,
) -> Comparison:
    """Compare `model` in eager PyTorch with each of `forms`; their files and a bar chart go to the directory `out`.

    images: how many of the split the accuracy is taken on, one of each class in turn. Raises BadInput for an `out`
    that holds something or data that cannot be used, CheckFailed for a model whose logits prove nothing. A form that
    cannot be made is a row that says why.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise BadInput(f"{out} exists; choose another directory with --out.")
    check_chart()
    files.check_writable(out)
    dataset, note = _scored_on(model, data, split, images)
    proof = proof_images(model.spec, data, calibration=1, verification=_PROOF_IMAGES, progress=progress)
    with borrowed_settings(), files.replace_directory(out) as folder:
        subject = Subject(model, proof, folder, threads)
        refuse_degenerate(subject.logits)
        rows, made = [], []
        for done, form in enumerate((current.ORIGINAL, *forms)):
            progress("forms of the model", done, len(forms) + 1)
            row, found = _proven(form, subject)
            rows.append(row)
            made.append(found)
        rows = _scored(rows, made, dataset, progress)
        rows = _timed(rows, made, proof.verification[:1], rounds, progress)
        profiles = tuple(
            None if found is None else found.runner.profile(proof.verification[:1], _PROFILED_RUNS) for found in made
        )
        rows = [_with_cpu_time(row, ops) for row, ops in zip(rows, profiles, strict=True)]
        write_chart(rows, folder / CHART)
        rows = [replace(row, file=None if row.file is None else str(out / row.file)) for row in rows]
    return Comparison(rows=tuple(rows), profiles=profiles, chart=out / CHART, note=note)


def _scored_on(model: Model, data: str, split: str, images: int) -> tuple[ImageDataset | None, str]:
    """The images for the accuracy, or why there is none."""
    dataset = open_data(data, split).take(images, seed=0)
    if len(dataset.labels) == model.classes:
        return dataset, ""
    return None, (
        f"No accuracy: {data} has {len(dataset.labels)} classes and {model.name} {model.classes}; give data with the "
        "model's classes with --data."
    )


def _proven(form: Form, subject: Subject) -> tuple[Row, Made | None]:
    """Make a form and hold it against the eager model; what does not hold is not measured any further."""
    blank = Row(
        name=subject.model.name,
        target=form.target,
        precision=form.precision,
        trained=subject.model.trained,
        settings={"step": form.step},
    )
    try:
        made = form.make(subject)
        if form is current.ORIGINAL:
            settings = {**blank.settings, "how": made.how}
            return replace(blank, check="reference", settings=settings), made
        found = compare_logits(subject.logits, made.runner(subject.images.verification), made.runner.evidence)
    except MemoryError:
        raise
    except CheckFailed as e:
        return replace(blank, check=f"failed: {e}"), None
    except Exception as e:  # the libraries behind the forms raise what they like when this build lacks something
        reason = str(e) if isinstance(e, BadInput) else on_one_line(e)
        return replace(blank, check=f"not run, unavailable here: {reason}"), None
    shortfall = _shortfall(form, subject, found)
    first = {} if made.first_call_s is None else {"first_call_s": f"{made.first_call_s:.1f}"}
    row = replace(
        blank,
        file=None if made.path is None else made.path.name,
        size_bytes=None if made.path is None else files.size_bytes([made.path]),
        agreement=found,
        quantized=made.quantized,
        check=f"failed: {shortfall}" if shortfall else f"ok (floor {form.precision.floor_db:.0f} dB)",
        settings={**blank.settings, **first, "how": made.how},
    )
    return row, None if shortfall else made


def _shortfall(form: Form, subject: Subject, found: Agreement) -> str:
    """What is wrong with a form's answers, with the number; empty where they hold."""
    floor = form.precision.floor_db
    if not found.sqnr_db >= floor:
        return (
            f"{found.sqnr_db:.1f} dB from the eager model's logits, below the {floor:.0f} dB floor of "
            f"{form.precision}; not timed."
        )
    if subject.model.trained and found.top1 < LEAST_TOP1:
        return f"the eager model's top class on {found.top1:.0%} of {found.images} images only; not timed."
    return ""


def _scored(rows: list[Row], made: list[Made | None], dataset: ImageDataset | None, progress: Progress) -> list[Row]:
    if dataset is None:
        return rows
    return [
        row if found is None else replace(row, accuracy=accuracy(found.runner, dataset, progress))
        for row, found in zip(rows, made, strict=True)
    ]


def _timed(rows: list[Row], made: list[Made | None], image: np.ndarray, rounds: int, progress: Progress) -> list[Row]:
    """Time all that run against each other."""
    runners = [found.runner for found in made if found is not None]
    latencies = iter(interleave(runners, [image] * len(runners), rounds=rounds, progress=progress))
    return [
        row if found is None else replace(row, latency=next(latencies)) for row, found in zip(rows, made, strict=True)
    ]


def _with_cpu_time(row: Row, ops: tuple[OpTime, ...] | None) -> Row:
    if ops is None:
        return row
    settings = {**row.settings, "self_cpu_ms": f"{sum(op.ms for op in ops):.2f}"}
    if Precision(row.precision).is_quantized:  # a form may hold integers and still multiply floats
        found = [op.op for op in ops if any(name in op.op for name in _INTEGER_PRODUCTS)]
        settings["integer_products"] = ", ".join(found) or "none"
    return replace(row, settings=settings)
