"""Files that are either whole or absent: write beside, fsync, rename. Hashes of what is on disk."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT}
_NO_SPACE_WORDS = ("no space left", "os error 28", "disk quota exceeded", "the disk is full")
_FULL_BYTES = 1 << 20  # with less left than this, no export or checkpoint can be written
_REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync_tree(path: Path) -> None:
    """Flush a file, or a directory and all below it, to disk."""
    if path.is_dir():
        for child in path.iterdir():
            fsync_tree(child)
    _fsync(path)


def remove(path: Path) -> None:
    """Delete a file or directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def beside(path: Path) -> Path:
    """A hidden name beside `path` for its unfinished form, with the same suffix and private to this process."""
    return path.with_name(f".partial-{os.getpid()}-{path.name}")


def check_writable(path: Path) -> None:
    """Raise BadInput unless something can be made where `path` is to be; leaves nothing, not even directories."""
    try:
        # permissions promise too much (to root, or on a read-only disk), so something is made and removed
        probe = beside(_nearest(path.parent) / "probe")
        probe.mkdir()
        probe.rmdir()
    except OSError as e:
        raise _disk_full(e, path) or _refused(e, path) from e


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Raise BadInput naming `path` for whatever fails inside because its disk is full."""
    try:
        yield
    except Exception as e:
        if full := _disk_full(e, path):
            raise full from e
        raise


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it takes the place of `path` in one step, on failure nothing is left.

    A disk that is full or may not be written raises BadInput naming the path.
    """
    with _partial(path) as partial:
        yield partial
        fsync_tree(partial)
        partial.replace(path)
        _fsync(path.parent)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """As `replace_file`, for a directory; one already at `path` is replaced, and put back when that fails."""
    old = beside(_old(path))
    with _partial(path) as partial:
        for leftover in _abandoned(_old(path)):
            _settle(leftover, path)
        partial.mkdir()
        try:
            yield partial
            fsync_tree(partial)
            if path.exists():
                path.replace(old)
            partial.replace(path)
            _fsync(path.parent)
        finally:
            _settle(old, path)


@contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """Yield an empty hidden directory beside `path`, on the same disk; it is gone afterwards, whatever happens."""
    with _partial(path) as directory:
        directory.mkdir()
        yield directory


def move_into_place(parts: Sequence[Path], directory: Path) -> None:
    """Move finished files that belong together into `directory`, over older ones; the first is the one users name.

    An older first file goes before anything else and the new one comes last: a kill in between leaves no file that
    can be opened, never a new half beside an old one, which would load and be wrong.
    """
    main, *companions = parts
    for part in parts:
        fsync_tree(part)
    if companions or (directory / main.name).is_dir():
        remove(directory / main.name)
        _fsync(directory)
    for part in (*companions, main):
        part.replace(directory / part.name)
    _fsync(directory)


@contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yield the name for the unfinished form of `path`, in a directory that exists; it is removed afterwards."""
    partial = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in (partial, *_abandoned(path)):
            remove(leftover)
    except OSError as e:
        raise _disk_full(e, path) or _refused(e, path) from e
    try:
        with full_disk_named(path):  # asked before the unfinished form is removed, which frees its space
            yield partial
    except OSError as e:
        if e.errno in _REFUSALS:
            raise _refused(e, path) from e
        raise
    finally:
        remove(partial)


def _abandoned(path: Path) -> list[Path]:
    """Unfinished forms of `path` whose process was killed."""
    name = re.compile(rf"\.partial-(\d+)-{re.escape(path.name)}")
    found = [(p, match) for p in path.parent.iterdir() if (match := name.fullmatch(p.name))]
    return [p for p, match in found if not _is_running(int(match[1]))]


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it runs, for another user
        return True
    return True


def _old(path: Path) -> Path:
    """What a directory is called while it is being replaced, before `beside` hides it."""
    return path.with_name(f"old-{path.name}")


def _settle(old: Path, path: Path) -> None:
    """Put a directory that was moved out of the way back if nothing took its place, or delete it."""
    if old.exists() and not path.exists():
        old.replace(path)
    remove(old)


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _nearest(path: Path) -> Path:
    """`path` or the nearest directory above it that exists."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists())


def _disk_full(error: Exception, path: Path) -> BadInput | None:
    """The error for a full disk if that is what is behind `error`.

    Libraries wrap what the system said, or say something else instead, so the chain of errors is searched and then
    the disk itself is asked.
    """
    link: BaseException | None = error
    full = False
    while link is not None and not full:
        full = isinstance(link, OSError) and link.errno in _NO_SPACE
        full = full or any(words in str(link).lower() for words in _NO_SPACE_WORDS)
        link = link.__cause__ or link.__context__
    if not full and not (isinstance(error, OSError) and error.errno in _REFUSALS):
        disk = shutil.disk_usage(_nearest(path))
        full = disk.total > 0 and disk.free < _FULL_BYTES  # systems like /sys have no size at all
    return BadInput(f"The disk is full: {path} could not be written; free some space and run again.") if full else None


def _refused(error: OSError, path: Path) -> BadInput:
    return BadInput(f"{path} cannot be written ({error.strerror or error}); choose another place.")


def size_bytes(paths: list[Path]) -> int:
    """Total size of files and of directories' contents."""
    return sum(
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size
        for path in paths
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a directory's relative names and bytes in name order."""
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode() + b"\0")
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
