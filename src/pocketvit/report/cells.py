"""How each part of a Row reads as text, shared by the terminal table, the plots and the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..types import Evidence, Row


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """One value of a row: `text`, a `detail` line below it, how it is known, and the number it sorts by.

    evidence: None where the cell holds no number that was found out. key: None where there is no number.
    """

    text: str
    detail: str = ""
    evidence: Evidence | None = None
    key: float | None = None


def plain(text: str) -> str:
    """The text with control characters (terminal escapes among them) made visible as '?'."""
    return "".join(c if c.isprintable() else " " if c in "\n\t" else "?" for c in text)


def form(row: Row) -> str:
    """Target and precision, as the command line spells them: 'onnx:fp32'."""
    return plain(f"{row.target}:{row.precision}")


def model(row: Row) -> str:
    """The model's name; says UNTRAINED where its weights are random."""
    return plain(row.name) if row.trained else f"{plain(row.name)} (UNTRAINED)"


def percent(share: float) -> str:
    """A share (0..1) as '97.2%'; '100%' means all of them, with no rounding."""
    return "100%" if share == 1 else f"{100 * share:.1f}%"


def milliseconds(ms: float) -> str:
    """Three significant digits without an exponent, and no unit: '0.312', '3.12', '312'."""
    decimals = 2 if ms <= 0 else max(0, 2 - math.floor(math.log10(ms)))
    return f"{ms:.{min(decimals, 4)}f}"


def size_text(size_bytes: float) -> str:
    """Decimal units, as shops and file managers count: '812 B', '312 kB', '21.9 MB'."""
    if size_bytes < 1000:
        return f"{size_bytes:.0f} B"
    if size_bytes < 999_500:
        return f"{size_bytes / 1e3:.0f} kB"
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes < 99.95e6 else f"{size_bytes / 1e6:.0f} MB"


def _missing(row: Row) -> Cell:
    return Cell(text="not run" if row.check.lower().startswith("not run") else "not measured")


def top1(row: Row) -> Cell:
    """Top-1 accuracy and the number of images behind it."""
    if row.accuracy is None:
        return _missing(row)
    skipped = f", {row.accuracy.skipped} skipped" if row.accuracy.skipped else ""
    return Cell(
        text=percent(row.accuracy.top1),
        detail=f"{row.accuracy.images} images{skipped}",
        evidence=row.accuracy.evidence,
        key=row.accuracy.top1,
    )


def agreement(row: Row) -> Cell:
    """Signal-to-noise ratio against the reference's logits, and the share of images with the same top class."""
    if row.agreement is None:
        return Cell(text="reference") if row.check.startswith("reference") else _missing(row)
    db = row.agreement.sqnr_db
    return Cell(
        text="identical" if db == math.inf else f"{db:.1f} dB",
        detail=f"{percent(row.agreement.top1)} same",
        evidence=row.agreement.evidence,
        key=db,
    )


def size(row: Row) -> Cell:
    """The file's size on disk."""
    if row.size_bytes is None:
        return Cell(text="no file" if row.file is None else "not measured")
    return Cell(text=size_text(row.size_bytes), evidence=Evidence.MEASURED, key=float(row.size_bytes))


def latency(row: Row) -> Cell:
    """Median milliseconds, and the 10th and 90th percentile."""
    if row.latency is None:
        interpreted = row.accuracy is not None and row.accuracy.evidence is Evidence.INTERPRETED
        return Cell(text="not timed") if interpreted else _missing(row)
    return Cell(
        text=milliseconds(row.latency.median_ms),
        detail=f"{milliseconds(row.latency.p10_ms)}–{milliseconds(row.latency.p90_ms)}",
        evidence=row.latency.evidence,
        key=row.latency.median_ms,
    )


def ratio(row: Row, rows: Sequence[Row]) -> str:
    """The row's median latency over the first row's, as '0.53×'; empty where either is not known."""
    base = rows[0].latency
    if row.latency is None or base is None or base.median_ms <= 0:
        return ""
    share = row.latency.median_ms / base.median_ms
    return f"{share:.2f}×" if share < 9.995 else f"{share:.1f}×"


def layers(row: Row) -> Cell:
    """How many weight-carrying layers were quantized, of how many."""
    if row.quantized is None:
        return Cell(text="not counted" if row.precision.startswith("w") else "float")
    return Cell(text=str(row.quantized), evidence=Evidence.MEASURED, key=float(row.quantized.layers))


def failed(row: Row) -> bool:
    """True where the row's check says, by its first word, that the file did not hold up."""
    return row.check.lower().startswith("failed")


def conditions(rows: Sequence[Row]) -> tuple[str, ...]:
    """What the numbers of these rows stand on, as sentences: images, threads, rounds, evidence."""

    def listed(values: set[int]) -> str:
        return " or ".join(map(str, sorted(values)))

    sentences = []
    accuracies = [row.accuracy for row in rows if row.accuracy]
    if accuracies:
        images = {a.images for a in accuracies}
        step = f", so one image is {100 / min(images):.2g} points" if min(images) else ""
        skipped = max(a.skipped for a in accuracies)
        left_out = f" ({skipped} unreadable ones left out)" if skipped else ""
        sentences.append(f"Top-1 over {listed(images)} images{left_out}{step}.")
    agreements = [row.agreement for row in rows if row.agreement]
    if agreements:
        count = listed({a.images for a in agreements})
        sentences.append(
            f"Agreement with the model's own logits: signal to noise, and same top class on {count} images."
        )
    latencies = [row.latency for row in rows if row.latency]
    if latencies:
        threads, runs = {x.threads for x in latencies}, {x.runs for x in latencies}
        against = " (× the first row's)" if rows[0].latency else ""
        sentences.append(
            f"Latency: median ms{against} and p10–p90 at batch 1; {listed(threads)} threads, {listed(runs)} rounds."
        )
    evidence = {found.evidence for found in accuracies} | {found.evidence for found in agreements}
    if Evidence.INTERPRETED in evidence:
        sentences.append(
            "Interpreted: the file's own operations, computed here in place of its runtime; its time on a device is "
            "not known from that."
        )
    sentences.append("Numbers were measured on this machine unless the cell says otherwise.")
    return tuple(sentences)
