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


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small ViT trained for a moment on digits: real weights, real labels."""
    from pocketvit.training import train_checkpoint

    out = tmp_path_factory.mktemp("trained") / "vit"
    settings = "epochs=8 batch_size=24 warmup_epochs=1 lr=0.02 repeated_aug=1 hflip=0 mixup=0 cutmix=0 val_every=8"
    quiet = "rand_augment=null random_erasing=0 crop_scale=[0.9,1.0] drop_path=0"
    small = "patch_size=8 embed_dim=96 depth=2 num_heads=6"
    found = train_checkpoint(
        "pocket_deit_patch4_32", "digits", out, settings=f"{settings} {quiet}".split(), model_args=small.split()
    )
    assert found["test_top1"] > 0.5, f"top-1 {found['test_top1']:.2f} after training; chance is 0.10"
    return out
