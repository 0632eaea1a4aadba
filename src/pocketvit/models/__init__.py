"""Models: create by name, save and load checkpoints, make them deployable. Adding a family means adding one file."""

from __future__ import annotations

import importlib
import pkgutil

from .checkpoint import save, weights_sha256
from .model import Deployable, EagerRunner, Model, deployable
from .resolve import create

# Our own architectures register themselves with timm when their file is imported.
for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = ["Deployable", "EagerRunner", "Model", "create", "deployable", "save", "weights_sha256"]
