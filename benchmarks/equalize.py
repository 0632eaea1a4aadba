"""What equalising and bias correction do for 8-bit files: the same calibration images, runtimes and test images.

    python benchmarks/equalize.py CHECKPOINT... --data SOURCE [--out CSV] [--images 2000] [--to onnx:w8a8 ...]

Each checkpoint is measured as it came and with outliers: random channels of every pair that the pass finds made FACTOR
times larger, and whatever reads them smaller by as much, which leaves the function as it was and ruins its rounding.
Rows that the CSV holds already are not measured again.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import torch

from pocketvit.artifacts import draw_proof, load
from pocketvit.data import ImageDataset, open_data
from pocketvit.errors import PocketvitError
from pocketvit.golden import make_golden
from pocketvit.measure.accuracy import accuracy
from pocketvit.measure.agreement import compare_logits
from pocketvit.measure.environment import environment
from pocketvit.models import EagerRunner, Model, create, deployable, weights_sha256
from pocketvit.passes import apply
from pocketvit.passes.bias_correction import BiasCorrection
from pocketvit.passes.equalize import Equalize
from pocketvit.passes.equalize.pairs import survey
from pocketvit.passes.equalize.rewriting import Editor
from pocketvit.passes.equalize.running import captured
from pocketvit.targets import TARGETS
from pocketvit.types import Artifact, Precision

FACTOR, SHARE = 30.0, 0.1
METHODS: Mapping[str, tuple[object, ...]] = {
    "none": (),
    "smooth 0.5": (Equalize(),),
    "smooth 0.75": (Equalize(smooth=0.75),),
    "reparameterize": (Equalize(smooth=None, reparameterize=True),),
    "reparameterize, smooth 0.5": (Equalize(reparameterize=True),),
    "cross_layer": (Equalize(smooth=None, cross_layer=True),),
    "bias_correction": (BiasCorrection(),),
    "smooth 0.5, bias_correction": (Equalize(), BiasCorrection()),
}
KEY = "checkpoint data outliers target precision method".split()
COLUMNS = [*KEY, *"applied sqnr_db top1 float_top1 images check".split()]


def with_outliers(model: Model, factor: float = FACTOR, share: float = SHARE, seed: int = 0) -> Model:
    """The same function with a share of each pair's channels made larger, and their readers' weights smaller."""
    module, (deployed, program) = copy.deepcopy(model.module), captured(model)
    editor, generator = Editor(deployed), torch.Generator().manual_seed(seed)
    for pair in survey(program, deployed).pairs:
        chosen = pair.channels & (torch.rand(len(pair.channels), generator=generator) < share)
        scale = torch.where(chosen, 1 / factor, 1.0).double()
        editor.edit(pair, scale, torch.zeros_like(scale))
    editor.write(module)
    return replace(model, module=module)


def measure(model: Model, row: dict[str, object], train: ImageDataset, test: ImageDataset) -> dict[str, object]:
    """One row filled: the method applied, the file written whatever its floor, its logits held against the model's."""
    proof = draw_proof(model.spec, train, test, calibration=64, verification=128)
    target, precision = TARGETS.get(str(row["target"])), Precision(str(row["precision"]))
    reference = EagerRunner(model)(proof.verification)
    with tempfile.TemporaryDirectory() as directory:
        try:
            changed = apply(model, METHODS[str(row["method"])], proof.calibration)
            draft = Artifact(
                path=Path(directory) / f"model{target.suffix}",
                target=target.name,
                precision=precision,
                model=changed.name,
                trained=changed.trained,
                classes=changed.classes,
                spec=changed.spec,
                golden=make_golden(proof.verification[:2], reference[:2]),
                weights_sha256=weights_sha256(changed.module),
            )
            runner = load(target.export(deployable(changed), draft, proof.calibration).path)
        except PocketvitError as e:
            return {**row, "check": f"{type(e).__name__}: {e}"}
        found = compare_logits(reference, runner(proof.verification), runner.evidence)
        reached = accuracy(runner, test)
    applied = changed.name[len(model.name) :]
    return {
        **row,
        "applied": applied,
        "sqnr_db": round(found.sqnr_db, 2),
        "top1": round(reached.top1, 4),
        "check": "ok",
    }


def main() -> None:
    """Measure what the CSV does not hold yet, print it and keep it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--to", nargs="*", default=["onnx:w8a8", "openvino:w8a8", "executorch:w8a8"])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    train, test = open_data(given.data, "train"), open_data(given.data, "test").take(given.images, seed=2)
    machine = environment(2)
    out = given.out or Path(__file__).parent / "results" / f"equalize-torch{machine['torch'].split('+')[0]}.csv"
    done = list(csv.DictReader(out.open())) if out.exists() else []
    known = {tuple(row[key] for key in KEY) for row in done}
    with out.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        if not done:
            writer.writeheader()
        for checkpoint, outliers in product(given.checkpoints, (False, True)):
            model = create(checkpoint)
            model = with_outliers(model) if outliers else model
            float_top1 = round(accuracy(EagerRunner(model), test).top1, 4)
            for to, method in product(given.to, given.methods):
                target, precision = to.split(":")
                row: dict[str, object] = {
                    "checkpoint": Path(checkpoint).name,
                    "data": test.name,
                    "outliers": f"{SHARE:.0%} x {FACTOR:g}" if outliers else "as trained",
                    "target": target,
                    "precision": precision,
                    "method": method,
                }
                if tuple(str(row[key]) for key in KEY) in known:
                    continue
                row = measure(model, row | {"float_top1": float_top1, "images": len(test)}, train, test)
                writer.writerow(row)
                stream.flush()
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
