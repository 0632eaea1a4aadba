"""From images to what a model takes, by timm's own evaluation transform; normalisation stays in the model's graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BadInput
from ..registry import close_matches
from ..types import InputSpec
from .dataset import ImageDataset

CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")


def preprocess(spec: InputSpec) -> Callable[[Image.Image], NDArray[np.uint8]]:
    """Return the function that resizes and crops an RGB image to uint8 (C, H, W), as timm does for evaluation.

    Divided by 255, less spec.mean, over spec.std, it is exactly what timm feeds its model. Raises BadInput for a
    spec that timm's transform would misread.
    """
    _check(spec)
    from .. import torchvision_repair  # noqa: F401
    from timm.data import create_transform  # isort: skip

    transform = create_transform(
        input_size=spec.size,
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
        normalize=False,
    )
    return lambda image: transform(image).numpy()


def batches(
    dataset: ImageDataset, spec: InputSpec, batch_size: int, limit: int | None = None
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    """Yield float32 RGB in [0, 1] of shape (B, C, H, W) with int64 classes (B,), the last batch possibly smaller.

    limit: only so many images, taken from the classes in turn.
    """
    if batch_size < 1:
        raise BadInput(f"A batch of {batch_size} images was asked for; use at least 1.")
    transform = preprocess(spec)
    return _batches(dataset.take(limit), transform, batch_size)


def sample(dataset: ImageDataset, spec: InputSpec, count: int, seed: int = 0) -> NDArray[np.float32]:
    """Up to `count` images, one of each class in turn, as float32 RGB in [0, 1] of shape (n, C, H, W)."""
    images, _ = next(batches(dataset.take(count, seed), spec, batch_size=count))
    return images


def _batches(
    dataset: ImageDataset, transform: Callable[[Image.Image], NDArray[np.uint8]], batch_size: int
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    for start in range(0, len(dataset), batch_size):
        stop = min(start + batch_size, len(dataset))
        pixels = np.stack([transform(dataset[index][0]) for index in range(start, stop)])
        yield pixels.astype(np.float32) / np.float32(255), dataset.targets[start:stop]


def _check(spec: InputSpec) -> None:
    channels, height, width = spec.size
    if channels != 3 or height < 1 or width < 1:
        raise BadInput(f"The model takes images of size {spec.size}; only RGB, (3, height, width), can be prepared.")
    if not 0 < spec.crop_pct <= 1:
        raise BadInput(f"The model's crop_pct is {spec.crop_pct}; it must be over 0 and at most 1.")
    if spec.crop_mode not in CROP_MODES:  # timm would take the centre without a word
        raise BadInput(
            f"There is no crop mode {spec.crop_mode!r}; use {', '.join(CROP_MODES)}."
            f"{close_matches(spec.crop_mode, CROP_MODES)}"
        )
    if spec.interpolation not in INTERPOLATIONS:
        raise BadInput(
            f"There is no interpolation {spec.interpolation!r}; use {', '.join(INTERPOLATIONS)}."
            f"{close_matches(spec.interpolation, INTERPOLATIONS)}"
        )


def check_calibration(images: NDArray[np.float32], spec: InputSpec) -> None:
    """Raise BadInput unless these are real images (N, C, H, W) of the spec's size in [0, 1], not normalised."""
    if images.shape[1:] != spec.size:
        raise BadInput(f"Calibration images are {images.shape[1:]}, but the model takes {spec.size}.")
    low, high = float(images.min()), float(images.max())
    if not (low >= 0 and high <= 1):  # not a number is neither
        raise BadInput(
            f"Calibration images run from {low:.3g} to {high:.3g}; give RGB in [0, 1], as the normalisation is inside "
            "the model."
        )
    if low == high:
        raise BadInput(f"Every pixel of the calibration images is {low:g}; ranges can only be set on real images.")
