"""Files that are either whole or absent: write beside, fsync, rename. Hashes of what is on disk."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput


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


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a path to write to; on success it takes the place of `path` in one step, on failure nothing is left.

    A full disk raises BadInput naming the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = beside(path)
    try:
        yield partial
        fsync_tree(partial)
        partial.replace(path)
        _fsync(path.parent)
    except OSError as e:
        raise _disk_error(e, path) from e
    finally:
        remove(partial)


@contextmanager
def replace_directory(path: Path) -> Iterator[Path]:
    """As `replace_file`, for a directory; one already at `path` is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial, old = beside(path), beside(path.with_name(f"old-{path.name}"))
    remove(partial)
    partial.mkdir()
    try:
        yield partial
        fsync_tree(partial)
        if path.exists():
            path.replace(old)
        partial.replace(path)
        _fsync(path.parent)
    except OSError as e:
        raise _disk_error(e, path) from e
    finally:
        remove(partial)
        remove(old)


@contextmanager
def workspace(path: Path) -> Iterator[Path]:
    """Yield an empty hidden directory beside `path`, on the same disk; it is gone afterwards, whatever happens."""
    path.parent.mkdir(parents=True, exist_ok=True)
    directory = beside(path)
    remove(directory)
    directory.mkdir()
    try:
        yield directory
    except OSError as e:
        raise _disk_error(e, path) from e
    finally:
        remove(directory)


def write_text(path: Path, text: str) -> None:
    """Write a small text file whole."""
    with replace_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _disk_error(error: OSError, path: Path) -> Exception:
    import errno

    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BadInput(f"The disk is full: {path} could not be written; free some space and run again.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return BadInput(f"{path} cannot be written ({error.strerror}); choose another place.")
    return error


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
