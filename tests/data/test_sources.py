"""What holds for every source, and what is said when there is none of that name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketvit.data import SOURCES, open_data
from pocketvit.errors import BadInput


@pytest.fixture
def written(
    tmp_path: Path,
    fill: Callable,
    jpegs: list[bytes],
    write_parquet: Callable,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[str], str]:
    """How to write each source so that it opens; a source without an entry here fails the tests below."""

    def write(name: str) -> str:
        if name == "folder":
            for label in "ab":
                fill(tmp_path / "folder" / label, 10)
            return f"folder:{tmp_path / 'folder'}"
        if name in ("parquet", "hf"):
            path = write_parquet(tmp_path / "set" / "x.parquet", jpegs, [i % 2 for i in range(60)])
            if name == "parquet":
                return f"parquet:{path}"
            datasets = pytest.importorskip("datasets", reason="the extra pocketvit[hf] is not installed")
            monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
            return f"hf:{path.parent}"
        return {"digits": "digits", "photos": "photos"}[name]

    return write


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_contract(name: str, written: Callable[[str], str]) -> None:
    source = written(name)
    assert SOURCES.get(name).name == name
    splits = {split: open_data(source, split) for split in ("train", "val", "test", "all")}
    assert sum(len(splits[split]) for split in ("train", "val", "test")) == len(splits["all"])
    assert len({data.digest() for data in splits.values()}) == 4
    for split, data in splits.items():
        assert split in data.name
        assert source in data.name
        assert data.targets.dtype == np.int64
        assert len(data.targets) == len(data) > 0
        assert data.targets.max() < len(data.labels)
        image, label = data[len(data) - 1]
        assert (image.mode, label) == ("RGB", int(data.targets[-1]))
        assert isinstance(label, int)
        assert open_data(source, split).digest() == data.digest()
        with pytest.raises(IndexError):
            data[len(data)]
    names = [data.images.name(row) for split, data in splits.items() if split != "all" for row in data.rows]
    assert len(set(names)) == len(names), "an image is in two splits"


def test_photos_are_varied_real_squares() -> None:
    data = open_data("photos")
    assert data.labels == ("china", "flower")
    assert np.bincount(data.targets).tolist() == [16, 16]
    images = [data[i][0] for i in range(32)]
    assert all(image.width == image.height >= 128 for image in images)
    assert len({image.tobytes() for image in images}) == 32
    assert len({image.size for image in images}) == 16
    contrast = [np.asarray(image, np.float32).std() for image in images]
    assert min(contrast) > 8, f"a crop is nearly flat: {min(contrast):.1f}"


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ("digit", r"no kind of data called 'digit'\. Did you mean digits"),
        ("parqet:x", "Did you mean parquet"),
        ("folder", "write folder:PATH"),
        ("hf:", "write hf:NAME"),
        ("digits:8", "says too much; write digits"),
        ("", "no kind of data called ''.*Known: digits, folder, hf, parquet, photos"),
    ],
)
def test_misspelt_sources(source: str, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        open_data(source)


def test_bare_path_is_told_how_to_be_written(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").touch()
    for path, kind in ((tmp_path, "folder"), (tmp_path / "x.parquet", "parquet")):
        with pytest.raises(BadInput, match=f"write {kind}:{path}"):
            open_data(str(path))


def test_importing_data_is_light() -> None:
    code = (
        "import sys, pocketvit.data; from pocketvit.data import SOURCES; list(SOURCES); "
        "print(*{'torch', 'timm', 'sklearn', 'pyarrow', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert not done.stdout.split(), f"imported along with pocketvit.data: {done.stdout}"
