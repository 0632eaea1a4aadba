"""The rows of a run as a JSON file, and back; writes appear whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import BadInput
from ..files import replace_file
from ..types import Evidence, Row

FORMAT = "pocketvit rows 1"
MAX_BYTES = 16 << 20  # thousands of rows; a larger file is not ours
TEXTS = ("name", "target", "precision", "check")
PARTS = ("accuracy", "agreement", "latency", "quantized")


def save_rows(rows: Sequence[Row], environment: Mapping[str, str], path: Path) -> None:
    """Write rows and environment to `path` as readable JSON."""
    whole = {"format": FORMAT, "environment": dict(environment), "rows": [row.to_dict() for row in rows]}
    with replace_file(path) as partial:
        partial.write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def load_rows(path: Path) -> tuple[tuple[Row, ...], dict[str, str]]:
    """Read what `save_rows` wrote: (rows, environment).

    Raises BadInput for a file that is missing, larger than 16 MB, not JSON, not ours, or holds a value of the
    wrong kind.
    """
    try:
        length = path.stat().st_size
        if length > MAX_BYTES:
            raise BadInput(f"{path} holds {length} bytes; a results file has at most {MAX_BYTES}.")
        whole = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise BadInput(f"There are no results to read at {path} ({e.strerror}).") from e
    except (ValueError, RecursionError) as e:
        if isinstance(e, BadInput):
            raise
        raise BadInput(f"{path} is not a results file: it cannot be read as JSON ({e}).") from e
    if not isinstance(whole, dict) or whole.get("format") != FORMAT:
        raise BadInput(f"{path} is not a results file of this version: its format is not {FORMAT!r}.")
    try:
        rows = tuple(_row(raw) for raw in whole["rows"])
        environment = {str(key): str(value) for key, value in whole["environment"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise BadInput(f"{path} holds a row that cannot be read ({e}); run again to make it anew.") from e
    return rows, environment


def _row(raw: Mapping[str, Any]) -> Row:
    """One row, with the kinds of its values checked: the file may have been edited or come from elsewhere."""
    row = Row.from_dict(raw)
    for key in TEXTS:
        _expect(key, getattr(row, key), str)
    _expect("trained", row.trained, bool)
    if row.file is not None:
        _expect("file", row.file, str)
    if row.size_bytes is not None:
        _expect("size_bytes", row.size_bytes, int)
    for part in PARTS:
        for key, value in (raw[part] or {}).items():
            if key == "kept":
                _expect(f"{part}.kept", value, dict)
                for layer, why in value.items():
                    _expect(f"{part}.kept[{layer}]", why, str)
            elif key != "evidence" and value != "inf":
                _expect(f"{part}.{key}", value, (int, float))
        if "evidence" in (raw[part] or {}):
            Evidence(raw[part]["evidence"])
    for key, value in row.settings.items():
        _expect(f"settings.{key}", value, str)
    return row


def _expect(name: str, value: object, kind: type | tuple[type, ...]) -> None:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is {value!r}")
