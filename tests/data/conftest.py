from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from PIL import Image

from pocketvit.data import open_data

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def crops() -> list[Image.Image]:
    """Real pictures: 16 of a Chinese roof, 16 of a flower."""
    photos = open_data("photos")
    return [photos[i][0] for i in range(len(photos))]


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the real data sets are not at {SHARED.name}/ beside the project")
    return SHARED


@pytest.fixture(scope="session")
def fill(crops: list[Image.Image]) -> Callable[[Path, int], None]:
    """Makes a folder with so many small JPEG pictures."""

    def fill_folder(folder: Path, count: int) -> None:
        folder.mkdir(parents=True)
        for i in range(count):
            crops[i % len(crops)].resize((40, 30)).save(folder / f"{i:03}.jpg")

    return fill_folder


@pytest.fixture
def pets(tmp_path: Path, fill: Callable[[Path, int], None]) -> Path:
    """Three classes of 20, 10 and 10."""
    root = tmp_path / "pets"
    for name, count in {"cat": 20, "Dog": 10, "ant": 10}.items():
        fill(root / name, count)
    return root


@pytest.fixture
def write_parquet() -> Callable[..., Path]:
    def write(path: Path, images: Sequence[bytes | None], labels: Sequence[int | None], **options: object) -> Path:
        import pyarrow as pa
        import pyarrow.parquet as pq

        image, label = str(options.get("image", "image")), str(options.get("label", "label"))
        struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        rows = [{"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate(images)]
        table = pa.table({image: pa.array(rows, struct), label: pa.array(labels, pa.int64())})
        if names := options.get("names"):
            features = {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": names}}
            table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path)
        return path

    return write


@pytest.fixture(scope="session")
def jpegs(crops: list[Image.Image]) -> list[bytes]:
    """Sixty different JPEG files."""
    encoded = []
    for i in range(60):
        buffer = io.BytesIO()
        crops[i % len(crops)].resize((24 + i, 30)).save(buffer, "JPEG")
        encoded.append(buffer.getvalue())
    return encoded
