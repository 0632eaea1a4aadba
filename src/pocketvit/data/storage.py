"""Where encoded images are kept: in memory, in files, or in an Arrow column; each opens one image at a time."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from PIL import Image

from ..errors import BadInput

if TYPE_CHECKING:
    import pyarrow


class Images(Protocol):
    """Encoded images by row."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """What to call the image in a message: its file, or where it came from and its row."""

    def open(self, row: int) -> BinaryIO:
        """The encoded image as a seekable stream, at its start; the caller closes it."""


class MemoryImages:
    """Images made here, kept as uncompressed PPM so that their bytes are the same everywhere."""

    def __init__(self, source: str, images: Sequence[Image.Image]) -> None:
        self._source = source
        self._encoded = [b"P6 %d %d 255\n" % image.size + image.convert("RGB").tobytes() for image in images]

    def __len__(self) -> int:
        return len(self._encoded)

    def name(self, row: int) -> str:
        """See Images."""
        return f"{self._source} image {row}"

    def open(self, row: int) -> BinaryIO:
        """See Images."""
        return io.BytesIO(self._encoded[row])


class FileImages:
    """One file per image."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, row: int) -> str:
        """See Images."""
        return str(self._paths[row])

    def open(self, row: int) -> BinaryIO:
        """See Images."""
        try:
            return self._paths[row].open("rb")
        except OSError as e:
            raise BadInput(f"{self._paths[row]} cannot be opened ({e.strerror}).") from e


class ArrowImages:
    """A column of Hugging Face image structs {bytes, path}, fetched by `load` when the first image is asked for.

    Pickled without the column, so that a worker process fetches its own.
    """

    def __init__(self, source: str, length: int, load: Callable[[], pyarrow.ChunkedArray]) -> None:
        self._source = source
        self._length = length
        self._load = load

    @cached_property
    def _column(self) -> pyarrow.ChunkedArray:
        return self._load()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_column"}

    def __len__(self) -> int:
        return self._length

    def name(self, row: int) -> str:
        """See Images."""
        return f"{self._source} row {row}"

    def open(self, row: int) -> BinaryIO:
        """See Images."""
        image = self._column[row].as_py() or {}
        if image.get("bytes") is not None:
            return io.BytesIO(image["bytes"])
        path = Path(image.get("path") or "")
        if not path.is_file():
            raise BadInput(f"{self.name(row)} holds no image.")
        return path.open("rb")


class JoinedImages:
    """Several stores, one after the other."""

    def __init__(self, parts: Sequence[Images]) -> None:
        self._parts = parts
        self._starts = [0, *accumulate(map(len, parts))]

    def __len__(self) -> int:
        return self._starts[-1]

    def name(self, row: int) -> str:
        """See Images."""
        part, row = self._find(row)
        return part.name(row)

    def open(self, row: int) -> BinaryIO:
        """See Images."""
        part, row = self._find(row)
        return part.open(row)

    def _find(self, row: int) -> tuple[Images, int]:
        part = bisect_right(self._starts, row) - 1
        return self._parts[part], row - self._starts[part]
