"""pocketvit puts any vision transformer on a phone or edge device and proves that it still works.

model = pocketvit.create("deit_tiny_patch16_224", pretrained=True)
proof = pocketvit.export(model, "onnx", "deit_tiny.onnx", precision="w8a8-dynamic")
pocketvit.evaluate("deit_tiny.onnx", "folder:photos")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .artifacts import bench, evaluate, export, load, proof_images, verify
    from .models import create, save
    from .pipeline import run
    from .recipe import read_recipe

# Importing pocketvit costs nothing: each name is fetched, and torch with it, when it is first used.
_HOMES = {
    "create": "models",
    "save": "models",
    "export": "artifacts",
    "load": "artifacts",
    "verify": "artifacts",
    "evaluate": "artifacts",
    "bench": "artifacts",
    "proof_images": "artifacts",
    "read_recipe": "recipe",
    "run": "pipeline",
    "ane": "passes.ane",
}

__all__ = [
    "ane",
    "bench",
    "create",
    "evaluate",
    "export",
    "load",
    "proof_images",
    "read_recipe",
    "run",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pocketvit' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
