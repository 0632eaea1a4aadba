"""open_data: from `digits`, `folder:PATH`, `parquet:PATH`, `hf:NAME` or `photos` to images that can all be read."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import BadInput
from ..types import Progress, silent
from .dataset import ImageDataset, checked
from .sources import SOURCES, Source
from .splits import portion, stratified_order
from .storage import JoinedImages


def open_data(source: str, split: str = "all", *, strict: bool = False, progress: Progress = silent) -> ImageDataset:
    """Open one split (all, train, val, test) of a source.

    Splits are those of the source where it has them, else fixed and stratified: see splits.portion. Every image is
    checked now, so that counts are known before work: what cannot be decoded is skipped and counted, or with
    `strict` raises. Beyond 10,000 images a JPEG is checked by header and end alone. Raises BadInput.
    """
    kind, argument = _parse(source)
    contents = kind.read(argument)
    names, start, stop = portion(contents.parts, split, source)
    parts = [contents.parts[name] for name in names]
    targets = np.concatenate([part.targets for part in parts])
    if (start, stop) == (0.0, 1.0):
        rows = np.arange(len(targets))
    else:
        rows = np.sort(stratified_order(targets)[round(start * len(targets)) : round(stop * len(targets))])
    stand_in = f"{names[0]} as {split}" if split == "test" and names == ("val",) else split
    title = f"{source} ({stand_in})"
    if not len(rows):
        raise BadInput(f"{title} would be empty: there are {len(targets)} images to divide; add more.")
    dataset = ImageDataset(
        name=title,
        labels=contents.labels,
        targets=targets[rows],
        images=parts[0].images if len(parts) == 1 else JoinedImages([part.images for part in parts]),
        rows=rows,
    )
    return checked(dataset, strict=strict, progress=progress)


def _parse(source: str) -> tuple[Source, str]:
    name, _, argument = source.partition(":")
    if source and name not in SOURCES and Path(source).expanduser().exists():
        kind = "parquet" if Path(source).suffix == ".parquet" else "folder"
        raise BadInput(f"{source!r} does not say what kind of data it is; write {kind}:{source}.")
    found = SOURCES.get(name)
    if found.argument and not argument:
        raise BadInput(f"{source!r} does not say which; write {found.usage}.")
    if argument and not found.argument:
        raise BadInput(f"{source!r} says too much; write {found.usage}.")
    return found, argument
