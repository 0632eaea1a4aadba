"""What can be known before a training starts: that model, teacher, data and config fit together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..models import Model
from ..models.checkpoint import architecture
from .config import Distillation, TrainConfig
from .tasks import blocks_with_drop_path

if TYPE_CHECKING:
    from ..data import ImageDataset


def check(
    model: Model,
    train_set: ImageDataset,
    val_set: ImageDataset,
    config: TrainConfig,
    teacher: Model | None,
    *,
    processes: int,
) -> None:
    """Raise BadInput, in one sentence, for the first thing that does not fit."""
    if architecture(model.module) is None:
        raise BadInput(
            f"{model.name} is not of a timm architecture, so it can be exported but not trained; "
            "start from a timm name or a checkpoint."
        )
    if config.drop_path and not blocks_with_drop_path(model.module):
        raise BadInput(f"{model.name} has no blocks with stochastic depth; set drop_path to 0.")
    _check_data(model, train_set, val_set)
    _check_teacher(model, config, teacher)
    if config.batch_size % processes:
        raise BadInput(f"batch_size {config.batch_size} cannot be divided among {processes} processes.")
    share = config.batch_size // processes
    if config.mixes and share % 2:
        raise BadInput(f"mixup and cutmix pair images up, but each of {processes} processes gets {share} per step.")
    images = math.ceil(len(train_set) / processes)
    if share > images:
        raise BadInput(
            f"batch_size {config.batch_size} is larger than the {len(train_set)} training images of {train_set.name}; "
            "lower batch_size."
        )


def _check_data(model: Model, train_set: ImageDataset, val_set: ImageDataset) -> None:
    for role, images in (("training", train_set), ("validation", val_set)):
        if len(images) == 0:
            raise BadInput(f"The {role} data {images.name} holds no images.")
    if tuple(train_set.labels) != tuple(val_set.labels):
        raise BadInput(
            f"The training data {train_set.name} and the validation data {val_set.name} do not have the same classes "
            f"in the same order."
        )
    classes = len(train_set.labels)
    if classes < 2:
        raise BadInput(f"The training data {train_set.name} has {classes} class; a classifier needs at least two.")
    if classes != model.classes:
        raise BadInput(
            f"{model.name} has {model.classes} classes, the training data {train_set.name} has {classes}; "
            f"create the model with num_classes={classes}."
        )


def _check_teacher(model: Model, config: TrainConfig, teacher: Model | None) -> None:
    if teacher is None:
        if config.distillation is not Distillation.NONE:
            raise BadInput(f"{config.distillation.value} distillation needs a teacher.")
        return
    if config.distillation is Distillation.NONE:
        raise BadInput(f"The teacher {teacher.name} would not be used; set distillation to soft or hard.")
    if not teacher.trained:
        raise BadInput(f"The teacher {teacher.name} is untrained; train it first.")
    if teacher.classes != model.classes:
        raise BadInput(
            f"The teacher {teacher.name} has {teacher.classes} classes, the student {model.name} {model.classes}."
        )
    if teacher.spec.size != model.spec.size:
        raise BadInput(
            f"The teacher {teacher.name} takes images of {_size(teacher)}, the student {model.name} of {_size(model)}."
        )


def _size(model: Model) -> str:
    return " x ".join(map(str, model.spec.size))
