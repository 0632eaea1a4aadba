"""ImageDataset: labelled images decoded one at a time, and nothing that fails halfway through the work."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..errors import BadInput
from ..types import Progress
from .images import check, decode
from .splits import balanced_order
from .storage import Images

THOROUGH_UP_TO = 10_000  # images in a split; beyond this a JPEG is checked by its header and its end


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageDataset:
    """Labelled images: `dataset[i]` is (PIL image in 8-bit RGB, class index), decoded when asked for.

    name: for tables and messages. labels: one name per class. targets: int64 class index of every image.
    rows: where each image is in `images`. skipped_files: what was left out because it could not be decoded.
    """

    name: str
    labels: tuple[str, ...]
    targets: NDArray[np.int64]
    images: Images
    rows: NDArray[np.int64]
    skipped_files: tuple[str, ...] = ()

    @property
    def skipped(self) -> int:
        """How many images were left out because they could not be decoded."""
        return len(self.skipped_files)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        row = int(self.rows[index])
        with self.images.open(row) as stream:
            return decode(stream, self.images.name(row)), int(self.targets[index])

    def take(self, count: int | None, seed: int = 0) -> ImageDataset:
        """At most `count` of the images, one of each class in turn, or all of them in their own order for None."""
        if count is None:
            return self
        if count < 1:
            raise BadInput(f"{count} images of {self.name} were asked for; ask for at least 1.")
        chosen = balanced_order(self.targets, seed)[:count]
        return replace(self, targets=self.targets[chosen], rows=self.rows[chosen])

    def digest(self) -> str:
        """sha256 (hex) of the encoded images, their classes and their labels; reads everything once."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        content = hashlib.sha256(json.dumps(self.labels).encode())
        content.update(self.targets.astype("<i8").tobytes())
        for row in self.rows:
            with self.images.open(int(row)) as stream:
                content.update(hashlib.sha256(stream.read()).digest())
        return content.hexdigest()


def checked(dataset: ImageDataset, *, strict: bool, progress: Progress) -> ImageDataset:
    """Return the dataset without the images that cannot be decoded; with `strict`, the first of them raises."""
    good, bad = [], []
    total = len(dataset)
    thorough = total <= THOROUGH_UP_TO
    why = ""
    for index, row in enumerate(map(int, dataset.rows)):
        try:
            with dataset.images.open(row) as stream:
                check(stream, dataset.images.name(row), thorough=thorough)
            good.append(index)
        except BadInput as e:
            if strict:
                raise BadInput(f"{e} Remove it, or leave out --strict to skip and count such files.") from e
            bad.append(dataset.images.name(row))
            why = why or str(e)
        if index % 100 == 99 or index == total - 1:
            progress(f"checking {dataset.name}", index + 1, total)
    if not good:
        raise BadInput(f"{dataset.name} has no image that can be read. {why}".rstrip())
    if not bad:
        return dataset
    return replace(dataset, targets=dataset.targets[good], rows=dataset.rows[good], skipped_files=tuple(bad))


def check_classes(model_classes: int, dataset: ImageDataset) -> None:
    """Raise BadInput when a model's number of classes is not the data's."""
    if model_classes != len(dataset.labels):
        raise BadInput(
            f"The model has {model_classes} classes but {dataset.name} has {len(dataset.labels)}; "
            f"use data with the model's classes, or a model with {len(dataset.labels)}."
        )
