"""Batches of images for training and validation: timm's transforms, samplers and mixing, apart per process."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.auto_augment import RandAugment, posterize
from timm.data.distributed_sampler import RepeatAugSampler
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from ..types import InputSpec
from .config import TrainConfig

if TYPE_CHECKING:
    from ..data import ImageDataset


class Transformed(Dataset):
    """A dataset of (PIL image, class) seen through a transform to normalised tensors (C, H, W)."""

    def __init__(self, images: ImageDataset, transform: Callable[[Any], Tensor]) -> None:
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = self.images[index]
        return self.transform(image), label


class TrainingBatches:
    """One epoch after another of augmented batches; which images, and how, is a function of seed, epoch and rank.

    Processes draw from one shuffled list in turns: disjoint images, or differently augmented repeats of them.
    """

    def __init__(
        self, images: ImageDataset, spec: InputSpec, config: TrainConfig, *, rank: int, processes: int, pin: bool
    ) -> None:
        self.seed = config.seed
        self.rank = rank
        self.sampler = RepeatAugSampler(
            images, processes, rank, num_repeats=config.repeated_aug, selected_round=0
        )  # selected_round would cut small data sets to a multiple of 256
        self.loader = DataLoader(
            Transformed(images, training_transform(spec, config)),
            batch_size=config.batch_size // processes,
            sampler=self.sampler,
            num_workers=config.workers,
            pin_memory=pin,
            drop_last=True,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def epoch(self, epoch: int) -> DataLoader:
        """Seed torch, numpy and random for this epoch and rank, and return its batches.

        Nothing is carried over from the epoch before, so a resumed training needs no saved random state.
        """
        shared, own = np.random.SeedSequence([self.seed, epoch]).generate_state(2, np.uint32).tolist()
        self.sampler.set_epoch(shared)
        own = int(np.random.SeedSequence([own, self.rank]).generate_state(1, np.uint32)[0])
        random.seed(own)
        np.random.seed(own)
        torch.manual_seed(own)
        return self.loader


def training_transform(spec: InputSpec, config: TrainConfig) -> Callable[[Any], Tensor]:
    """PIL image to augmented, normalised tensor (C, H, W)."""
    transform = create_transform(
        spec.size,
        is_training=True,
        scale=config.crop_scale,
        hflip=config.hflip,
        color_jitter=0.0,
        auto_augment=config.rand_augment,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        re_prob=config.random_erasing,
        re_mode="pixel",  # noise, as DeiT erases
    )
    for step in transform.transforms:
        if isinstance(step, RandAugment):
            for op in step.ops:
                if op.aug_fn is posterize:
                    op.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **unused: Any) -> Image.Image:
    """RandAugment's strongest posterizing asks for no bits at all, which Pillow 13 refuses: one is left."""
    return posterize(image, max(1, bits))


def validation_batches(
    images: ImageDataset, spec: InputSpec, config: TrainConfig, *, rank: int, processes: int
) -> DataLoader:
    """This process's share of the validation images, preprocessed as at inference and normalised."""
    transform = create_transform(
        spec.size,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    share = Subset(Transformed(images, transform), range(rank, len(images), processes))
    return DataLoader(share, batch_size=config.batch_size // processes, num_workers=config.workers)


def mixing(config: TrainConfig, classes: int) -> Mixup | None:
    """Mixup and CutMix over a batch, one or the other with equal chance; labels become (N, classes)."""
    if not config.mixes:
        return None
    return Mixup(config.mixup, config.cutmix, label_smoothing=config.label_smoothing, num_classes=classes)
