"""How long interpreting a Core ML package takes, as a ratio to the model in eager PyTorch: interleaved, one process.

    python benchmarks/interpreter.py [--rounds 30] [--out benchmarks/results/interpreter.csv]

The packages are fp32 and interpreted in fp32; two more columns are an fp16 package in both fp16 arithmetics. These
times are of our interpreter on this machine's CPU. They say nothing about a device.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pocketvit import torchvision_repair  # noqa: F401  (before timm)
from pocketvit.measure.environment import environment
from pocketvit.models import create, deployable
from pocketvit.models.graph import capture
from pocketvit.targets.coreml.arithmetic import Arithmetic
from pocketvit.targets.coreml.convert import convert
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.types import Artifact, Golden, Precision

MODELS = """deit_tiny_patch16_224 levit_128s mobilevit_xxs efficientformer_l1 edgenext_xx_small poolformer_s12
efficientvit_b0 swin_tiny_patch4_window7_224""".split()
COLUMNS = ["eager", "fp32", "fp16-fp32acc", "fp16"]


def times(name: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per run of each column, every round in another order."""
    model = create(name)
    module = deployable(model)
    image = np.random.default_rng(0).random((1, *model.spec.size), np.float32)
    program = capture(module, model.spec).run_decompositions({})
    runs = {"eager": lambda: module(torch.from_numpy(image))}
    with tempfile.TemporaryDirectory() as directory:
        packages = {}
        for precision in (Precision.FP32, Precision.FP16):
            draft = Artifact(
                path=Path(directory) / f"{precision}.mlpackage",
                target="coreml",
                precision=precision,
                model=name,
                trained=False,
                classes=model.classes,
                spec=model.spec,
                golden=Golden(images=(), sha256="", logits=()),
                weights_sha256="",
            )
            convert(program, draft)
            packages[precision] = draft.path
        for arithmetic in Arithmetic:
            precision = Precision.FP32 if arithmetic is Arithmetic.FP32 else Precision.FP16
            interpreter = Interpreter(packages[precision], arithmetic)
            runs[arithmetic.value] = lambda interpreter=interpreter: interpreter.run({"image": image})
    found: dict[str, list[float]] = {column: [] for column in COLUMNS}
    order = list(COLUMNS)
    with torch.inference_mode():
        for done in range(-3, rounds):
            random.Random(done).shuffle(order)
            for column in order:
                start = time.perf_counter()
                runs[column]()
                if done >= 0:
                    found[column].append(1e3 * (time.perf_counter() - start))
    return found


def main() -> None:
    """Time every model, print a line each and the environment as JSON last."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=MODELS)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for name in options.names or MODELS:
        found = times(name, options.rounds)
        p10, eager, p90 = np.percentile(found["eager"], (10, 50, 90))
        row = {"model": name, "eager_ms": f"{eager:.1f}", "eager_p10_p90": f"{p10:.1f}-{p90:.1f}"}
        row |= {f"{column}_ratio": f"{np.median(found[column]) / eager:.2f}" for column in COLUMNS[1:]}
        rows.append(row)
        print(*row.values(), sep=" | ", flush=True)
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    print(json.dumps({"rounds": options.rounds, **environment(options.threads)}))


if __name__ == "__main__":
    main()
