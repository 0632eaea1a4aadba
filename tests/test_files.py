from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from pocketvit import files
from pocketvit.errors import BadInput, CheckFailed

CONTEXTS = (files.replace_file, files.replace_directory, files.workspace)


def finished_process() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_replace_file_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "one")
    with pytest.raises(RuntimeError), files.replace_file(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "one"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize(("code", "words"), [(errno.ENOSPC, "The disk is full"), (errno.EACCES, "cannot be written")])
def test_a_disk_that_cannot_take_more_is_a_sentence(tmp_path: Path, code: int, words: str) -> None:
    for context in CONTEXTS:
        with pytest.raises(BadInput, match=words), context(tmp_path / "a"):
            raise OSError(code, "no")
    assert not list(tmp_path.iterdir())


def test_a_truly_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(BadInput, match="The disk is full"), files.replace_file(tmp_path / "a") as partial:
        partial.symlink_to("/dev/full")
        with partial.open("w") as stream:
            stream.write("x" * 100_000)


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        shutil.Error([("a", "b", "[Errno 28] No space left on device: 'b'")]),  # coremltools
        chained(CheckFailed("vit could not be exported"), OSError(errno.ENOSPC, "x")),
        chained(CheckFailed("vit could not be exported"), OSError(errno.EDQUOT, "x")),
    ],
)
def test_a_full_disk_is_recognised_in_what_libraries_make_of_it(tmp_path: Path, error: Exception) -> None:
    for context in CONTEXTS:
        with pytest.raises(BadInput, match=f"The disk is full: {tmp_path / 'a'} could"), context(tmp_path / "a"):
            raise error


def test_a_full_disk_is_recognised_when_nothing_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    said = "vit could not be exported: RuntimeError: basic_ios::clear: iostream error"  # openvino
    for free, expected in ((1000, BadInput), (1 << 30, CheckFailed)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage(1 << 40, 0, free))
        for context in CONTEXTS:
            with pytest.raises(expected), context(tmp_path / "a"):
                raise CheckFailed(said)


@pytest.mark.parametrize("context", CONTEXTS)
def test_a_place_where_no_directory_can_be_made_is_a_sentence(tmp_path: Path, context) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "deep" / "a", Path("/sys/pocketvit/a")):
        if path.is_relative_to("/sys") and not Path("/sys").is_dir():
            continue
        with pytest.raises(BadInput, match=f"{path} cannot be written"):
            files.check_writable(path)
        with pytest.raises(BadInput, match=f"{path} cannot be written"), context(path):
            pytest.fail("work was started")


def test_asking_whether_a_place_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    files.check_writable(tmp_path / "a" / "b" / "c")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("context", CONTEXTS)
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_does_is_not(tmp_path: Path, context) -> None:
    living = tmp_path / f".partial-{os.getppid()}-a[1]"
    other = tmp_path / f".partial-{finished_process()}-b"
    for path in (living, other, tmp_path / f".partial-{finished_process()}-a[1]"):
        path.mkdir()
        (path / "half").write_text("")
    with pytest.raises(RuntimeError), context(tmp_path / "a[1]"):
        raise RuntimeError
    assert set(tmp_path.iterdir()) == {living, other}


@pytest.mark.parametrize("old", ["old", None])
def test_a_directory_that_cannot_be_put_in_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str | None
) -> None:
    path, replace = tmp_path / "a", Path.replace
    if old:
        path.mkdir()
        (path / "text").write_text(old)

    def failing(self: Path, target: Path) -> Path:
        if self.name == f".partial-{os.getpid()}-a" and Path(target) == path:
            raise OSError(errno.EIO, "no")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no"), files.replace_directory(path) as partial:
        (partial / "text").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == (["a"] if old else [])
    assert not old or (path / "text").read_text() == old


def test_a_directory_moved_away_by_a_killed_process_is_put_back(tmp_path: Path) -> None:
    old = tmp_path / f".partial-{finished_process()}-old-a"
    old.mkdir()
    (old / "text").write_text("old")
    with pytest.raises(RuntimeError), files.replace_directory(tmp_path / "a"):
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "text").read_text() == "old"
    with files.replace_directory(tmp_path / "a") as partial:
        (partial / "text").write_text("new")
    assert (tmp_path / "a" / "text").read_text() == "new"


@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_while_a_pair_is_moved_never_leaves_halves_of_two(tmp_path: Path, moves: int) -> None:
    (tmp_path / "new").mkdir()
    for directory, text in ((tmp_path, "old"), (tmp_path / "new", "new")):
        for suffix in ("xml", "bin"):
            (directory / f"w.{suffix}").write_text(text)
    code = f"""
import os, signal
from pathlib import Path
from pocketvit import files
replace, moves = Path.replace, []
def killing(self, target):
    if len(moves) == {moves}:
        os.kill(os.getpid(), signal.SIGKILL)
    moves.append(self)
    return replace(self, target)
Path.replace = killing
files.move_into_place([Path("new/w.xml"), Path("new/w.bin")], Path("."))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == (0 if moves == 2 else -signal.SIGKILL), done.stderr
    found = {p.suffix: p.read_text() for p in tmp_path.glob("w.*")}
    assert found == [{".bin": "old"}, {".bin": "new"}, {".xml": "new", ".bin": "new"}][moves]


def test_a_lone_file_takes_the_place_of_an_older_one_in_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "m").write_text("new")
    (tmp_path / "m").write_text("old")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="no"):
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
        files.move_into_place([tmp_path / "new" / "m"], tmp_path)
    assert (tmp_path / "m").read_text() == "old"
    files.move_into_place([tmp_path / "new" / "m"], tmp_path)
    assert (tmp_path / "m").read_text() == "new"


def test_hash_and_size_of_a_directory_follow_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("12")
    first = files.sha256(tmp_path / "d")
    assert files.size_bytes([tmp_path / "d"]) == 2
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert files.sha256(tmp_path / "d") != first
