"""Kinds of data by the word before the colon; adding one means adding one file here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...registry import Registry
from ..storage import Images


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Part:
    """Images as they were published together: a split, or everything. targets: int64, one per image."""

    images: Images
    targets: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Contents:
    """What a source holds. parts: by split (train, val, test), or one part called all when it is undivided."""

    labels: tuple[str, ...]
    parts: Mapping[str, Part]


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A kind of data. argument: what goes after the colon (PATH, NAME), empty when nothing does.

    read: argument -> Contents; looks at names and labels, not yet at pixels; raises BadInput.
    """

    name: str
    argument: str
    read: Callable[[str], Contents]

    @property
    def usage(self) -> str:
        """How it is written."""
        return f"{self.name}:{self.argument}" if self.argument else self.name


SOURCES: Registry[Source] = Registry("kind of data", "pocketvit.data.sources")
