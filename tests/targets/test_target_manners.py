"""Targets are listed without importing anything heavy, name the fix for what is missing, and do not report home."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS
from pocketvit.targets._no_telemetry import no_telemetry

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


EXPORT = """
import numpy as np, torch
from pathlib import Path
from pocketvit.targets import TARGETS
from pocketvit.types import Artifact, Golden, InputSpec, Precision
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
    def forward(self, image):
        return self.conv(image).mean((2, 3))
images = np.linspace(0, 1, 4 * 192, dtype=np.float32).reshape(4, 3, 8, 8)
target = TARGETS.get("NAME")
precision = Precision.W8A8 if Precision.W8A8 in target.precisions else Precision.FP32
golden = Golden(images=("",), sha256="", logits=((0.0, 0.0, 0.0, 0.0),))
draft = Artifact(path=Path("FILE"), target="NAME", precision=precision, model="m", trained=False, classes=4,
                 spec=InputSpec(size=(3, 8, 8)), golden=golden, weights_sha256="")
target.export(Net().eval(), draft, images)
"""
USE = """
import numpy as np
from pathlib import Path
from pocketvit.targets import TARGETS, read_artifact
runner = TARGETS.get("NAME").load(read_artifact(Path("FILE")), 1)
runner(np.zeros((1, 3, 8, 8), np.float32))
runner.profile(np.zeros((1, 3, 8, 8), np.float32), 2)
"""
# what a library leaves in a home directory when it reports: OpenVINO's client id, ONNX Runtime's device id and queue
IDENTIFIERS = {"openvino_ga_cid", "stats", "deviceid", "onnxruntime.db"}


def _identifiers_left(code: str, home: Path) -> set[str]:
    """Run `code` as a user's own machine would, outside continuous integration; return what it left in the home."""
    home.mkdir()
    hidden = ("CI", "NNCF_CI", "ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME", "PYTEST_CURRENT_TEST", "TF_BUILD")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**environment, "HOME": str(home)},
        timeout=200,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return {file.name for file in home.rglob("*")} & IDENTIFIERS


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("onnx", "openvino") else pytest.mark.slow) for n in TARGETS]
)
def test_neither_exporting_nor_using_a_file_reports_home(name, tmp_path):
    file = str(tmp_path / f"m{TARGETS.get(name).suffix}")
    for step, code in (("export", EXPORT), ("use", USE)):  # two processes: most users only ever load
        left = _identifiers_left(code.replace("NAME", name).replace("FILE", file), tmp_path / step)
        assert left == set(), f"{name} left {left} in the home directory on {step}"


@pytest.mark.parametrize(("library", "trace"), [("openvino", "openvino_ga_cid"), ("onnxruntime", "deviceid")])
def test_the_libraries_do_report_when_not_told_otherwise(library, trace, tmp_path):
    """The control: without this package's settings the trace that the test above looks for is there."""
    assert trace in _identifiers_left(f"import {library}", tmp_path / "home")


def test_the_environment_is_put_back(monkeypatch):
    monkeypatch.setenv("CI", "mine")
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    with no_telemetry():
        assert (os.environ["CI"], os.environ["ORT_DISABLE_TELEMETRY"]) == ("true", "1")
    assert os.environ["CI"] == "mine"
    assert "ORT_DISABLE_TELEMETRY" not in os.environ
