"""Targets are listed without importing anything heavy, name the fix for what is missing, and do not report home."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS

HEAVY = ("torch", "timm", "onnx", "onnxruntime", "openvino", "nncf", "executorch", "torchao", "coremltools")


def _python(code: str, **environment: str) -> str:
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, **environment}, timeout=200
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_listing_targets_imports_nothing_heavy():
    code = (
        "import sys; from pocketvit.targets import TARGETS\n"
        "for name in TARGETS: TARGETS.get(name).missing()\n"
        f"print([m for m in {HEAVY} if m in sys.modules])"
    )
    assert _python(code).strip() == "[]"


@pytest.mark.parametrize("name", list(TARGETS))
def test_what_is_missing_is_named_with_the_command_that_fixes_it(name):
    from dataclasses import replace

    target = TARGETS.get(name)
    assert target.missing() == []
    lacking = replace(target, packages=(*target.packages, "surely-not-installed"))
    assert lacking.missing() == ["surely-not-installed"]
    with pytest.raises(BadInput, match=rf"needs surely-not-installed: pip install 'pocketvit\[{target.extra}\]'"):
        lacking.require()


def test_neither_openvino_nor_nncf_reports_home(tmp_path):
    """Both report to a web service unless told otherwise, and leave an identifier in the home directory."""
    code = """
import numpy as np, torch
import openvino_telemetry.main as telemetry
sent = []
telemetry.TelemetrySender.send = lambda self, *a, **k: sent.append(a)
from pathlib import Path
from pocketvit.targets import TARGETS
from pocketvit.types import Artifact, Golden, InputSpec, Precision
golden = Golden(images=("",), sha256="", logits=((0.0, 0.0, 0.0, 0.0),))
draft = Artifact(path=Path("DESTINATION"), target="openvino", precision=Precision.W8A8, model="m",
                 trained=False, classes=4, spec=InputSpec(size=(3, 8, 8)), golden=golden, weights_sha256="")
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
    def forward(self, image):
        return self.conv(image).mean((2, 3))
images = np.linspace(0, 1, 4 * 192, dtype=np.float32).reshape(4, 3, 8, 8)
made = TARGETS.get("openvino").export(Net().eval(), draft, images)
print("sent", len(sent), "quantized", made.quantized)
"""
    out = _python(code.replace("DESTINATION", str(tmp_path / "m.xml")), HOME=str(tmp_path / "home"), CI="", NNCF_CI="")
    assert out.strip().splitlines()[-1] == "sent 0 quantized 1/1"
    assert not (tmp_path / "home").exists()
