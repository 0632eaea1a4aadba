from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from pocketvit.cli import app


@dataclass(frozen=True)
class Result:
    """What one call of the command line printed, as a user's shell would see it."""

    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Call = Callable[..., Result]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Call:
    """Call pocketvit in a process of its own, in an empty directory."""

    def call(*arguments: object, code: int = 0, env: dict[str, str] | None = None) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "pocketvit", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | (env or {}),
            cwd=tmp_path,
            timeout=280,
        )
        assert done.returncode == code, f"exit {done.returncode}, not {code}:\n{done.stdout}\n{done.stderr}"
        return Result(done.stdout, done.stderr)

    return call


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Call pocketvit in this process, in an empty directory: as `shell`, without paying for the imports again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: object, code: int = 0) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            typer.main.get_command(app).main([str(a) for a in arguments], prog_name="pocketvit")
        found = Result(*capfd.readouterr())
        assert left.value.code == code, f"exit {left.value.code}, not {code}:\n{found.out}\n{found.err}"
        return found

    return call


def _convert(
    path: Path, *, image: bool = True, order: list[int] | None = None, labels: list[str] | None = None
) -> None:
    """A small network with softmax; order: of its classes, so that labels in that order mean the same."""
    import coremltools as ct
    import torch
    from torch import nn

    torch.manual_seed(0)
    head = nn.Linear(8 * 9, 10)
    with torch.no_grad():
        head.weight *= 20  # sure enough of itself that a second softmax would show
        if order is not None:
            head.weight.copy_(head.weight[order])
            head.bias.copy_(head.bias[order])
    net = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(3), nn.Flatten(), head, nn.Softmax(-1))
    shape = (1, 3, 24, 24)
    program = torch.export.export(net.eval(), (torch.zeros(shape),)).run_decompositions({})
    given = ct.ImageType(name="x", shape=shape, scale=1 / 255) if image else ct.TensorType(name="x", shape=shape)
    model = ct.convert(
        program,
        inputs=[given],
        classifier_config=ct.ClassifierConfig(labels) if labels else None,
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS16,
        skip_model_load=True,
    )
    model.save(str(path))


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Classifiers of digits: labels as in the data, in another order, and an array in and out without labels."""
    from pocketvit.data import open_data

    out, labels = tmp_path_factory.mktemp("foreign"), list(open_data("digits", "val").labels)
    _convert(out / "same.mlpackage", labels=labels)
    order = [3, 8, 0, 9, 1, 7, 5, 2, 6, 4]
    _convert(out / "other.mlpackage", labels=[labels[i] for i in order], order=order)
    _convert(out / "array.mlpackage", image=False)
    return out
