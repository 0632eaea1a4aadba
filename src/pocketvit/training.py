"""Training from names: a model, a data set and settings in, a checkpoint directory out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from accelerate import Accelerator

from .configs import read_pairs
from .data import open_data
from .errors import BadInput
from .files import remove
from .measure.accuracy import accuracy
from .models import EagerRunner, create, save
from .models.checkpoint import check_destination
from .train import TrainConfig, fit
from .types import Progress, silent


def train_checkpoint(
    model: str,
    data: str,
    out: Path,
    *,
    config: Path | None = None,
    settings: Sequence[str] = (),
    model_args: Sequence[str] = (),
    teacher: str | None = None,
    pretrained: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train `model` on `data` and write a checkpoint directory; called again, it goes on where it was interrupted.

    config: a YAML file of TrainConfig keys; settings: 'key=value' each, over those of the file.
    model_args: 'key=value' each, for timm's constructor. Returns what the
    model reached. Raises BadInput for anything that does not fit, before work.
    """
    chosen = read_settings(config, settings)
    arguments = read_pairs("--arg", model_args)
    if given := arguments.keys() & {"name", "pretrained", "num_classes", "labels", "seed"}:
        raise BadInput(f"--arg {min(given)} is not for the model's constructor; it follows from the other options.")
    out = out.resolve()
    _check_out(out)
    splits = [open_data(data, split) for split in ("train", "val", "test")]
    classes = None if model.startswith("hf:") else len(splits[0].labels)
    start = create(model, pretrained=pretrained, num_classes=classes, seed=chosen.seed, **arguments)
    guide = create(teacher, pretrained=pretrained) if teacher else None
    work = out.with_name(f".{out.name}-training")
    trained = fit(start, splits[0], splits[1], chosen, work, teacher=guide, progress=progress)
    reached = accuracy(EagerRunner(trained.model), splits[2], progress)
    accelerator = Accelerator()
    if accelerator.is_main_process:
        save(trained.model, out)
        remove(work)
    accelerator.wait_for_everyone()
    return {
        "model": trained.model.name,
        "checkpoint": str(out),
        "val_top1": trained.history[-1]["val_top1"],
        "val_images": len(splits[1]),
        "test_top1": reached.top1,
        "test_images": reached.images,
        "history": trained.history,
    }


def _check_out(out: Path) -> None:
    """Raise BadInput unless the checkpoint directory `out` can be made without anything being lost."""
    try:
        check_destination(out)
        if out.exists() and any(out.iterdir()):
            raise BadInput(f"{out} already holds a finished checkpoint; choose another directory with --out.")
        if out == Path.cwd():  # it is put in place whole, which would leave the shell in a directory that is gone
            raise BadInput(f"{out} is the working directory; choose a directory in it with --out.")
        parent = next(path for path in out.parents if path.exists())
        with TemporaryDirectory(prefix=f".{out.name}-", dir=parent):
            pass  # can be written
    except OSError as e:
        raise BadInput(f"{out} cannot be written ({e.strerror}); choose another directory with --out.") from e


def read_settings(config: Path | None, settings: Sequence[str]) -> TrainConfig:
    """Read training settings from a YAML file and 'key=value' texts, the latter winning."""
    raw: dict[str, Any] = {}
    if config is not None:
        if not config.is_file():
            raise BadInput(f"There is no settings file {config}.")
        try:
            loaded = yaml.safe_load(config.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as e:
            raise BadInput(f"{config} is not valid YAML: {' '.join(str(e).split())}") from e
        if not isinstance(loaded, dict):
            raise BadInput(f"{config} must hold a mapping of training settings.")
        raw.update(loaded)
    return TrainConfig.from_dict(raw | read_pairs("--set", settings), str(config or "--set"))
