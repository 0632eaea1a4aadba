"""Modules whose parameters can be folded into constants once training is over."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

from torch import nn


class Foldable(nn.Module, ABC):
    """A module with one form to train and one to deploy, which give equal outputs to float rounding.

    `fuse` is timm's name for the step, so `timm.utils.reparameterize_model` finds it as well.
    """

    @property
    @abstractmethod
    def is_folded(self) -> bool:
        """True once `fuse` was called: its parameters are gone, so it can be run but neither trained nor saved."""

    @abstractmethod
    def fuse(self) -> Self:
        """Replace what is computed from parameters alone by its value, in place; once or often, to the same effect."""


def fold(module: nn.Module) -> None:
    """Fold every Foldable inside `module`, in place."""
    for part in list(module.modules()):
        if isinstance(part, Foldable):
            part.fuse()
