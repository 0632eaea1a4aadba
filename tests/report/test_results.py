"""Rows to a file and back, and files that are not ours."""

from __future__ import annotations

import json
import pickle

import pytest

from pocketvit.errors import BadInput
from pocketvit.report import load_rows, results, save_rows


def test_what_was_saved_is_what_is_loaded(rows, environment, tmp_path):
    path = tmp_path / "run" / "results.json"
    save_rows(rows, environment, path)
    assert load_rows(path) == (tuple(rows), environment)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # strict JSON: no Infinity, no NaN
    assert [file.name for file in path.parent.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "cannot be read as JSON"),
        (b"[1, 2", "cannot be read as JSON"),
        (b"[" * 100_000, "cannot be read as JSON"),
        (pickle.dumps({"rows": []}), "cannot be read as JSON"),
        (b"[]", "not a results file of this version"),
        (b'{"format": "other", "rows": []}', "not a results file of this version"),
        (b'{"format": "pocketvit rows 1", "environment": {}}', "cannot be read"),
        (b'{"format": "pocketvit rows 1", "environment": {}, "rows": [{"name": "x"}]}', "cannot be read"),
    ],
)
def test_files_that_are_not_ours(tmp_path, content, words):
    path = tmp_path / "results.json"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=words) as caught:
        load_rows(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_and_an_endless_one(tmp_path):
    with pytest.raises(BadInput, match="no results"):
        load_rows(tmp_path / "absent.json")
    large = tmp_path / "large.json"
    with large.open("wb") as stream:
        stream.truncate(results.MAX_BYTES + 1)
    with pytest.raises(BadInput, match="at most"):
        load_rows(large)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("name",), 3),
        (("trained",), "yes"),
        (("size_bytes",), "<script>"),
        (("accuracy", "top1"), "<script>"),
        (("accuracy", "evidence"), "believed"),
        (("latency", "median_ms"), None),
        (("settings", "calibration"), {"a": 1}),
        (("surprise",), 1),
    ],
)
def test_values_of_the_wrong_kind(rows, environment, tmp_path, place, value):
    path = tmp_path / "results.json"
    save_rows(rows, environment, path)
    whole = json.loads(path.read_text())
    inner = whole["rows"][1]
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(BadInput, match=r"results\.json"):
        load_rows(path)
