"""What a training step computes: timm's tasks, chosen by config and by the heads a student has."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import copy
from typing import Any

import torch
from timm.layers import DropPath
from timm.task import ClassificationTask, LogitDistillationTask, TokenDistillationTask
from timm.task.distillation import DistillationTeacher
from timm.task.task import TrainingTask
from torch import Tensor, nn
from torch.nn import functional

from ..models import Model
from .config import Distillation, TrainConfig


class HardLogitDistillationTask(LogitDistillationTask):
    """Hard distillation for a student with one head (DeiT, equation 3), which timm offers only with a token."""

    student_mean: Tensor
    student_std: Tensor

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Losses of normalised images (N, C, H, W) and labels, (N,) or (N, classes)."""
        with torch.no_grad():
            decision = self.teacher(self.teacher.normalize_input(input, self.student_mean, self.student_std)).argmax(1)
        logits = self.trainable_module(input)
        task_loss = self.criterion(logits, target)
        kd_loss = functional.cross_entropy(logits, decision)
        loss = self.task_loss_weight * task_loss + self.distill_loss_weight * kd_loss
        return {"loss": loss, "output": logits, "task_loss": task_loss, "kd_loss": kd_loss}


def has_token(module: nn.Module) -> bool:
    """Whether a model carries a distillation token with a head of its own."""
    return hasattr(module, "set_distilled_training")


def copy_module(model: Model) -> nn.Module:
    """An independent copy in fp32 that carries the spec's normalisation where timm's tasks look for it."""
    module = copy.deepcopy(model.module).float()
    known: dict[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    module.pretrained_cfg = {**known, "mean": model.spec.mean, "std": model.spec.std}  # type: ignore[assignment]
    return module


def place(module: nn.Module, device: torch.device) -> nn.Module:
    """Move a module to `device`, in place, channels last: grouped convolutions train 1.6 times as fast on a CPU."""
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def make_task(student: nn.Module, teacher: Model | None, config: TrainConfig, device: torch.device) -> TrainingTask:
    """Return the timm task that trains `student` in place on `device`; its own heads decide how it distils.

    Labels only: a student with a token trains the average of both heads, which is what it answers with.
    """
    # Mixup hands over smoothed, soft labels; without it the loss does the smoothing.
    loss = {"soft_targets": True} if config.mixes else {"smoothing": config.label_smoothing}
    common: dict[str, Any] = {"criterion_kwargs": loss, "device": device, "verbose": False}
    if teacher is None:
        if has_token(student):
            student.set_distilled_training(False)  # type: ignore[operator]
        return ClassificationTask(student, **common)
    frozen = DistillationTeacher(place(copy_module(teacher).requires_grad_(False), device), device=device)
    common |= {
        "student_model": student,
        "teacher_model": frozen,
        "task_loss_weight": 1 - config.distillation_weight,
        "temperature": config.tau,
    }
    if has_token(student):
        return TokenDistillationTask(distill_type=config.distillation.value, **common)
    one_head = LogitDistillationTask if config.distillation is Distillation.SOFT else HardLogitDistillationTask
    return one_head(**common)


def blocks_with_drop_path(module: nn.Module) -> list[nn.Module]:
    """The blocks that have stochastic depth, in order; timm's hold it in children called drop_path, drop_path1..."""
    return [block for block in module.modules() if any(map(_is_drop_path, block._modules))]


def set_drop_path(module: nn.Module, rate: float) -> None:
    """Set stochastic depth in place: 0 in the first block, rising linearly to `rate` in the last."""
    blocks = blocks_with_drop_path(module)
    for i, block in enumerate(blocks):
        here = rate * i / max(1, len(blocks) - 1)
        for child in filter(_is_drop_path, list(block._modules)):
            setattr(block, child, DropPath(here) if here else nn.Identity())


def _is_drop_path(child: str) -> bool:
    return child.startswith("drop_path")
