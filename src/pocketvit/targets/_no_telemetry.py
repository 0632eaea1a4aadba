"""Keeps the libraries behind the targets from reporting home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

_SETTINGS = {
    "ORT_DISABLE_TELEMETRY": "1",  # ONNX Runtime since 1.29, on Linux too; read once, when it is first imported
    "CI": "true",  # OpenVINO reports when it is imported and when it converts, but not from continuous integration
    "NNCF_CI": "1",
}


@contextmanager
def no_telemetry() -> Iterator[None]:
    """Switch reporting off while libraries are imported and used; the environment is put back afterwards.

    A library that the caller imported before has already decided, and keeps to its decision.
    """
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
