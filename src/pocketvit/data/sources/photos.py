"""Thirty-two square crops of the two photographs that come with scikit-learn: real images when no data is given."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..storage import MemoryImages
from . import SOURCES, Contents, Part, Source

CROPS = 16  # per photograph
SMALLEST = 128  # pixels; the largest crop is the photograph's full height


def read(argument: str) -> Contents:
    """Cut the crops: sizes from SMALLEST to the full height, places drawn once and for all."""
    from sklearn.datasets import load_sample_image

    labels = ("china", "flower")
    random = np.random.RandomState(0)
    crops = []
    for label in labels:
        photo = Image.fromarray(load_sample_image(f"{label}.jpg"))
        for side in np.linspace(SMALLEST, photo.height, CROPS).astype(int):
            left = random.randint(photo.width - side + 1)
            top = random.randint(photo.height - side + 1)
            crops.append(photo.crop((left, top, left + side, top + side)))
    targets = np.repeat(np.arange(len(labels)), CROPS)
    return Contents(labels=labels, parts={"all": Part(images=MemoryImages("photos", crops), targets=targets)})


SOURCES.add("photos", Source(name="photos", argument="", read=read))
