"""parquet:PATH reads Hugging Face's layout without decoding anything it need not."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvit.data import dataset as dataset_module
from pocketvit.data import open_data
from pocketvit.errors import BadInput

NAMES = ["roof", "flower", "moon"]
LABELS = [i % 3 for i in range(60)]


@pytest.mark.parametrize(("image", "label"), [("image", "label"), ("img", "labels"), ("img", "fine_label")])
def test_single_file(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes], image: str, label: str) -> None:
    path = write_parquet(tmp_path / "x.parquet", jpegs, LABELS, image=image, label=label, names=NAMES)
    data = open_data(f"parquet:{path}")
    assert (data.labels, data.targets.tolist(), data.skipped) == (tuple(NAMES), LABELS, 0)
    for i in (0, 17, 59):
        expected = Image.open(io.BytesIO(jpegs[i])).convert("RGB")
        assert data[i][0].tobytes() == expected.tobytes()
    parts = [open_data(f"parquet:{path}", split) for split in ("train", "val", "test")]
    assert [np.bincount(part.targets).tolist() for part in parts] == [[14] * 3, [2] * 3, [4] * 3]
    assert len({part.digest() for part in parts}) == 3


def test_names_fall_back_to_the_index(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes]) -> None:
    path = write_parquet(tmp_path / "x.parquet", jpegs, LABELS)
    assert open_data(f"parquet:{path}").labels == ("0", "1", "2")


@pytest.mark.parametrize("inside", ["", "data"])
def test_folder_of_shards(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes], inside: str) -> None:
    root = tmp_path / "set"
    write_parquet(root / inside / "train-00000-of-00002.parquet", jpegs[:20], LABELS[:20], names=NAMES)
    write_parquet(root / inside / "train-00001-of-00002.parquet", jpegs[20:50], LABELS[20:50], names=NAMES)
    write_parquet(root / inside / "test-00000-of-00001.parquet", jpegs[50:], LABELS[50:], names=NAMES)
    data = {split: open_data(f"parquet:{root}", split) for split in ("train", "val", "test", "all")}
    assert {split: len(d) for split, d in data.items()} == {"train": 45, "val": 5, "test": 10, "all": 60}
    assert sorted([*data["train"].rows, *data["val"].rows]) == list(range(50))
    shown = [data["all"][i][0].tobytes() for i in range(60)]
    assert shown == [Image.open(io.BytesIO(b)).convert("RGB").tobytes() for b in jpegs]
    write_parquet(root / inside / "validation.parquet", jpegs[:6], LABELS[:6], names=NAMES)
    assert [len(open_data(f"parquet:{root}", split)) for split in ("train", "val", "test")] == [50, 6, 10]


def test_files_without_split_names_are_one_set(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes]) -> None:
    write_parquet(tmp_path / "a.parquet", jpegs[:30], LABELS[:30])
    write_parquet(tmp_path / "b.parquet", jpegs[30:], LABELS[30:])
    assert len(open_data(f"parquet:{tmp_path}")) == 60
    assert len(open_data(f"parquet:{tmp_path}", "train")) == 42


@pytest.mark.parametrize("thorough_up_to", [10_000, 10])
def test_bad_images_are_skipped_or_refused(
    tmp_path: Path, write_parquet: Callable, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch, thorough_up_to: int
) -> None:
    monkeypatch.setattr(dataset_module, "THOROUGH_UP_TO", thorough_up_to)
    spoilt: list[bytes | None] = list(jpegs)
    spoilt[4], spoilt[9], spoilt[30] = jpegs[4][:-40], b"text", None
    path = write_parquet(tmp_path / "x.parquet", spoilt, LABELS, names=NAMES)
    data = open_data(f"parquet:{path}")
    assert (len(data), data.skipped) == (57, 3)
    assert [name.rsplit(" ", 1)[1] for name in data.skipped_files] == ["4", "9", "30"]
    assert data.targets.tolist() == [label for i, label in enumerate(LABELS) if i not in (4, 9, 30)]
    assert data[4][0].tobytes() == Image.open(io.BytesIO(jpegs[5])).convert("RGB").tobytes()
    with pytest.raises(BadInput, match=r"x\.parquet row 4 cannot be read"):
        open_data(f"parquet:{path}", strict=True)


def test_pickles_without_its_images(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes]) -> None:
    path = write_parquet(tmp_path / "x.parquet", jpegs, LABELS)
    data = open_data(f"parquet:{path}")
    pickled = pickle.dumps(data)
    assert len(pickled) < sum(map(len, jpegs)) / 4, (len(pickled), sum(map(len, jpegs)))
    assert pickle.loads(pickled)[3][0].tobytes() == data[3][0].tobytes()


def test_bad_files(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes]) -> None:
    def refused(path: Path, match: str) -> None:
        with pytest.raises(BadInput, match=match):
            open_data(f"parquet:{path}")

    refused(tmp_path / "none.parquet", r"no parquet file or folder .*none\.parquet")
    refused(tmp_path, r"has no \.parquet files")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    refused(tmp_path / "broken.parquet", r"broken\.parquet cannot be read as parquet")
    two = jpegs[:2]
    refused(write_parquet(tmp_path / "c" / "a", two, [0, 1], image="pic"), "columns pic, label; it needs an image col")
    refused(write_parquet(tmp_path / "c" / "b", two, [0, 1], label="kind"), "columns image, kind; it needs")
    refused(write_parquet(tmp_path / "c" / "c", two, [0, -1]), r"without a label \(empty or -1\)")
    refused(write_parquet(tmp_path / "c" / "d", two, [0, None]), r"without a label \(empty or -1\)")
    refused(write_parquet(tmp_path / "c" / "e", two, [0, 2], names=["a", "b"]), "label 2 but names for 2 classes")
    refused(write_parquet(tmp_path / "c" / "f", two, [0, 0]), "single class")
    refused(write_parquet(tmp_path / "c" / "g", [], []), "holds no images")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"image": ["a.jpg"], "label": [0]}), tmp_path / "c" / "h")
    refused(tmp_path / "c" / "h", "holds string; it must hold a struct")
    images = pa.array([{"bytes": b""}])
    pq.write_table(pa.table({"image": images, "label": ["cat"]}), tmp_path / "c" / "i")
    refused(tmp_path / "c" / "i", "holds string; it must hold whole numbers")


def test_more_than_memory_should_hold_is_refused(
    tmp_path: Path, write_parquet: Callable, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketvit.data.sources import parquet

    path = write_parquet(tmp_path / "x.parquet", jpegs, LABELS)
    monkeypatch.setattr(parquet, "MAX_BYTES", sum(map(len, jpegs)))
    with pytest.raises(BadInput, match="use hf:PATH"):
        open_data(f"parquet:{path}")


def test_cifar10(shared_data: Path) -> None:
    started = time.perf_counter()
    train = open_data(f"parquet:{shared_data / 'cifar10'}", "train")
    seconds = time.perf_counter() - started
    assert (len(train), train.skipped) == (45_000, 0)
    assert train.labels[:3] == ("airplane", "automobile", "bird")
    assert np.bincount(train.targets).tolist() == [4500] * 10
    assert train[0][0].size == (32, 32)
    assert seconds < 15, f"opening CIFAR-10 took {seconds:.1f} s; about 2 s were measured on 2 idle cores"
    test = open_data(f"parquet:{shared_data / 'cifar10'}", "test")
    assert np.bincount(test.targets).tolist() == [500] * 10


def test_photographs(shared_data: Path) -> None:
    data = open_data(f"parquet:{shared_data / 'imagenet-sample' / 'photos.parquet'}")
    assert (len(data), len(data.labels), data.skipped) == (500, 1000, 0)
    assert data.targets.tolist() == list(range(0, 1000, 2))
    assert data.labels[:2] == ("tench", "goldfish")
    assert min(data[0][0].size) == 288
