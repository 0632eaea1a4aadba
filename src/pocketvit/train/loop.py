"""The training loop: epochs of timm tasks under Hugging Face accelerate, resumable bit for bit after any epoch."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import dataclasses
import hashlib
import json
import math
import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from timm.models import get_model_args
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, distribute_bn
from torch import Tensor, nn

from ..errors import BadInput, CheckFailed
from ..models import Model, weights_sha256
from ..models.checkpoint import architecture
from ..types import Progress, silent
from .checkpoint import Checkpoint
from .checks import check
from .config import Amp, TrainConfig
from .images import TrainingBatches, mixing, validation_batches
from .tasks import copy_module, make_task, place, set_drop_path

if TYPE_CHECKING:
    from ..data import ImageDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """The trained model and, per epoch: epoch (from 1), lr (of its last step), loss, val_top1 (share, or None)."""

    model: Model
    history: tuple[dict[str, Any], ...]


def fit(
    model: Model,
    train_set: ImageDataset,
    val_set: ImageDataset,
    config: TrainConfig,
    work: Path,
    *,
    teacher: Model | None = None,
    progress: Progress = silent,
) -> Trained:
    """Train a copy of `model`; its last epoch's weights, the data's labels and the history are the result.

    A checkpoint goes to `work` after every epoch. Called again with the same arguments, the training goes on after
    the last whole epoch and ends, on the same CPU with as many threads, with the same weights bit for bit as one
    that was never interrupted; a finished one returns at once. Under `accelerate launch` or `torchrun` each process
    takes its share of every batch, and `work` must be a folder that all machines see.

    Raises BadInput, before any work, when model, teacher, data, config and `work` do not fit together; CheckFailed
    when the loss stops being a number.
    """
    accelerator = _accelerator()
    check(model, train_set, val_set, config, teacher, processes=accelerator.num_processes)
    identity = _identity(model, train_set, val_set, config, teacher, accelerator.num_processes)
    checkpoint = Checkpoint.load(work, identity)
    _check_same_everywhere(accelerator, checkpoint, work)
    if checkpoint is None or checkpoint.epochs < config.epochs:
        with _callers_settings_kept(accelerator.device, config.threads):
            checkpoint = _train(
                model, train_set, val_set, config, work, teacher, progress, accelerator, identity, checkpoint
            )
    module = copy_module(model).cpu()
    module.load_state_dict(checkpoint.result)
    module.pretrained_cfg |= {  # type: ignore[operator]
        "num_classes": model.classes,
        "label_names": list(train_set.labels),
    }
    spec = dataclasses.replace(model.spec, labels=tuple(train_set.labels))
    trained = dataclasses.replace(model, module=module.eval(), spec=spec, trained=True)
    return Trained(model=trained, history=checkpoint.history)


def _train(
    model: Model,
    train_set: ImageDataset,
    val_set: ImageDataset,
    config: TrainConfig,
    work: Path,
    teacher: Model | None,
    progress: Progress,
    accelerator: Accelerator,
    identity: Mapping[str, Any],
    checkpoint: Checkpoint | None,
) -> Checkpoint:
    """Run the epochs that are left and return the state after the last."""
    device, rank, processes = accelerator.device, accelerator.process_index, accelerator.num_processes
    batches = TrainingBatches(train_set, model.spec, config, rank=rank, processes=processes, pin=device.type == "cuda")
    validation = validation_batches(val_set, model.spec, config, rank=rank, processes=processes)
    mix = mixing(config, model.classes)
    student = place(copy_module(model).requires_grad_(True), device)
    set_drop_path(student, config.drop_path)
    task = make_task(student, teacher, config, device)
    averaged: nn.Module | None = None
    if config.ema_decay is not None:
        averaged = cast(ModelEmaV3, task.setup_ema(config.ema_decay)).module
    optimizer = create_optimizer_v2(student, "adamw", lr=config.peak_lr, weight_decay=config.weight_decay)
    schedule, _ = create_scheduler_v2(
        optimizer,
        num_epochs=config.epochs,
        warmup_epochs=config.warmup_epochs,
        warmup_lr=config.warmup_lr,
        min_lr=config.min_lr,
        step_on_epochs=False,
        updates_per_epoch=len(batches),
    )
    if checkpoint is not None:
        checkpoint.restore(student, averaged, optimizer)
    task.trainable_module = accelerator.prepare_model(student)  # several processes: averages their gradients
    judged = copy_module(model).to(device).eval()

    history = list(checkpoint.history) if checkpoint else []
    total = config.epochs * len(batches)
    for epoch in range(len(history), config.epochs):
        task.train()
        losses: list[Tensor] = []
        for step, (images, labels) in enumerate(batches.epoch(epoch), start=epoch * len(batches)):
            images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
            labels = labels.to(device, non_blocking=True)
            if mix is not None:
                images, labels = mix(images, labels)
            schedule.step_update(step)
            with torch.autocast(device.type, torch.bfloat16, enabled=config.amp is Amp.BF16):
                loss = task(images, labels)["loss"]
            optimizer.zero_grad()
            accelerator.backward(loss)
            if config.clip_grad is not None:
                accelerator.clip_grad_norm_(task.get_clip_parameters(), config.clip_grad)
            optimizer.step()
            task.update_ema(step + 1)
            losses.append(loss.detach())
            if accelerator.is_main_process:
                progress(f"training {model.name}", step + 1, total)
        if processes > 1:  # each process has its own running statistics: all go on with their mean
            for module in filter(None, (student, averaged)):
                distribute_bn(module, processes, reduce=True)
        mean_loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
        if not math.isfinite(mean_loss):
            raise CheckFailed(f"The loss of {model.name} became {mean_loss} in epoch {epoch + 1}; lower lr.")
        last = epoch + 1 == config.epochs
        top1 = None
        if last or (epoch + 1) % config.val_every == 0:
            judged.load_state_dict((student if averaged is None else averaged).state_dict())
            top1 = _top1(judged, validation, accelerator) / len(val_set)
        lr = optimizer.param_groups[0]["lr"]
        history.append({"epoch": epoch + 1, "lr": lr, "loss": mean_loss, "val_top1": top1})
        checkpoint = Checkpoint(
            epochs=epoch + 1,
            history=tuple(history),
            identity=identity,
            weights=student.state_dict(),
            averaged={} if averaged is None else averaged.state_dict(),
            optimizer=optimizer.state_dict()["state"],
        )
        if accelerator.is_main_process:
            checkpoint.save(work)
    accelerator.wait_for_everyone()
    assert checkpoint is not None  # at least one epoch was left to run
    return checkpoint


@torch.inference_mode()
def _top1(module: nn.Module, batches: Any, accelerator: Accelerator) -> float:
    """How many validation images, over all processes, get their own class."""
    right = torch.zeros((), device=accelerator.device)
    for images, labels in batches:
        logits = module(images.to(accelerator.device))
        right += (logits.argmax(1) == labels.to(accelerator.device)).sum()
    return accelerator.reduce(right, "sum").item()


def _identity(
    model: Model,
    train_set: ImageDataset,
    val_set: ImageDataset,
    config: TrainConfig,
    teacher: Model | None,
    processes: int,
) -> dict[str, Any]:
    """All that decides the outcome, in plain JSON types. Random starting weights do not count as a choice."""
    start = weights_sha256(model.module) if model.trained else model.body or "random"
    return {
        "architecture": _structure(model.module),
        "config": dataclasses.asdict(config),
        "classes": model.classes,
        "input": dataclasses.asdict(dataclasses.replace(model.spec, labels=())),
        "starting weights": start,
        "teacher": None if teacher is None else weights_sha256(teacher.module),
        "training data": train_set.digest(),
        "validation data": val_set.digest(),
        "processes": processes,
    }


def _structure(module: nn.Module) -> str:
    """SHA-256 of what a timm model is, apart from the values of its weights.

    The arguments it was made with say what its layers do not: the number of heads, for one.
    """
    tensors = {name: [str(tensor.dtype), *tensor.shape] for name, tensor in module.state_dict().items()}
    about = [architecture(module), get_model_args(module), repr(module), tensors]
    text = json.dumps(about, sort_keys=True, default=lambda other: type(other).__name__)
    return hashlib.sha256(text.encode()).hexdigest()


def _accelerator() -> Accelerator:
    """The device, and the other processes of a launch.

    Mixed precision is not left to it: accelerate fixes that once per process, and one process may train twice.
    """
    # Told of a GPU that is not there, accelerate takes each process of a launch for the only one.
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise BadInput(
            f"{launched} processes were launched, but accelerate sees {accelerator.num_processes}: "
            "it was set up before training without cpu=True."
        )
    return accelerator


def _check_same_everywhere(accelerator: Accelerator, checkpoint: Checkpoint | None, work: Path) -> None:
    """Every process must resume from the same epoch."""
    mine = torch.tensor([checkpoint.epochs if checkpoint else 0], device=accelerator.device)
    epochs = accelerator.gather(mine).tolist()
    if len(set(epochs)) > 1:
        raise BadInput(f"The processes found different checkpoints in {work}; it must be a folder all machines see.")


@contextmanager
def _callers_settings_kept(device: torch.device, threads: int | None) -> Iterator[None]:
    """Training seeds the global generators and sets torch's threads; afterwards they are as the caller left them."""
    python, numpy, before = random.getstate(), np.random.get_state(), torch.get_num_threads()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.set_num_threads(threads or before)
            yield
    finally:
        torch.set_num_threads(before)
        random.setstate(python)
        np.random.set_state(numpy)
