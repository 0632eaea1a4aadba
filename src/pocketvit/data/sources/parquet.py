"""Parquet files as Hugging Face writes them: an image struct {bytes, path}, an integer label, names in the schema."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from ..splits import SPLITS, WHOLE, split_of_file
from ..storage import ArrowImages
from . import SOURCES, Contents, Part, Source

if TYPE_CHECKING:
    import pyarrow

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMNS = ("label", "labels", "fine_label")
MAX_BYTES = 8 << 30  # the encoded images of a part are held in memory


def read(argument: str) -> Contents:
    """Read the labels of PATH, a file or a folder of files; the images follow when the first is asked for.

    In a folder, files named train*, val* and test* are the splits, and others are left aside; where no file is so
    named, all of them together are one undivided set.
    """
    import pyarrow.parquet as pq

    names: list[str] = []
    parts = {}
    for split, paths in _files(Path(argument).expanduser()).items():
        targets, loads = [], 0
        for path in paths:
            try:
                file = pq.ParquetFile(path)
                image, label = columns(file.schema_arrow.names, str(path))
                _check_image_type(file.schema_arrow.field(image).type, image, path)
                targets.append(class_indices(file.read([label]).column(label), f"column {label} of {path}"))
            except (OSError, ValueError) as e:  # pyarrow's ArrowInvalid is a ValueError
                if isinstance(e, BadInput):
                    raise
                raise BadInput(f"{path} cannot be read as parquet ({e}).") from e
            names = names or _label_names(file.schema_arrow.metadata or {}, label)
            loads += sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))
        if loads > MAX_BYTES:
            raise BadInput(
                f"{argument} holds {loads / 2**30:.0f} GB in its {split} part, more than is kept in memory "
                f"({MAX_BYTES >> 30} GB); use hf:PATH with the folder, which reads from disk."
            )
        joined = np.concatenate(targets)
        source = str(paths[0]) if len(paths) == 1 else f"{argument} ({split})"
        parts[split] = Part(
            images=ArrowImages(source, len(joined), partial(_read_column, paths, image)), targets=joined
        )
    return Contents(labels=label_names(names, [part.targets for part in parts.values()], argument), parts=parts)


def columns(present: Sequence[str], source: str) -> tuple[str, str]:
    """The names of the image and the label column; raises BadInput listing what is there."""
    image = next((name for name in IMAGE_COLUMNS if name in present), None)
    label = next((name for name in LABEL_COLUMNS if name in present), None)
    if image is None or label is None:
        raise BadInput(
            f"{source} has the columns {', '.join(present)}; it needs an image column "
            f"({' or '.join(IMAGE_COLUMNS)}) and a label column ({' or '.join(LABEL_COLUMNS)})."
        )
    return image, label


def class_indices(column: pyarrow.ChunkedArray, where: str) -> NDArray[np.int64]:
    """The labels as int64; raises BadInput when they are not whole numbers from 0."""
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise BadInput(f"The {where} holds {column.type}; it must hold whole numbers, the index of the class.")
    if column.null_count or (len(column) and int(min(column.unique().to_pylist())) < 0):
        raise BadInput(f"The {where} has images without a label (empty or -1); they cannot be used.")
    return column.to_numpy().astype(np.int64)


def label_names(names: Sequence[str], targets: Sequence[NDArray[np.int64]], source: str) -> tuple[str, ...]:
    """One name per class, the index itself where the file names none; raises BadInput when they do not fit."""
    classes = max((int(part.max()) + 1 for part in targets if len(part)), default=0)
    if classes == 0:
        raise BadInput(f"{source} holds no images.")
    if names and len(names) < classes:
        raise BadInput(f"{source} has the label {classes - 1} but names for {len(names)} classes only.")
    if max(len(names), classes) < 2:
        raise BadInput(f"{source} has a single class; at least two are needed.")
    return tuple(map(str, names or range(classes)))


def _files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {WHOLE: [path]}
    if not path.is_dir():
        raise BadInput(f"There is no parquet file or folder {path}.")
    # a data set cloned from the Hub keeps its files in data/
    found = sorted(path.glob("*.parquet")) or sorted((path / "data").glob("*.parquet"))
    if not found:
        raise BadInput(f"{path} has no .parquet files, nor has {path / 'data'}.")
    splits: dict[str, list[Path]] = defaultdict(list)
    for file in found:
        splits[split_of_file(file.stem) or ""].append(file)
    return {split: splits[split] for split in SPLITS if split in splits} or {WHOLE: found}


def _check_image_type(kind: pyarrow.DataType, column: str, path: Path) -> None:
    import pyarrow as pa

    if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
        raise BadInput(f"Column {column} of {path} holds {kind}; it must hold a struct with the image file's bytes.")


def _label_names(metadata: Mapping[bytes, bytes], label: str) -> list[str]:
    """The ClassLabel names that Hugging Face keeps as JSON in the schema's metadata; none is fine."""
    try:
        raw: Any = json.loads(metadata.get(b"huggingface", b"{}"))
        return [str(name) for name in raw["info"]["features"][label]["names"]]
    except (ValueError, KeyError, TypeError):
        return []


def _read_column(paths: Sequence[Path], column: str) -> pyarrow.ChunkedArray:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pq.read_table(path, columns=[column], partitioning=None) for path in paths]
    return pa.chunked_array([chunk for table in tables for chunk in table.column(column).chunks])


SOURCES.add("parquet", Source(name="parquet", argument="PATH", read=read))
