"""How to train: every choice in one frozen config whose defaults are DeiT's (arXiv 2012.12877, Table 9)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ..configs import read_config
from ..errors import BadInput


class Distillation(StrEnum):
    """What a student learns from its teacher, besides the labels."""

    NONE = "none"
    SOFT = "soft"  # the teacher's probabilities, softened by a temperature (equation 2)
    HARD = "hard"  # the teacher's decision, as a second label (equation 3)


class Amp(StrEnum):
    """Automatic mixed precision."""

    NONE = "none"
    BF16 = "bf16"


# section 5.2: 0.1 for soft distillation; equation 3: one half for hard
_ALPHA = {Distillation.NONE: 0.0, Distillation.SOFT: 0.1, Distillation.HARD: 0.5}


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """One training, from the first epoch to the last; the last epoch's weights are the result.

    batch_size: images per step, over all processes. lr: at 512 images per step, scaled with the batch; AdamW warms up
    linearly from warmup_lr and decays along a cosine to min_lr, step by step. drop_path: stochastic depth, rising
    linearly to this rate at the last block. repeated_aug: each image comes this many times, augmented differently,
    and an epoch ends after as many images as there are. rand_augment: timm's notation, or None. crop_scale: least and
    greatest share of the image's area kept by the random crop. mixup, cutmix: alpha of their Beta distribution, 0 is
    off. random_erasing, hflip: probabilities. ema_decay: weights averaged over steps (DeiT tried 0.99996), or None.
    alpha: weight of the distillation term, None for the paper's (0.1 soft, 0.5 hard); the labels weigh 1 - alpha.
    tau: temperature of soft distillation. clip_grad: greatest gradient norm, or None. threads: CPU threads of each
    process, None for torch's own number; small models train fastest on 1. workers: processes that augment images,
    beside each of them. val_every: epochs between validations; the last one is always validated.
    """

    epochs: int = 300
    batch_size: int = 1024
    lr: float = 5e-4
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    weight_decay: float = 0.05
    clip_grad: float | None = None
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    repeated_aug: int = 3
    rand_augment: str | None = "rand-m9-mstd0.5-inc1"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    hflip: float = 0.5
    mixup: float = 0.8
    cutmix: float = 1.0
    random_erasing: float = 0.25
    ema_decay: float | None = None
    distillation: Distillation = Distillation.NONE
    alpha: float | None = None
    tau: float = 3.0
    amp: Amp = Amp.NONE
    seed: int = 0
    threads: int | None = None
    workers: int = 0
    val_every: int = 1

    def __post_init__(self) -> None:
        """Refuse, in a sentence, what cannot be trained with."""
        for name in ("epochs", "batch_size", "repeated_aug", "val_every"):
            _check(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        _check(self.threads is None or self.threads >= 1, f"threads must be at least 1, or empty, not {self.threads}")
        for name in ("warmup_epochs", "workers", "seed", "mixup", "cutmix", "weight_decay", "warmup_lr", "min_lr"):
            value = getattr(self, name)
            _check(value >= 0 and math.isfinite(value), f"{name} must be 0 or more, not {value}")
        for name in ("random_erasing", "hflip"):
            _check(0 <= getattr(self, name) <= 1, f"{name} is a probability, 0 to 1, not {getattr(self, name)}")
        for name in ("label_smoothing", "drop_path"):
            _check(0 <= getattr(self, name) < 1, f"{name} must be 0 or more and below 1, not {getattr(self, name)}")
        for name in ("lr", "tau"):
            value = getattr(self, name)
            _check(value > 0 and math.isfinite(value), f"{name} must be greater than 0, not {value}")
        _check(self.clip_grad is None or self.clip_grad > 0, f"clip_grad must be greater than 0, not {self.clip_grad}")
        _check(
            self.ema_decay is None or 0 < self.ema_decay < 1,
            f"ema_decay must be between 0 and 1, or empty, not {self.ema_decay}",
        )
        _check(
            self.warmup_epochs < self.epochs,
            f"warmup_epochs ({self.warmup_epochs}) must be fewer than epochs ({self.epochs})",
        )
        _check(
            max(self.min_lr, self.warmup_lr) <= self.peak_lr,
            f"lr x batch_size / 512 is {self.peak_lr:.3g}, below min_lr or warmup_lr; raise lr or lower those",
        )
        low, high = self.crop_scale
        _check(0 < low <= high <= 1, f"crop_scale must be two rising shares of the image, 0 to 1, not {low}, {high}")
        _check(
            self.rand_augment is None or _RAND_AUGMENT.fullmatch(self.rand_augment) is not None,
            f"rand_augment must look like rand-m9-mstd0.5-inc1, not {self.rand_augment!r}",
        )
        _check(
            not (self.mixup or self.cutmix) or self.batch_size % 2 == 0,
            f"mixup and cutmix pair images up, so batch_size must be even, not {self.batch_size}",
        )
        _check(self.alpha is None or 0 < self.alpha <= 1, f"alpha must be above 0 and at most 1, not {self.alpha}")

    @property
    def peak_lr(self) -> float:
        """The learning rate after warm-up: lr scaled to the batch."""
        return self.lr * self.batch_size / 512

    @property
    def distillation_weight(self) -> float:
        """Share of the loss that comes from the teacher."""
        return _ALPHA[self.distillation] if self.alpha is None else self.alpha

    @property
    def mixes(self) -> bool:
        """Whether images are blended with one another, so that labels become soft."""
        return self.mixup > 0 or self.cutmix > 0

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], where: str = "train") -> TrainConfig:
        """Read a recipe's mapping; raises BadInput on unknown keys (with close matches) and wrong types."""
        return read_config(cls, raw, where)


_RAND_AUGMENT = re.compile(r"rand(-(m\d+|n\d+|p[\d.]+|mstd[\d.]+|mmax\d+|inc[01]|t[a-z0-9]+))*")


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise BadInput(f"{sentence}.")
