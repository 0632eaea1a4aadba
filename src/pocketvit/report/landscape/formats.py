"""The survey's figure in the format of a file's suffix: SVG, PNG or a page."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ...catalogue import Choice, PublishedLatency
from ...errors import BadInput

FORMATS = (".svg", ".png", ".html")


def write(choice: Choice, path: Path, around: Sequence[PublishedLatency] = ()) -> None:
    """Draw a choice to `path`, whole or not at all, in the format of its suffix.

    around: rows of the same device and toolchain outside the budget, drawn faint. Raises BadInput for a format that
    is not made, a figure without points, rows of another setup, or a missing drawing library.
    """
    check(path)
    if path.suffix.lower() == ".html":
        from .page import write_landscape_page

        write_landscape_page(choice, path, around)
    else:
        from .figure import write_figure

        write_figure(choice, path, around)


def check(path: Path) -> None:
    """Raise BadInput unless a figure of the suffix of `path` can be drawn here."""
    if path.suffix.lower() not in FORMATS:
        raise BadInput(f"A plot is written as {', '.join(FORMATS)}; {path.name} ends in none of these.")
    if path.suffix.lower() != ".html" and importlib.util.find_spec("matplotlib") is None:
        raise BadInput(
            f"Drawing {path.suffix} needs matplotlib: pip install 'pocketvit[plot]'; .html is drawn without it."
        )
