from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pocketvit.errors import BadInput
from pocketvit.stages import RunDirectory, Stage


def run_stage(path: Path, depends: dict, *, name: str = "work", text: str = "done") -> Stage:
    def work(out: Path, scratch: Path) -> None:
        (out / "result.txt").write_text(text)

    with RunDirectory(path).open() as directory:
        return directory.stage(name, depends, work)


def test_a_finished_stage_is_reused_only_while_what_it_depends_on_stays(tmp_path: Path) -> None:
    assert not run_stage(tmp_path, {"a": 1}).reused
    assert run_stage(tmp_path, {"a": 1}).reused
    assert not run_stage(tmp_path, {"a": 2}, text="other").reused
    assert (tmp_path / "work" / "result.txt").read_text() == "other"


@pytest.mark.parametrize("damage", ["cut", "delete", "add", "manifest", "no manifest"])
def test_a_damaged_stage_is_redone(tmp_path: Path, damage: str) -> None:
    path = run_stage(tmp_path, {}).path
    match damage:
        case "cut":
            (path / "result.txt").write_text("do")
        case "delete":
            (path / "result.txt").unlink()
        case "add":
            (path / "more.txt").write_text("")
        case "manifest":
            (path / "stage.json").write_text("{")
        case "no manifest":
            (path / "stage.json").unlink()
    assert not run_stage(tmp_path, {}).reused
    assert run_stage(tmp_path, {}).reused


def test_a_stage_that_fails_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    run_stage(tmp_path, {"a": 1})

    def work(out: Path, scratch: Path) -> None:
        (out / "half.txt").write_text("")
        raise RuntimeError("stop")

    with RunDirectory(tmp_path).open() as directory, pytest.raises(RuntimeError):
        directory.stage("work", {"a": 2}, work)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pocketvit-run.json", "work"]
    assert run_stage(tmp_path, {"a": 1}).reused


def test_scratch_survives_a_failure_and_goes_when_the_stage_is_done_or_its_key_changes(tmp_path: Path) -> None:
    seen = []

    def work(out: Path, scratch: Path) -> None:
        seen.append((scratch / "half").exists())
        (scratch / "half").write_text("")
        if len(seen) < 2:
            raise RuntimeError("stop")

    def go(depends: dict) -> None:
        with RunDirectory(tmp_path).open() as directory:
            directory.stage("work", depends, work, scratch=True)

    with pytest.raises(RuntimeError):
        go({"a": 1})
    go({"a": 1})
    assert seen == [False, True]
    assert not list(tmp_path.glob(".scratch*"))


def test_a_directory_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="not a pocketvit run"):
        run_stage(tmp_path, {})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(BadInput, match="is a file"):
        run_stage(tmp_path / "thesis.tex", {})


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from pocketvit.stages import RunDirectory\n"
        "with RunDirectory(Path(sys.argv[1])).open(): pass"
    )
    with RunDirectory(tmp_path).open():
        found = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "Another process is working in" in found.stderr, found.stderr
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)]).returncode == 0


KILLED = """
import os, signal, sys
from pathlib import Path
from pocketvit import files
from pocketvit.stages import RunDirectory
root, moment = Path(sys.argv[1]), sys.argv[2]
die = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
if moment == "before rename":
    files.fsync_tree = die
if moment == "between renames":
    rename = Path.replace
    def replace(self, target):
        rename(self, target)
        if "old" in str(target):
            die()
    Path.replace = replace
def work(out, scratch):
    (out / "a.txt").write_text("new")
    if moment == "in the middle":
        die()
    (out / "b.txt").write_text("new")
with RunDirectory(root).open() as directory:
    directory.stage("work", {"version": "new"}, work)
"""


@pytest.mark.parametrize("moment", ["in the middle", "before rename", "between renames"])
def test_sigkill_at_any_moment_leaves_a_whole_stage_or_none(tmp_path: Path, moment: str) -> None:
    run_stage(tmp_path, {"version": "old"}, text="old")
    found = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), moment], capture_output=True, text=True)
    assert found.returncode == -9, found.stderr
    if moment == "between renames":
        assert not (tmp_path / "work").exists()
    else:
        assert (tmp_path / "work" / "result.txt").read_text() == "old"
    assert not run_stage(tmp_path, {"version": "new"}, text="new").reused
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pocketvit-run.json", "work"], "leftovers are cleared"
