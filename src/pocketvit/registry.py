"""One small registry: names to things, filled by importing the files of a package the first time it is asked."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from .errors import BadInput

T = TypeVar("T")
_NEAR = 0.6


def close_matches(name: str, known: Iterable[str], most: int = 3) -> str:
    """Return ' Did you mean a, b?' for the nearest known names, or an empty string.

    A name may be near the beginning of a longer one: deit_tny is near deit_tiny_patch16_224.
    """

    def nearness(candidate: str) -> float:
        match = difflib.SequenceMatcher(None, b=name)
        ratios = []
        for text in (candidate, candidate[: len(name) + 1]):
            match.set_seq1(text)
            ratios.append(match.ratio() if match.quick_ratio() > _NEAR else 0.0)
        return max(ratios)

    scored = sorted((-nearness(candidate), candidate) for candidate in known)
    matches = [candidate for score, candidate in scored[:most] if -score > _NEAR]
    return f" Did you mean {', '.join(matches)}?" if matches else ""


class Registry(Generic[T]):
    """Things of one kind by name; adding one means adding one file to `package`.

    Files whose names start with an underscore are not entries. They are imported on the first look-up, not
    before, so heavy libraries must be imported inside functions.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, T] = {}
        self._filled = False

    def add(self, name: str, entry: T) -> T:
        """Register `entry`; a name already taken raises ValueError."""
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered twice.")
        self._entries[name] = entry
        return entry

    def get(self, name: str) -> T:
        """Return the entry called `name`, or raise BadInput with the closest names."""
        self._fill()
        if name not in self._entries:
            known = ", ".join(sorted(self._entries))
            hint = close_matches(name, self._entries) or f" Known: {known}."
            raise BadInput(f"There is no {self.kind} called {name!r}.{hint}")
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        self._fill()
        return iter(sorted(self._entries))

    def _fill(self) -> None:
        if self._filled:
            return
        self._filled = True
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            if not module.name.startswith("_"):
                importlib.import_module(f"{self.package}.{module.name}")
