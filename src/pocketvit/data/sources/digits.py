"""scikit-learn's handwritten digits: 1,797 real 8x8 scans, upsampled to 32x32; train 1,137, val 300, test 360."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..splits import stratified_order
from ..storage import MemoryImages
from . import SOURCES, Contents, Part, Source

SIZE = 32
ENDS = {"train": (0, 1137), "val": (1137, 1437), "test": (1437, 1797)}


def read(argument: str) -> Contents:
    """Make the images from the array that comes with scikit-learn."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    targets = digits.target.astype(np.int64)
    grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
    images = [Image.fromarray(g).resize((SIZE, SIZE), Image.Resampling.BICUBIC) for g in grey]
    order = stratified_order(targets)
    parts = {}
    for split, (start, stop) in ENDS.items():
        rows = np.sort(order[start:stop])
        parts[split] = Part(
            images=MemoryImages(f"digits {split}", [images[row] for row in rows]), targets=targets[rows]
        )
    return Contents(labels=tuple(map(str, digits.target_names)), parts=parts)


SOURCES.add("digits", Source(name="digits", argument="", read=read))
