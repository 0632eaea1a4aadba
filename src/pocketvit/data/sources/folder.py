"""One folder per class, as torchvision's ImageFolder reads them, perhaps inside train, val and test folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np

from ...errors import BadInput
from ..splits import NAMES, SPLITS, WHOLE
from ..storage import FileImages
from . import SOURCES, Contents, Part, Source


def read(argument: str) -> Contents:
    """List PATH. Classes are the sorted folder names; every file in them (and below) counts as an image.

    Names that start with a dot are left out. With split folders, the classes are those of train (of all of them
    where there is no train), and a class that train lacks raises BadInput.
    """
    root = Path(argument).expanduser()
    if not root.is_dir():
        raise BadInput(f"There is no folder {root}; give one that holds a folder of images per class.")
    roots = _split_folders(root) or {WHOLE: root}
    classes = {split: _folders(folder) for split, folder in roots.items()}
    labels = classes["train"] if "train" in classes else sorted({name for names in classes.values() for name in names})
    if len(labels) < 2:
        found = f"one class folder ({labels[0]})" if labels else "no class folders"
        raise BadInput(f"{root} has {found}; put the images in one folder per class, at least two.")
    for split, names in classes.items():
        if extra := sorted(set(names) - set(labels)):
            raise BadInput(f"{roots[split]} has the class {extra[0]!r}, which {roots['train']} does not have.")
    index = {name: i for i, name in enumerate(labels)}
    parts = {}
    for split, folder in roots.items():
        files = {name: _files(folder / name) for name in classes[split]}
        if empty := [name for name in classes[split] if not files[name]]:
            raise BadInput(f"The class folder {folder / empty[0]} is empty; fill it or remove it.")
        parts[split] = Part(
            images=FileImages([path for paths in files.values() for path in paths]),
            targets=np.array([index[name] for name, paths in files.items() for _ in paths], np.int64),
        )
    return Contents(labels=tuple(labels), parts=parts)


def _split_folders(root: Path) -> dict[str, Path]:
    """The folders train, val (or valid, validation) and test that hold class folders, by split.

    A folder called train that holds pictures itself is a class: of vehicles, say.
    """
    found: dict[str, Path] = {}
    for name in _folders(root):
        split = NAMES.get(name.lower())
        if split and _folders(root / name):
            if split in found:
                raise BadInput(f"{root} has both {found[split].name} and {name}; keep one of them.")
            found[split] = root / name
    return {split: found[split] for split in SPLITS if split in found}


def _folders(root: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError as e:
        _refuse(e)


def _files(root: Path) -> list[Path]:
    """In torchvision's order: folders sorted by path, then files by name."""
    walk = sorted(os.walk(root, followlinks=True, onerror=_refuse))
    return [Path(folder, name) for folder, _, names in walk for name in sorted(names) if not name.startswith(".")]


def _refuse(error: OSError) -> NoReturn:
    raise BadInput(f"{error.filename} cannot be listed ({error.strerror}).") from error


SOURCES.add("folder", Source(name="folder", argument="PATH", read=read))
