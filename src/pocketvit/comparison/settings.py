"""Settings that PyTorch keeps once for a process: changed for a comparison, and as they were afterwards."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_CACHE = "TORCHINDUCTOR_CACHE_DIR"


@contextmanager
def borrowed_settings() -> Iterator[None]:
    """Give back threads, int8 engine and compiler cache; the cache is temporary unless the user has chosen one."""
    threads, chosen = torch.get_num_threads(), os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="pocketvit-compile-") as cache, quantized_engine(None):
        os.environ[_CACHE] = chosen or cache
        try:
            yield
        finally:
            if chosen is None:
                del os.environ[_CACHE]
            else:
                os.environ[_CACHE] = chosen
            torch.set_num_threads(threads)


@contextmanager
def quantized_engine(name: str | None) -> Iterator[None]:
    """Quantize and load with this engine (None: the one that is set); afterwards the earlier one is set again."""
    before = torch.backends.quantized.engine
    if name is not None:
        torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def on_one_line(error: BaseException) -> str:
    """What an exception says, with its kind, on one line that is short enough for a table's note."""
    words = textwrap.shorten(str(error), 300, placeholder=" ...")
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
