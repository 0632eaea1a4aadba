"""folder:PATH reads what torchvision's ImageFolder reads, and says no in words."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketvit.data import open_data
from pocketvit.errors import BadInput


def test_same_order_and_classes_as_torchvision(pets: Path, fill: Callable) -> None:
    from pocketvit import torchvision_repair  # noqa: F401
    from torchvision.datasets import ImageFolder  # isort: skip

    fill(pets / "cat" / "b" / "c", 2)
    fill(pets / "cat" / "b-1", 2)
    theirs, ours = ImageFolder(str(pets)), open_data(f"folder:{pets}")
    assert ours.labels == tuple(theirs.classes) == ("Dog", "ant", "cat")
    assert [ours.images.name(i) for i in range(len(ours))] == [path for path, _ in theirs.samples]
    assert ours.targets.tolist() == theirs.targets
    for i in (0, 25, 43):
        np.testing.assert_array_equal(np.asarray(ours[i][0]), np.asarray(theirs[i][0]))


def test_undivided_folder_is_split_stratified_and_fixed(pets: Path) -> None:
    splits = [open_data(f"folder:{pets}", split) for split in ("train", "val", "test")]
    assert [np.bincount(data.targets).tolist() for data in splits] == [[7, 7, 14], [1, 1, 2], [2, 2, 4]]
    rows = np.concatenate([data.rows for data in splits])
    assert sorted(rows) == list(range(40))
    assert (open_data(f"folder:{pets}", "val").rows == splits[1].rows).all()


def test_split_folders_are_used_and_all_is_their_union(pets: Path, tmp_path: Path, fill: Callable) -> None:
    root = tmp_path / "split"
    shutil.copytree(pets, root / "train")
    fill(root / "validation" / "cat", 3)
    data = {split: open_data(f"folder:{root}", split) for split in ("train", "val", "test", "all")}
    assert {split: len(d) for split, d in data.items()} == {"train": 40, "val": 3, "test": 3, "all": 43}
    assert data["val"].targets.tolist() == [2, 2, 2], "a class that is missing from val must not shift the others"
    assert data["val"].labels == ("Dog", "ant", "cat")
    assert "val as test" in data["test"].name
    np.testing.assert_array_equal(np.asarray(data["all"][42][0]), np.asarray(data["val"][2][0]))


def test_val_is_carved_from_train_beside_a_test_folder(pets: Path, tmp_path: Path, fill: Callable) -> None:
    root = tmp_path / "split"
    shutil.copytree(pets, root / "train")
    fill(root / "test" / "cat", 2)
    train, val = open_data(f"folder:{root}", "train"), open_data(f"folder:{root}", "val")
    assert (len(train), len(val)) == (36, 4)
    assert not set(train.rows) & set(val.rows)


def test_a_class_may_be_called_train(pets: Path) -> None:
    (pets / "cat").rename(pets / "train")
    assert open_data(f"folder:{pets}").labels == ("Dog", "ant", "train")


def spoil(pets: Path) -> None:
    good = (pets / "cat" / "000.jpg").read_bytes()
    (pets / "cat" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (pets / "Dog" / "notes.txt").write_text("not an image")
    (pets / "Dog" / ".DS_Store").write_bytes(b"ignored")


def test_unreadable_files_are_skipped_counted_and_named(pets: Path) -> None:
    before = open_data(f"folder:{pets}")
    spoil(pets)
    after = open_data(f"folder:{pets}")
    assert (len(after), after.skipped, before.skipped) == (40, 2, 0)
    assert {Path(name).name for name in after.skipped_files} == {"cut.jpg", "notes.txt"}
    assert (after.targets == before.targets).all()
    assert [after[i][0].tobytes() for i in range(40)] == [before[i][0].tobytes() for i in range(40)]
    parts = [open_data(f"folder:{pets}", split) for split in ("train", "val", "test")]
    assert sum(part.skipped for part in parts) == 2
    assert sum(map(len, parts)) == 40


def test_strict_refuses_and_names_the_first(pets: Path) -> None:
    spoil(pets)
    with pytest.raises(BadInput, match=r"notes\.txt is not an image"):
        open_data(f"folder:{pets}", strict=True)


def test_progress_counts_every_file(pets: Path) -> None:
    seen: list[tuple[int, int]] = []
    open_data(f"folder:{pets}", progress=lambda task, done, total: seen.append((done, total)))
    assert seen[-1] == (40, 40)


def test_digest_follows_content_labels_and_split_but_not_place(pets: Path, tmp_path: Path) -> None:
    def digest(root: Path, split: str = "all") -> str:
        return open_data(f"folder:{root}", split).digest()

    first = digest(pets)
    assert len({first, digest(pets, "train"), digest(pets, "val")}) == 3
    moved = Path(shutil.copytree(pets, tmp_path / "elsewhere"))
    assert digest(moved) == first
    (moved / "Dog").rename(moved / "Elk")
    renamed = digest(moved)
    (moved / "Elk" / "000.jpg").write_bytes((moved / "ant" / "003.jpg").read_bytes())
    assert len({first, renamed, digest(moved)}) == 3


def test_survives_the_trip_to_a_worker_process(pets: Path) -> None:
    data = open_data(f"folder:{pets}")
    copy = pickle.loads(pickle.dumps(data))
    assert copy[7][0].tobytes() == data[7][0].tobytes()


def test_a_file_that_breaks_later_is_named(pets: Path) -> None:
    data = open_data(f"folder:{pets}")
    (pets / "Dog" / "000.jpg").write_bytes(b"gone bad")
    with pytest.raises(BadInput, match=r"000\.jpg"):
        data[0]
    (pets / "Dog" / "000.jpg").unlink()
    with pytest.raises(BadInput, match=r"000\.jpg cannot be opened"):
        data[0]


def test_bad_folders(tmp_path: Path, fill: Callable) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(BadInput, match=match):
            open_data(f"folder:{path}")

    refused(tmp_path / "none", r"There is no folder .*none")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"empty has no class folders")
    fill(tmp_path / "flat", 3)
    refused(tmp_path / "flat", r"flat has no class folders")
    refused(tmp_path / "flat" / "000.jpg", r"There is no folder")
    fill(tmp_path / "single" / "cat", 3)
    refused(tmp_path / "single", r"one class folder \(cat\)")
    fill(tmp_path / "hole" / "cat", 3)
    (tmp_path / "hole" / "dog").mkdir()
    refused(tmp_path / "hole", r"hole.dog is empty")
    for name in ("a", "b"):
        (tmp_path / "text" / name).mkdir(parents=True)
        (tmp_path / "text" / name / "x.jpg").write_text("no")
    refused(tmp_path / "text", r"no image that can be read.*x\.jpg")
    for folder in ("train/cat", "train/dog", "val/cat", "val/emu"):
        fill(tmp_path / "extra" / folder, 1)
    refused(tmp_path / "extra", r"val has the class 'emu'")
    fill(tmp_path / "extra" / "valid" / "cat", 1)
    refused(tmp_path / "extra", r"has both val and valid")


def test_too_few_to_divide(tmp_path: Path, fill: Callable) -> None:
    for name in ("a", "b"):
        fill(tmp_path / name, 1)
    with pytest.raises(BadInput, match=r"\(test\) would be empty: there are 2 images"):
        open_data(f"folder:{tmp_path}", "test")
