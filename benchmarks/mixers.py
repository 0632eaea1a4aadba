"""How the time of a token mixer grows with the number of tokens: Hyena's forms, the other mixers, attention.

    python benchmarks/mixers.py [--rounds 20] [--threads 2] [--most 4096]

One block's mixer of 192 channels for one image, eager and fp32, AFT folded as for export. Rows called "convolution"
are Hyena's long convolution alone, its filters given; those called "hyena" draw their filters each time, as in
training. Rounds are interleaved, each in another order; macs are counted. What takes more than a second runs three
times only. Writes benchmarks/results/mixers-MACHINE.csv; the last line
printed is JSON.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pocketvit import torchvision_repair  # noqa: F401  (before timm)

# isort: split
from timm.layers import Attention

from pocketvit.layers.mixers import AFTConv, AFTFull, AFTLocal, AFTSimple, Form, Hyena, LinearAttention, Pooling
from pocketvit.layers.mixers.long_convolution import LongConvolution
from pocketvit.measure.cost import count
from pocketvit.measure.environment import environment

DIM = 192
SIDES = (8, 16, 32, 64)
LONG_MS = 1e3


class Convolution(nn.Module):
    """Hyena's long convolution by itself, of tokens."""

    def __init__(self, side: int, form: Form) -> None:
        super().__init__()
        self.convolution = LongConvolution((side, side), form)
        filters = torch.randn(DIM, 2 * side - 1, 2 * side - 1)
        self.register_buffer("prepared", self.convolution.prepare(filters).contiguous())

    def forward(self, x_BNC: Tensor) -> Tensor:
        """The convolved map of tokens."""
        return self.convolution(x_BNC.transpose(1, 2).unflatten(2, self.convolution.grid), self.prepared)


def candidates(side: int) -> dict[str, nn.Module]:
    """Every mixer for a grid of side x side tokens."""
    grid = (side, side)
    found: dict[str, nn.Module] = {f"convolution: {form}": Convolution(side, form) for form in Form}
    found["attention"] = Attention(DIM, num_heads=3, qkv_bias=True)
    found |= {f"hyena: {form}": Hyena(DIM, grid, form=form) for form in Form}
    found |= {
        "aft_simple": AFTSimple(DIM, grid),
        "aft_full": AFTFull(DIM, grid).fuse(),
        "aft_local": AFTLocal(DIM, grid, window=6).fuse(),
        "aft_conv": AFTConv(DIM, grid).fuse(),
        "linear_attention": LinearAttention(DIM, grid),
        "pooling": Pooling(DIM, grid),
    }
    return {name: module.eval() for name, module in found.items()}


def milliseconds(run: Callable[[], object]) -> float:
    """Time of one run."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def measure(side: int, rounds: int) -> list[dict[str, object]]:
    """One row per mixer, on side x side tokens."""
    modules, x = candidates(side), torch.randn(1, side * side, DIM)
    with torch.inference_mode():
        warm = {name: min(milliseconds(lambda m=module: m(x)) for _ in range(2)) for name, module in modules.items()}
        found: dict[str, list[float]] = {name: [] for name in modules}
        for done in range(rounds):
            order = [name for name in modules if done < 3 or warm[name] < LONG_MS]
            random.Random(done).shuffle(order)
            for name in order:
                found[name].append(milliseconds(lambda m=modules[name]: m(x)))
    rows: list[dict[str, object]] = []
    for name, times in found.items():
        p10, median, p90 = np.percentile(times, (10, 50, 90))
        macs = count(modules[name], (side * side, DIM)).macs
        rows.append(
            {"mixer": name, "tokens": side * side, "macs": macs, "median_ms": round(median, 3)}
            | {"p10_ms": round(p10, 3), "p90_ms": round(p90, 3)}
        )
    return rows


def main() -> None:
    """Measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most", type=int, default=SIDES[-1] ** 2, help="the largest number of tokens")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    described = environment(options.threads)
    rows: list[dict[str, object]] = []
    for side in (side for side in SIDES if side**2 <= options.most):
        rows += measure(side, options.rounds)
        for row in rows[-len(candidates(1)) :]:
            print(*row.values(), sep=" | ", flush=True)
    machine = re.sub(r"[^a-z0-9]+", "-", f"{described['cpu']}-{described['threads']}t".lower()).strip("-")
    path = Path(__file__).parent / "results" / f"mixers-{machine}-torch{described['torch'].split('+')[0]}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    print(f"written to {path}")
    print(json.dumps({"rounds": options.rounds, "environment": described}, default=str))


if __name__ == "__main__":
    main()
