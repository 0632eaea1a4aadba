"""Every runtime and precision on trained models: the file's own accuracy, size, latency; stock recipe against ours.

    python benchmarks/quantization.py [MODEL...] --data parquet:../shared/data/cifar10 --out benchmarks/results/x.csv

Ours is what `pocketvit export` makes without a search; --max-drop POINTS adds the searched file of each int8 form.
Same calibration images for all. Rows already in --out are not made again. Times: all files of one runtime and model
interleaved with its float file, after everything is made. --table prints what --out holds as the tables of the
README and makes nothing. The last line printed is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from pocketvit.artifacts import ProofImages, export_name, proof_images
from pocketvit.data import ImageDataset, open_data
from pocketvit.errors import PocketvitError
from pocketvit.files import remove, size_bytes
from pocketvit.golden import make_golden
from pocketvit.measure import environment
from pocketvit.measure.accuracy import accuracy
from pocketvit.measure.agreement import compare_logits
from pocketvit.measure.latency import interleave
from pocketvit.models import EagerRunner, Model, create, deployable, weights_sha256
from pocketvit.packaged import packaged
from pocketvit.quantization import Labelled, export_within
from pocketvit.stages import RunDirectory
from pocketvit.targets import TARGETS, Target, read_artifact
from pocketvit.types import Artifact, Evidence, Precision, Quantization, Runner

# isort: split
from naive_quantization import naive

COLUMNS = (
    "model target precision recipe top1 drop images sqnr_db size_bytes quantized median_ms p10_ms p90_ms ratio "
    "evidence note"
).split()
SEARCHED = (Precision.W8A8, Precision.W8A8_DYNAMIC)


def main() -> None:
    """Make, score, time, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=sorted(packaged()))
    parser.add_argument("--data")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as Markdown, make nothing")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("quantized"), help="directory for the files")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--max-drop", type=float)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-times", action="store_true", help="leave them to another call, on a quiet machine")
    parser.add_argument("--interpreted-images", type=int, default=1000, help="test images for what is interpreted")
    asked = parser.parse_args()
    rows = _read(asked.out)
    if asked.table:
        print(_table(rows))
        return
    if asked.data is None:
        parser.error("--data says which images to measure on")
    for name in asked.models:
        _Bench(create(name), asked, rows).run()
    described = environment.environment(asked.threads)
    print(json.dumps({"file": asked.out.name, "rows": len(rows), "environment": described}))


class _Bench:
    """One model's files."""

    def __init__(self, model: Model, asked: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
        self.model = model
        self.asked = asked
        self.rows = rows
        self.images: ProofImages = proof_images(model.spec, asked.data)
        self.test = open_data(asked.data, "test")
        self.directory: Path = asked.work / model.name
        self.directory.mkdir(parents=True, exist_ok=True)
        self.reference = EagerRunner(model, asked.threads)
        self.logits = self.reference(self.images.verification)

    def run(self) -> None:
        """Make what is missing, then time each runtime."""
        for name in self.asked.targets.split(","):
            target = TARGETS.get(name)
            for precision in target.precisions:
                if precision is Precision.INTEGER:
                    continue  # a model of its own: benchmarks/ivit.py
                self._one(target, precision, "ours", target)
                stock = naive(target, precision)
                if stock is not None:
                    self._one(target, precision, "stock", stock)
                if self.asked.max_drop is not None and precision in SEARCHED and precision in target.precisions:
                    self._one(target, precision, f"ours, at most {self.asked.max_drop:g} points", None)
            if not (target.interpreted or self.asked.no_times):
                self._time(target)

    def _one(self, target: Target, precision: Precision, recipe: str, maker: Target | None) -> None:
        key = {"model": self.model.name, "target": target.name, "precision": precision.value, "recipe": recipe}
        if any(all(row[k] == v for k, v in key.items()) for row in self.rows):
            return
        path = self._path(target, precision, recipe)
        for part in target.files(path):
            remove(part)
        row: dict[str, Any] = {**dict.fromkeys(COLUMNS, ""), **key}
        try:
            if maker is None:
                self._search(target, precision, path)
            else:
                maker.export(deployable(self.model), self._draft(path, target, precision), self.images.calibration)
            runner = target.load(read_artifact(path), self.asked.threads)
            row |= self._scored(runner, target, path, counted=recipe != "stock")
        except PocketvitError as e:
            row["note"] = f"failed: {e}"[:400]
        self.rows.append(row)
        _write(self.asked.out, self.rows)
        print(
            f"{self.model.name:45} {target.name}:{precision:13} {recipe:30} {row['top1']} {row['note'][:60]}",
            flush=True,
        )

    def _scored(self, runner: Runner, target: Target, path: Path, *, counted: bool) -> dict[str, Any]:
        interpreted = runner.evidence is Evidence.INTERPRETED
        test: ImageDataset = self.test.take(self.asked.interpreted_images) if interpreted else self.test
        reached = accuracy(runner, test)
        own = accuracy(self.reference, test)
        agreement = compare_logits(self.logits, runner(self.images.verification), runner.evidence)
        artifact = read_artifact(path)
        return {
            "top1": f"{100 * reached.top1:.2f}",
            "drop": f"{100 * (own.top1 - reached.top1):.2f}",
            "images": reached.images,
            "sqnr_db": f"{agreement.sqnr_db:.1f}",
            "size_bytes": size_bytes(target.files(path)),
            "quantized": str(artifact.quantized or "") if counted else "",
            "evidence": runner.evidence.value,
            "note": "; ".join(sorted(set(artifact.quantized.kept.values())))[:300] if artifact.quantized else "",
        }

    def _search(self, target: Target, precision: Precision, path: Path) -> None:
        data = Labelled(search=open_data(self.asked.data, "val").take(2000), test=self.test)
        with RunDirectory(self.directory / "search").open() as directory:
            export_within(
                self.model,
                target.name,
                path,
                precision,
                max_drop=self.asked.max_drop,
                data=data,
                images=self.images,
                directory=directory,
                wanted=Quantization(),
                threads=self.asked.threads,
            )

    def _draft(self, path: Path, target: Target, precision: Precision) -> Artifact:
        return Artifact(
            path=path,
            target=target.name,
            precision=precision,
            model=self.model.name,
            trained=self.model.trained,
            classes=self.model.classes,
            spec=self.model.spec,
            golden=make_golden(self.images.verification[:1], self.logits[:1]),
            weights_sha256=weights_sha256(self.model.module),
        )

    def _path(self, target: Target, precision: Precision, recipe: str) -> Path:
        kind = {"ours": "", "stock": "stock-"}.get(recipe, "searched-")
        return self.directory / f"{kind}{export_name(self.model.name, precision, target)}"

    def _time(self, target: Target) -> None:
        """All files of one runtime in one session; ratios are to its fp32 file."""
        mine = [r for r in self.rows if (r["model"], r["target"]) == (self.model.name, target.name) and r["top1"]]
        if all(row["ratio"] for row in mine) or not mine:
            return
        paths = [self._path(target, Precision(row["precision"]), row["recipe"]) for row in mine]
        runners = [target.load(read_artifact(path), self.asked.threads) for path in paths]
        image = self.images.verification[:1]
        times = interleave(runners, [image] * len(runners), rounds=self.asked.rounds, warmup=10)
        base = next(t.median_ms for row, t in zip(mine, times, strict=True) if row["precision"] == Precision.FP32)
        for row, latency in zip(mine, times, strict=True):
            row |= {
                "median_ms": f"{latency.median_ms:.3f}",
                "p10_ms": f"{latency.p10_ms:.3f}",
                "p90_ms": f"{latency.p90_ms:.3f}",
                "ratio": f"{latency.median_ms / base:.3f}",
            }
        _write(self.asked.out, self.rows)


def _table(rows: list[dict[str, Any]]) -> str:
    """Points lost by precision and runtime, the stock recipe's in brackets, and time over the runtime's float file."""
    targets = list(dict.fromkeys(row["target"] for row in rows))
    lines = [f"| model | precision | {' | '.join(targets)} |", "|---" * (len(targets) + 2) + "|"]
    order = list(Precision)
    forms = sorted(
        {(row["model"], row["precision"]) for row in rows if row["precision"] != Precision.FP32},
        key=lambda form: (form[0], order.index(Precision(form[1]))),
    )
    found = {(row["model"], row["precision"], row["target"], row["recipe"]): row for row in rows}
    for model, precision in forms:
        cells = [_cell(found, model, precision, target) for target in targets]
        lines.append(f"| {model.partition('.')[0]} | {precision} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(found: dict[tuple[str, ...], dict[str, Any]], model: str, precision: str, target: str) -> str:
    ours, stock = (found.get((model, precision, target, recipe)) for recipe in ("ours", "stock"))
    if ours is None:
        return "-"
    text = ours["drop"] or "refused"
    if stock is not None:
        text += f" [{stock['drop'] or 'fails'}]"
    return f"{text}, {float(ours['ratio']):.2f}x" if ours["ratio"] else text


def _read(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
