"""Rows as a digits run gives them: every runtime, a file that cannot run here, one that failed."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pocketvit.types import Accuracy, Agreement, Latency, Quantized, Row

NAME = "digits_deit_distilled"


def make_row(
    target: str = "onnx",
    precision: str = "fp32",
    *,
    top1: float | None = 0.9722,
    db: float | None = 118.4,
    ms: float | None = 0.412,
    size: int | None = 1_463_212,
    quantized: Quantized | None = None,
    check: str = "ok: 118.4 dB (floor 80), same class on 64 of 64 images",
    **changes: object,
) -> Row:
    """One row; None for a number means it is not known."""
    row = Row(
        name=NAME,
        target=target,
        precision=precision,
        trained=True,
        file=f"files/{target}-{precision}.bin" if size else None,
        size_bytes=size,
        accuracy=None if top1 is None else Accuracy(top1=top1, top5=0.998, images=360),
        agreement=None
        if db is None
        else Agreement(
            images=64,
            sqnr_db=db,
            cosine=0.9999,
            max_abs_error=1e-4,
            top1=1.0 if db > 45 else 0.984,
            worst_image=17,
            smallest_margin=0.08,
        ),
        latency=None if ms is None else Latency(median_ms=ms, p10_ms=ms * 0.97, p90_ms=ms * 1.18, runs=50, threads=2),
        quantized=quantized,
        check=check,
        settings={"calibration": "128 training images", "library": f"{target} 1.2.3"},
    )
    return replace(row, **changes)


@pytest.fixture
def one() -> Callable[..., Row]:
    """The maker of single rows."""
    return make_row


@pytest.fixture
def rows() -> list[Row]:
    eight = "ok: 27.8 dB (floor 10), same class on 63 of 64 images"
    coreml = (
        "not run: Core ML files run on macOS only. Checked without running: the file is whole, has 143 operations "
        "and 364,170 of 364,170 weights."
    )
    return [
        make_row("eager", size=None, db=None, ms=2.318, check="reference: the model in PyTorch, not converted"),
        make_row("onnx"),
        make_row(
            "onnx",
            "w8a8-dynamic",
            top1=0.9694,
            db=31.2,
            ms=0.387,
            size=421_044,
            quantized=Quantized(layers=26, of=26),
            check=eight,
        ),
        make_row("openvino", ms=0.291, db=112.9, size=1_502_871),
        make_row(
            "openvino",
            "w8a8",
            top1=0.9667,
            db=27.8,
            ms=0.214,
            size=489_120,
            quantized=Quantized(layers=25, of=26),
            check=eight,
        ),
        make_row("executorch", ms=0.733, db=121.0, size=1_449_984),
        make_row(
            "executorch",
            "w8a8",
            top1=0.9444,
            db=18.3,
            ms=0.458,
            size=401_408,
            quantized=Quantized(layers=26, of=26),
            check=eight,
        ),
        make_row("torch_export", ms=2.204, db=math.inf, size=1_533_004),
        make_row(
            "torch_export",
            "w8a8",
            top1=0.6111,
            db=6.1,
            ms=13.902,
            size=530_112,
            quantized=Quantized(layers=26, of=26),
            check="failed: 6.1 dB on 64 images is below the 10 dB that w8a8 must keep",
        ),
        make_row("coreml", top1=None, db=None, ms=None, size=1_440_120, check=coreml),
        make_row("coreml", "fp16", top1=None, db=None, ms=None, size=722_880, check=coreml),
    ]


@pytest.fixture
def environment() -> dict[str, str]:
    return {
        "machine": "x86_64, 2 cores",
        "processor": "Example 8481C @ 2.70GHz",
        "system": "Linux 6.1",
        "python": "3.11.2",
        "torch": "2.13.0",
        "onnxruntime": "1.31.1",
        "openvino": "2026.4.1",
        "threads": "2",
    }


@pytest.fixture
def dump_dom(tmp_path: Path) -> Callable[[Path], str]:
    """Open a page in headless Chromium, with every host name unresolvable, and return the DOM it ends with."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("No chromium, chromium-browser or google-chrome on the path: pages cannot be opened here.")

    def dump(page: Path) -> str:
        profile = tmp_path / "profile"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", f"--user-data-dir={profile}"]
        flags += ["--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=5000", "--dump-dom"]
        done = subprocess.run([chromium, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"Chromium ended with {done.returncode}: {done.stderr[-2000:]}"
        return done.stdout

    return dump
