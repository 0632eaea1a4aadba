"""I-ViT: how far its functions are from the exact ones, and what a model in integers costs in ONNX Runtime.

    python benchmarks/ivit.py [MODEL...] [--data digits] [--rounds 50] [--threads 1]

MODEL: names or checkpoints of DeiT- and Swin-style models. Curves go to benchmarks/results/ivit-curves.svg and .csv.
For each model the float and the integer ONNX file run interleaved on one image. Ranges and agreement are of images of
--data, and accuracy is over its test split; where the model was not trained on its classes they are of "photos", which
come with scikit-learn, and there is no accuracy. Writes
benchmarks/results/ivit-MACHINE.csv; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from pocketvit.artifacts import export, proof_images
from pocketvit.data import batches, open_data
from pocketvit.layers.integer import integer_sqrt, normalise, shift_gelu, shiftmax_weights
from pocketvit.measure.environment import environment
from pocketvit.measure.latency import interleave
from pocketvit.models import Model, create, deployable
from pocketvit.passes.ivit import integer
from pocketvit.targets._onnx_integer import emit
from pocketvit.types import Precision, Runner

RESULTS = Path(__file__).parent / "results"
MODELS = ["pocket_deit_distilled_patch4_32", "deit_tiny_distilled_patch16_224"]
N = 10  # bits after the point of a score, and of what goes into GELU


class OnnxRunner(Runner):
    """An ONNX file in ONNX Runtime, which does not have to describe itself."""

    def __init__(self, path: Path, model: Model, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.name, self.threads, self.classes, self.spec = path.stem, threads, model.classes, model.spec
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits, one image at a time."""
        return np.concatenate([self.session.run(["logits"], {"image": image[None]})[0] for image in images])


def curves() -> dict[str, tuple[NDArray, NDArray, NDArray]]:
    """Arguments, exact values and those of the integer functions."""
    scores = torch.arange(-8 << N, 1, 16, dtype=torch.int32)
    x = torch.arange(-6 << N, 6 << N, 24, dtype=torch.int32)
    wide = torch.logspace(0, 12, 400, dtype=torch.float64).long()[:, None]
    token = (torch.randn(192, generator=torch.Generator().manual_seed(0)).sort().values * 100).round().int()
    normal = torch.nn.functional.layer_norm(token.double(), (192,), eps=0)
    return {
        "exp(x) in Shiftmax": (
            scores.numpy() / 2**N, torch.exp(scores / 2**N).numpy(), shiftmax_weights(scores, N).numpy() / 255
        ),
        "ShiftGELU(x)": (
            x.numpy() / 2**N, torch.nn.functional.gelu(x / 2**N).numpy(), shift_gelu(x, N).numpy() / 2**N
        ),
        "root of an integer": (
            wide[:, 0].numpy(), wide[:, 0].double().sqrt().numpy(), integer_sqrt(wide)[:, 0].double().numpy()
        ),
        "I-LayerNorm of 192 channels": (
            token.numpy(), normal.numpy(), normalise(token[None], 1)[0].numpy() / 2**15 * 192**0.5
        ),
    }  # fmt: skip


def draw(found: dict[str, tuple[NDArray, NDArray, NDArray]], path: Path) -> dict[str, float]:
    """Functions above, errors below, one column each; returns the largest error of each."""
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    axes = figure.subplots(2, len(found), sharex="col")
    worst = {}
    for (name, (x, exact, integers)), upper, lower in zip(found.items(), axes[0], axes[1], strict=True):
        upper.plot(x, exact, label="exact", linewidth=2.5, color="#9db4c0")
        upper.plot(x, integers, label="integers", linewidth=1, color="#b23a48")
        upper.set_title(name, fontsize=9)
        lower.plot(x, integers - exact, linewidth=1, color="#b23a48")
        lower.axhline(0, linewidth=0.5, color="black")
        if x.min() > 0:
            lower.set_xscale("log")
        worst[name] = float(np.abs(integers - exact).max())
        lower.set_xlabel(f"x; largest error {worst[name]:.3g}", fontsize=9)
    axes[0][0].legend(fontsize=8)
    axes[0][0].set_ylabel("value")
    axes[1][0].set_ylabel("integers - exact")
    figure.savefig(path, metadata={"Date": None})
    return worst


def bench(name: str, data: str, rounds: int, threads: int) -> list[dict[str, object]]:
    """Two rows, the float file and the integer one."""
    model = create(name)
    own = model.trained and tuple(open_data(data, "test").labels) == model.spec.labels
    source = data if own else "photos"
    proof = proof_images(model.spec, source)
    form = integer(deployable(model), proof.calibration)
    with tempfile.TemporaryDirectory() as directory:
        paths = [Path(directory) / "float.onnx", Path(directory) / "integer.onnx"]
        export(model, "onnx", paths[0], Precision.FP32, images=proof, threads=threads)
        paths[1].write_bytes(emit(form, model.spec.size).SerializeToString())
        runners = [OnnxRunner(path, model, threads) for path in paths]
        times = interleave(runners, [proof.verification[:1]] * 2, rounds=rounds)
        exact, found = (runner(proof.verification) for runner in runners)
        noise = 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())
        rows: list[dict[str, object]] = []
        for runner, path, time in zip(runners, paths, times, strict=True):
            rows.append(
                {
                    "model": model.display_name, "file": path.stem, "median_ms": time.median_ms, "p10_ms": time.p10_ms,
                    "p90_ms": time.p90_ms, "ratio": round(time.median_ms / times[0].median_ms, 3),
                    "size_bytes": path.stat().st_size, "top1": _top1(runner, data) if own else None,
                }
            )  # fmt: skip
        rows[1]["sqnr_db"] = round(float(noise), 1)
    return rows


def _top1(runner: Runner, data: str) -> float:
    right = count = 0
    for images, labels in batches(open_data(data, "test"), runner.spec, batch_size=100):
        right += int((runner(images).argmax(1) == labels).sum())
        count += len(labels)
    return right / count


def main() -> None:
    """Draw, measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--data", default="digits")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    found = curves()
    worst = draw(found, RESULTS / "ivit-curves.svg")
    with (RESULTS / "ivit-curves.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["function", "x", "exact", "integers"])
        for name, columns in found.items():
            writer.writerows([name, *(f"{v:.7g}" for v in row)] for row in zip(*columns, strict=True))
    described = environment(arguments.threads)
    rows: list[dict[str, object]] = []
    for name in arguments.models:
        rows += bench(name, arguments.data, arguments.rounds, arguments.threads)
        for row in rows[-2:]:
            print(
                f"{row['model']!s:45} {row['file']!s:8} {row['median_ms']:8.2f} ms "
                f"({row['p10_ms']:.2f} to {row['p90_ms']:.2f})  top-1 {row['top1']}  {row.get('sqnr_db', '')}"
            )
    machine = re.sub(r"[^a-z0-9]+", "-", f"{described['cpu']}-{described['threads']}t".lower()).strip("-")
    path = RESULTS / f"ivit-{machine}-torch{described['torch'].split('+')[0]}.csv"
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, "model file median_ms p10_ms p90_ms ratio sqnr_db top1 size_bytes".split())
        table.writeheader()
        table.writerows(rows)
    print(json.dumps({"worst": worst, "rows": rows, "environment": described}))


if __name__ == "__main__":
    main()
