"""Data sets by their Hugging Face name, or a local folder that the `datasets` library can read; an optional extra."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadInput
from ...hub import reachable
from ..splits import NAMES, SPLITS, WHOLE
from ..storage import ArrowImages
from . import SOURCES, Contents, Part, Source
from .parquet import class_indices, columns, label_names

if TYPE_CHECKING:
    import pyarrow


def read(argument: str) -> Contents:
    """Load NAME from the cache or the Hub. Offline it takes what is cached, and otherwise says so at once."""
    local = Path(argument).is_dir()
    if not local and not re.fullmatch(r"[\w.-]+/[\w.-]+", argument):  # `csv` alone would read the current folder
        raise BadInput(f"hf:{argument} is neither organisation/name nor a folder; write it like hf:uoft-cs/cifar10.")
    try:
        import datasets
    except ImportError as e:
        raise BadInput(f"hf:{argument} needs the datasets library: pip install 'pocketvit[hf]' ({e}).") from e
    online = not local and reachable()
    try:
        with _quiet(datasets, online):
            loaded = datasets.load_dataset(argument)
    except ConnectionError as e:
        raise BadInput(
            f"{argument} is not in the local cache and the Hugging Face Hub cannot be reached; connect and try again, "
            "or use a local copy with folder:PATH or parquet:PATH."
        ) from e
    except (OSError, ValueError, RuntimeError) as e:  # an unknown name, a private or gated set, a missing config
        reason = str(e).partition("\n")[0]
        raise BadInput(f"The data set {argument!r} cannot be loaded: {reason}") from e
    except datasets.exceptions.DatasetGenerationError as e:
        raise BadInput(f"The data set {argument!r} cannot be prepared: {e.__cause__ or e}") from e
    return _contents(argument, {str(split): data for split, data in loaded.items()})


def _contents(argument: str, loaded: dict[str, Any]) -> Contents:
    known = {NAMES[name]: name for name in loaded if name in NAMES}
    chosen = {split: known[split] for split in SPLITS if split in known}
    if not chosen:
        if len(loaded) > 1:
            raise BadInput(f"{argument} has the splits {', '.join(loaded)}; none is train, validation or test.")
        chosen = {WHOLE: next(iter(loaded))}
    names: list[str] = []
    parts = {}
    for split, name in chosen.items():
        data = loaded[name]
        image, label = columns(data.column_names, f"{argument} ({name})")
        names = names or list(getattr(data.features[label], "names", None) or [])
        targets = class_indices(data.data.column(label), f"column {label} of {argument} ({name})")
        images = ArrowImages(f"{argument} ({name})", len(targets), partial(_column, data, image))
        parts[split] = Part(images=images, targets=targets)
    return Contents(labels=label_names(names, [part.targets for part in parts.values()], argument), parts=parts)


def _column(data: Any, name: str) -> pyarrow.ChunkedArray:
    return data.data.column(name)


@contextmanager
def _quiet(datasets: Any, online: bool) -> Iterator[None]:
    """No usage counts sent; no request at all when the Hub is out of reach. The library offers no argument for it."""
    from huggingface_hub import constants

    settings = [(datasets.config, "HF_UPDATE_DOWNLOAD_COUNTS", False)]
    if not online:
        settings += [(datasets.config, "HF_HUB_OFFLINE", True), (constants, "HF_HUB_OFFLINE", True)]
    before = [(module, name, getattr(module, name)) for module, name, _ in settings]
    for module, name, value in settings:
        setattr(module, name, value)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


SOURCES.add("hf", Source(name="hf", argument="NAME", read=read))
