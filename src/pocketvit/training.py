"""Training from names: a model, a data set and settings in, a checkpoint directory out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import yaml
from accelerate import Accelerator

from .configs import read_pairs
from .data import open_data, sample
from .errors import BadInput
from .files import remove
from .measure.accuracy import accuracy
from .models import EagerRunner, Model, create, save
from .models.checkpoint import check_destination
from .registry import close_matches
from .train import Distillation, TrainConfig, fit
from .types import Precision, Progress, Quantized, silent

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CALIBRATION_IMAGES = 64
# Quantization-aware training only repairs a trained model: short, at a low rate, mostly towards what the float model
# answers, on images that are hardly changed.
QAT_SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "batch_size": 128,
    "lr": 8e-4,
    "warmup_epochs": 0,
    "warmup_lr": 0.0,
    "min_lr": 0.0,
    "drop_path": 0.0,
    "repeated_aug": 1,
    "rand_augment": None,
    "crop_scale": [0.7, 1.0],
    "mixup": 0.0,
    "cutmix": 0.0,
    "random_erasing": 0.0,
    "distillation": Distillation.SOFT.value,
    "alpha": 0.9,
}


def train_checkpoint(
    model: str,
    data: str,
    out: Path,
    *,
    config: Path | None = None,
    settings: Sequence[str] = (),
    model_args: Sequence[str] = (),
    teacher: str | None = None,
    qat: str | None = None,
    pretrained: bool = False,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Train `model` on `data` and write a checkpoint directory; called again, it goes on where it was interrupted.

    config: a YAML file of TrainConfig keys; settings: 'key=value' each, over those of the file.
    model_args: 'key=value' each, for timm's constructor. qat: the precision whose rounding a trained model learns to
    live with; the settings then start from QAT_SETTINGS, and the teacher is the model itself unless another is named.
    Returns what the checkpoint reached (for qat also: how it scored while float, and rounded before and after).
    Raises BadInput for anything that does not fit, before work.
    """
    precision = None if qat is None else _precision(qat)
    chosen = read_settings(config, settings, QAT_SETTINGS if qat else {})
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
    if precision is None:
        trained = fit(start, splits[0], splits[1], chosen, work, teacher=guide, progress=progress)
        result, rounded = trained.model, {}
    else:
        if start.spec.labels and start.spec.labels != tuple(splits[0].labels):
            raise BadInput(f"{start.name} names its classes otherwise than {data}; give the data it was trained on.")
        rounding = QAT[precision]()
        prepared = rounding.prepare(start, sample(splits[0], start.spec, _CALIBRATION_IMAGES))
        if guide is None and chosen.distillation is not Distillation.NONE:
            guide = start
        trained = fit(prepared, splits[0], splits[1], chosen, work, teacher=guide, progress=progress)
        result = rounding.finish(trained.model)
        stages = {"float": start, "before": prepared, "after": trained.model}
        top1 = {f"{name}_test_top1": accuracy(EagerRunner(m), splits[2], progress).top1 for name, m in stages.items()}
        rounded = {"qat": {"precision": precision, "quantized": rounding.coverage(start), **top1}}
    reached = accuracy(EagerRunner(result), splits[2], progress)
    accelerator = Accelerator()
    if accelerator.is_main_process:
        save(result, out)
        remove(work)
    accelerator.wait_for_everyone()
    return {
        "model": result.name,
        "checkpoint": str(out),
        "val_top1": trained.history[-1]["val_top1"],
        "val_images": len(splits[1]),
        "test_top1": reached.top1,
        "test_images": reached.images,
        "history": trained.history,
        **rounded,
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class _Rounding:
    """How a model is made to round while it trains, given images in [0, 1] of the data, and made plain again."""

    prepare: Callable[[Model, NDArray[np.float32]], Model]
    finish: Callable[[Model], Model]
    coverage: Callable[[Model], Quantized | None] = lambda model: None


def _fake_quantized(precision: Precision) -> _Rounding:
    from .passes import qat

    return _Rounding(
        prepare=lambda model, images: qat.prepare(model, precision, images=images),
        finish=qat.finish,
        coverage=partial(qat.coverage, precision=precision),
    )


def _integer_only() -> _Rounding:
    from .passes import ivit

    return _Rounding(prepare=ivit.prepare, finish=ivit.finish)


QAT: dict[Precision, Callable[[], _Rounding]] = {
    Precision.W4: partial(_fake_quantized, Precision.W4),
    Precision.W8A8: partial(_fake_quantized, Precision.W8A8),
    Precision.W8A8_DYNAMIC: partial(_fake_quantized, Precision.W8A8_DYNAMIC),
    Precision.INTEGER: _integer_only,
}


def _precision(name: str) -> Precision:
    if name not in QAT:
        raise BadInput(f"--qat knows {', '.join(QAT)}; not {name!r}.{close_matches(name, QAT)}")
    return Precision(name)


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


def read_settings(config: Path | None, settings: Sequence[str], defaults: Mapping[str, Any]) -> TrainConfig:
    """Read training settings from a YAML file and 'key=value' texts, the latter winning, over `defaults`."""
    raw = dict(defaults)
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
