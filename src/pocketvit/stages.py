"""A run directory of stages: each is done once, survives kills, and is redone when what it depends on changes."""

from __future__ import annotations

import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import files
from .errors import BadInput
from .types import Progress, plain, silent

_MANIFEST = "stage.json"
_MARKER = "pocketvit-run.json"


def key_of(value: Any) -> str:
    """A hash of values that `plain` knows; a dataclass counts with its type and every field."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Stage:
    """A finished stage: where its files are, the key of what it depended on, whether an earlier run had done it."""

    path: Path
    key: str
    reused: bool


class RunDirectory:
    """Holds the stages of one run; only one process may work in it at a time."""

    def __init__(self, path: Path, progress: Progress = silent) -> None:
        self.path = path
        self.progress = progress

    @contextmanager
    def open(self) -> Iterator[RunDirectory]:
        """Claim the directory for this process; BadInput when it holds something else or another run is in it."""
        if self.path.exists() and not self.path.is_dir():
            raise BadInput(f"{self.path} is a file; a run needs a directory.")
        if self.path.is_dir() and any(self.path.iterdir()) and not (self.path / _MARKER).exists():
            raise BadInput(f"{self.path} holds something that is not a pocketvit run; choose another with --out.")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            marker = (self.path / _MARKER).open("a")
        except OSError as e:
            raise BadInput(f"{self.path} cannot be written ({e.strerror}); choose another with --out.") from e
        with marker:
            try:
                # the kernel drops the lock when the process dies, however it dies
                fcntl.flock(marker, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise BadInput(f"Another process is working in {self.path}; wait for it or choose another.") from None
            for leftover in self.path.glob(".partial-*"):
                files.remove(leftover)
            yield self

    def stage(
        self, name: str, depends: Mapping[str, Any], work: Callable[[Path, Path], None], *, scratch: bool = False
    ) -> Stage:
        """Return the finished stage `name`, doing its work only if no finished one has the same key and files.

        work(out, scratch) writes into `out`, which becomes the stage's directory in one rename when it returns. With
        `scratch`, a directory private to this key survives kills, for work that can go on where it stopped.
        """
        key = key_of({"stage": name, **depends})
        path = self.path / name
        if _is_whole(path, key):
            return Stage(path, key, True)
        start = time.monotonic()
        kept = self.path / f".scratch-{name}-{key}"
        for stale in self.path.glob(f".scratch-{name}-*"):
            if stale != kept:
                files.remove(stale)
        self.progress(name, 0, 1)
        with files.replace_directory(path) as partial:
            if scratch:
                kept.mkdir(exist_ok=True)
            work(partial, kept)
            listing = {str(p.relative_to(partial)): files.sha256(p) for p in partial.rglob("*") if p.is_file()}
            manifest = {"stage": name, "key": key, "seconds": round(time.monotonic() - start, 2), "files": listing}
            (partial / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        files.remove(kept)
        self.progress(name, 1, 1)
        return Stage(path, key, False)


def _is_whole(path: Path, key: str) -> bool:
    """True when `path` holds a finished stage with this key whose files are exactly those it was finished with."""
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        if manifest["key"] != key:
            return False
        present = {str(p.relative_to(path)) for p in path.rglob("*") if p.is_file()} - {_MANIFEST}
        return present == set(manifest["files"]) and all(
            files.sha256(path / name) == digest for name, digest in manifest["files"].items()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
