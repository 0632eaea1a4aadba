from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

FIGURES = Path(__file__).resolve().parents[3] / "shared" / "figures"


@pytest.fixture(scope="session")
def figures() -> Callable[[str], list[dict[str, str]]]:
    """Reads one of the files that the tables were built from."""
    if not FIGURES.is_dir():
        pytest.skip(
            f"the figures that the tables were built from are not at {FIGURES.parent.name}/ beside the project"
        )

    def read(name: str) -> list[dict[str, str]]:
        with (FIGURES / name).open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    return read
