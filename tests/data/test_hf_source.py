"""hf:NAME goes through the datasets library, which is an optional extra, and never waits for a network."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from pocketvit.data import open_data
from pocketvit.errors import BadInput


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra pocketvit[hf] is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(BadInput, match=r"hf:uoft-cs/cifar10 needs .*pip install 'pocketvit\[hf\]'"):
        open_data("hf:uoft-cs/cifar10")


@pytest.mark.usefixtures("cache")
def test_offline_says_so_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens on the discard port
    before = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)
    started = time.perf_counter()
    with pytest.raises(BadInput, match=r"uoft-cs/cifar10 is not in the local cache and .* cannot be reached"):
        open_data("hf:uoft-cs/cifar10", "test")
    seconds = time.perf_counter() - started
    assert seconds < 20, f"{seconds:.1f} s; the library by itself tries for minutes"
    after = (datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE, datasets.config.HF_UPDATE_DOWNLOAD_COUNTS)
    assert after == before, "the library's settings must be put back"


@pytest.mark.parametrize("name", ["csv", "a/b/c", "hf://datasets/a/b", "gone/"])
def test_names_that_the_library_would_look_for_elsewhere(name: str) -> None:
    with pytest.raises(BadInput, match="neither organisation/name nor a folder"):
        open_data(f"hf:{name}")


@pytest.mark.usefixtures("cache")
def test_local_parquet_folder(tmp_path: Path, write_parquet: Callable, jpegs: list[bytes]) -> None:
    root = tmp_path / "set"
    labels = [i % 3 for i in range(60)]
    write_parquet(root / "train.parquet", jpegs[:50], labels[:50], names=["a", "b", "c"])
    write_parquet(root / "test.parquet", jpegs[50:], labels[50:], names=["a", "b", "c"])
    data = {split: open_data(f"hf:{root}", split) for split in ("train", "val", "test")}
    assert {split: len(d) for split, d in data.items()} == {"train": 45, "val": 5, "test": 10}
    assert data["test"].labels == ("a", "b", "c")
    assert data["test"].targets.tolist() == labels[50:]
    assert data["test"][0][0].tobytes() == Image.open(io.BytesIO(jpegs[50])).convert("RGB").tobytes()
    assert data["test"].digest() == open_data(f"parquet:{root}", "test").digest()


@pytest.mark.usefixtures("cache")
def test_local_image_folder_is_read_from_its_files(tmp_path: Path, fill: Callable) -> None:
    root = tmp_path / "set"
    for name in ("flower", "roof"):
        fill(root / name, 10)
    (root / "roof" / "003.jpg").write_bytes(b"not an image")
    ours, theirs = open_data(f"folder:{root}"), open_data(f"hf:{root}")
    assert theirs.labels == ours.labels == ("flower", "roof")
    assert (len(theirs), theirs.skipped) == (19, 1)
    assert theirs.digest() == ours.digest()


@pytest.mark.usefixtures("cache")
def test_cached_data_is_used_offline(
    tmp_path: Path, write_parquet: Callable, jpegs: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    write_parquet(tmp_path / "set" / "test.parquet", jpegs, [i % 3 for i in range(60)], names=["a", "b", "c"])
    first = open_data(f"hf:{tmp_path / 'set'}", "test")
    (tmp_path / "cache" / "set").rename(tmp_path / "cache" / "someone___set")  # where a download would have put it
    cached = open_data("hf:someone/set", "test")
    assert cached.digest() == first.digest()


@pytest.mark.usefixtures("cache")
def test_folder_without_data_is_named(tmp_path: Path) -> None:
    (tmp_path / "void").mkdir()
    with pytest.raises(BadInput, match=r"void' cannot be loaded"):
        open_data(f"hf:{tmp_path / 'void'}")
