"""Opening files we did not necessarily write: damage becomes one sentence, and a file must be what it claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import BadInput, PocketvitError
from ..types import METADATA_KEY, METADATA_MAX_BYTES, Artifact


@contextmanager
def damage_reported(path: Path, kind: str) -> Iterator[None]:
    """Turn whatever a library raises on a damaged file into BadInput that names the file."""
    try:
        yield
    except PocketvitError:
        raise
    except Exception as error:  # each library has its own zoo of errors for a truncated file
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = lines[0][:200] if lines else type(error).__name__
        raise BadInput(f"{path} is not a readable {kind} file ({why}); export it again.") from error


class NotOurs(BadInput):
    """The file is fine but was not written by pocketvit, so it does not say what it takes."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} carries no {METADATA_KEY!r} metadata, so pocketvit did not export it; of such files only Core ML "
            "packages (.mlpackage) can be read, by eval, classify and audit."
        )


def check_metadata_size(path: Path, size: int) -> None:
    """Raise BadInput when a file claims more metadata than is ever written, before it is unpacked."""
    if size > METADATA_MAX_BYTES:
        raise BadInput(f"{path} carries {size} bytes of pocketvit metadata, more than {METADATA_MAX_BYTES}.")


def check_shapes(artifact: Artifact, image: Sequence[object], logits: Sequence[object]) -> None:
    """Raise BadInput unless the network inside takes and returns what the file's metadata says."""
    expected = (1, *artifact.spec.size), (1, artifact.classes)
    found = tuple(image), tuple(logits)
    if found != expected:
        raise BadInput(
            f"{artifact.path} holds a network {found[0]} -> {found[1]}, "
            f"but its metadata says {expected[0]} -> {expected[1]}."
        )
