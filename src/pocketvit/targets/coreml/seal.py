"""A digest inside every package pocketvit writes, so that one damaged byte cannot be taken for an answer."""

from __future__ import annotations

import hashlib
from typing import Any

from ...errors import BadInput
from .package import Package
from .program import Program

SEAL_KEY = "pocketvit.sha256"


def seal(package: Package, program: Program) -> None:
    """Write a package's description back with the digest of all it computes and says; any later change breaks it.

    The manifest is not covered: it only names the files.
    """
    package.spec.description.metadata.userDefined[SEAL_KEY] = digest(package, program)
    package.model.write_bytes(package.spec.SerializeToString())


def check_seal(package: Package, program: Program) -> None:
    """Raise BadInput unless the package is, byte for byte of what it computes and says, the one that was sealed."""
    sealed = package.spec.description.metadata.userDefined.get(SEAL_KEY)
    if sealed is None:
        raise BadInput(f"{package.path} carries pocketvit's metadata but no digest of its content; export it again.")
    if sealed != digest(package, program):
        raise BadInput(f"{package.path} was damaged or edited after pocketvit wrote it; export it again.")


def digest(package: Package, program: Program) -> str:
    """SHA-256 over the description without its seal and over every weight file the program reads.

    The description is hashed as protobuf writes it deterministically (fields and map keys in order), not as it lies
    on disk, because coremltools and Xcode order it as they like.
    """
    spec: Any = type(package.spec)()
    spec.CopyFrom(package.spec)
    spec.description.metadata.userDefined.pop(SEAL_KEY, None)
    total = hashlib.sha256(spec.SerializeToString(deterministic=True))
    for name in sorted(program.weight_files):
        total.update(hashlib.sha256(package.weights(name).data.data).digest())
    return total.hexdigest()
