"""What each runtime makes of a model here: every target and precision of a few models, interleaved per model.

    python benchmarks/runtimes.py [MODEL...] [--rounds 50] [--threads 2]

Weights are random (no network needed), so agreement and latency mean something and accuracy does not. Compare within
one model's rows only. Writes benchmarks/results/runtimes-MACHINE.csv; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
from pathlib import Path

import torch

from pocketvit.artifacts import export, load, proof_images
from pocketvit.data import open_data, sample
from pocketvit.errors import CannotRunHere, PocketvitError
from pocketvit.files import size_bytes
from pocketvit.measure.environment import environment
from pocketvit.measure.latency import interleave
from pocketvit.models import EagerRunner, create
from pocketvit.targets import TARGETS
from pocketvit.types import Runner

MODELS = ["deit_tiny_patch16_224", "levit_128s", "mobilevit_xxs", "swin_tiny_patch4_window7_224"]


def bench_model(name: str, rounds: int, threads: int, directory: Path) -> list[dict[str, object]]:
    """One row per target and precision, the eager model first."""
    torch.manual_seed(0)
    model = create(name)
    images = proof_images(model.spec)
    rows: list[dict[str, object]] = [{"model": name, "candidate": "eager:fp32", "check": "reference"}]
    runners: list[tuple[int, Runner]] = [(0, EagerRunner(model, threads))]
    for target in map(TARGETS.get, TARGETS):
        for precision in target.precisions:
            path = directory / f"{name}_{precision}{target.suffix}"
            row: dict[str, object] = {"model": name, "candidate": f"{target.name}:{precision}"}
            rows.append(row)
            try:
                found = export(model, target.name, path, precision, images=images, threads=threads)
                row |= {"check": found.sentence, "size_bytes": size_bytes(target.files(path))}
                row["sqnr_db"] = round(found.agreement.sqnr_db, 1) if found.agreement else None
                row["quantized"] = found.artifact.quantized
                runners.append((len(rows) - 1, load(path, threads)))
            except CannotRunHere:
                continue
            except PocketvitError as e:
                row["check"] = f"failed: {e}"
    image = sample(open_data("photos"), model.spec, 1)
    measured = interleave([runner for _, runner in runners], [image] * len(runners), rounds=rounds)
    for (i, _), latency in zip(runners, measured, strict=True):
        rows[i] |= {"median_ms": latency.median_ms, "p10_ms": latency.p10_ms, "p90_ms": latency.p90_ms}
        rows[i]["ratio"] = round(latency.median_ms / measured[0].median_ms, 3)
    return rows


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    described = environment(arguments.threads)
    rows: list[dict[str, object]] = []
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as directory:
            rows += bench_model(name, arguments.rounds, arguments.threads, Path(directory))
        for row in (row for row in rows if row["model"] == name):
            print(f"{name:30} {row['candidate']!s:26} {row.get('median_ms') or float('nan'):8.2f} ms  {row['check']}")
    machine = re.sub(r"[^a-z0-9]+", "-", f"{described['cpu']}-{described['threads']}t".lower()).strip("-")
    path = Path(__file__).parent / "results" / f"runtimes-{machine}-torch{described['torch'].split('+')[0]}.csv"
    path.parent.mkdir(exist_ok=True)
    columns = "model candidate median_ms p10_ms p90_ms ratio sqnr_db quantized size_bytes check".split()
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, columns)
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")
    print(json.dumps({"rows": rows, "environment": described}, default=str))


if __name__ == "__main__":
    main()
