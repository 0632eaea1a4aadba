"""Where the log of a command goes when its usual place cannot be written."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.mark.parametrize("blocked", ["cache", "cache/pocketvit/logs", "directory for the log"])
def test_a_log_that_cannot_be_opened_goes_elsewhere(
    cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: str
) -> None:
    import os
    import tempfile

    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    if blocked == "directory for the log":  # the place is fine, only the log itself cannot be opened
        (tmp_path / "cache" / "pocketvit" / "logs" / f"info-{os.getpid()}.log").mkdir(parents=True)
    else:
        (tmp_path / blocked).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / blocked).write_text("")
    assert cli("info", "test_vit", "--json").json["name"] == "test_vit"
    assert not list((tmp_path / "temporary").iterdir()), "an empty log was left behind"
    found = cli("info", "no_such_model", "--json", code=2)
    assert "Traceback" not in found.err
