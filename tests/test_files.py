from __future__ import annotations

import errno
from pathlib import Path

import pytest

from pocketvit import files
from pocketvit.errors import BadInput


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
    for context in (files.replace_file, files.replace_directory, files.workspace):
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


def test_hash_and_size_of_a_directory_follow_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("12")
    first = files.sha256(tmp_path / "d")
    assert files.size_bytes([tmp_path / "d"]) == 2
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    assert files.sha256(tmp_path / "d") != first
