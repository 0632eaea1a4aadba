"""Trained checkpoints that ship with pocketvit: small, so that what is measured on them can be measured anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "weights"
MEASURED = "measured"  # key of config.json: what was reached, and how


@dataclass(frozen=True, kw_only=True, slots=True)
class Packaged:
    """One checkpoint directory in timm's Hub layout, with its model card (README.md).

    top1: share (0..1) of `images` test images of `data`, measured with the weights as they are stored.
    """

    name: str
    path: Path
    params: int
    size_bytes: int
    data: str
    top1: float
    images: int


def packaged() -> Mapping[str, Packaged]:
    """Every checkpoint that ships, by the name `create` takes ("pocket_moat_48.cifar10"); imports no torch."""
    found = {}
    for path in sorted(_DIRECTORY.glob("*/config.json")):
        config = json.loads(path.read_text())
        measured = config[MEASURED]
        found[path.parent.name] = Packaged(
            name=path.parent.name,
            path=path.parent,
            params=int(measured["params"]),
            size_bytes=(path.parent / "model.safetensors").stat().st_size,
            data=str(measured["data"]),
            top1=float(measured["top1"]),
            images=int(measured["images"]),
        )
    return found
