"""A Core ML package on disk: its manifest, its model description and its weight files, nothing taken on trust."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput
from .._reading import damage_reported
from .values import Dtype, unpack

NEWEST = 9  # specification version of iOS 18 and macOS 15, the last whose operations are known here
_MAX_MANIFEST = 1 << 20
_MAX_MODEL = 1 << 28  # 256 MiB: descriptions take a few megabytes, weights live in their own files
_MAX_WEIGHTS = 1 << 33  # 8 GiB
_MODEL_ROOT = "@model_path/"
_HEADER, _RECORD = 64, 64
_SENTINEL = 0xDEADBEEF
# how a blob names its own element type, MILBlob/Blob/BlobDataType.hpp of coremltools
_BLOB_TYPES = {
    1: Dtype.FP16, 2: Dtype.FP32, 3: Dtype.UINT8, 4: Dtype.INT8, 5: Dtype.BF16, 6: Dtype.INT16, 7: Dtype.UINT16,
    8: Dtype.INT4, 9: Dtype.UINT1, 10: Dtype.UINT2, 11: Dtype.UINT4, 12: Dtype.UINT3, 13: Dtype.UINT6,
    14: Dtype.INT32, 15: Dtype.UINT32,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class WeightFile:
    """A blob file, version 2: records of (type, size, offset) that each point to numbers; all of it in memory."""

    path: Path
    data: NDArray[np.uint8]

    def read(self, offset: int, dtype: Dtype, elements: int) -> NDArray:
        """Return the numbers (flat) of the record at `offset`; BadInput unless it holds exactly what is asked for."""
        record = self._slice(offset, _RECORD, "record")
        sentinel, stored, size, start = struct.unpack_from("<IIQQ", record.tobytes())
        if sentinel != _SENTINEL:
            raise BadInput(f"{self.path} holds no weights at byte {offset}; it is damaged or another model's.")
        if _BLOB_TYPES.get(stored) is not dtype:
            raise BadInput(
                f"{self.path} stores {_BLOB_TYPES.get(stored, f'type {stored}')} at byte {offset}, but the program "
                f"expects {dtype}."
            )
        if start % _HEADER:
            raise BadInput(f"{self.path} points to weights at byte {start}, which is not aligned to {_HEADER}.")
        try:
            return unpack(self._slice(start, size, "weights"), dtype, elements)
        except BadInput as e:
            raise BadInput(f"{self.path} at byte {offset}: {str(e).removesuffix('.')}.") from e

    def _slice(self, start: int, size: int, what: str) -> NDArray[np.uint8]:
        if start < _HEADER or start + size > len(self.data):
            raise BadInput(
                f"{self.path} has {len(self.data)} bytes, but {what} of {size} bytes should start at {start}; "
                "it was cut short or is damaged."
            )
        return self.data[start : start + size]


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was opened. spec: the Model message, read from `model`. Weight files are opened on first use."""

    path: Path
    spec: Any
    model: Path
    _open: dict[Path, WeightFile] = field(default_factory=dict)

    def weights(self, name: str) -> WeightFile:
        """Open a weight file the program refers to, as '@model_path/weights/weight.bin'."""
        path = self._resolve(name)
        if path not in self._open:
            self._open[path] = _open_weights(self.path, path)
        return self._open[path]

    def _resolve(self, name: str) -> Path:
        inside = PurePosixPath(name.removeprefix(_MODEL_ROOT))
        if not name.startswith(_MODEL_ROOT) or inside.is_absolute() or ".." in inside.parts:
            raise BadInput(f"{self.path} refers to weights in {name!r}, which is not inside the package.")
        return _inside(self.path, self.model.parent / inside).resolve()


def read_package(path: Path) -> Package:
    """Open a saved package that holds an ML program; BadInput says what is wrong with any other."""
    with damage_reported(path, "Core ML"):
        return _read(path)


def _read(path: Path) -> Package:
    if path.suffix == ".mlmodel" or path.is_file():
        raise BadInput(
            f'{path} is a single file; convert it to an ML program (.mlpackage) with convert_to="mlprogram".'
        )
    if not path.is_dir():
        raise BadInput(f"There is no {path}.")
    model = _inside(path, path / "Data" / _root_item(path))
    if not model.is_file():
        raise BadInput(f"{path} names {model.name} as its model, but it is not there.")
    if model.stat().st_size > _MAX_MODEL:
        raise BadInput(f"{model} has {model.stat().st_size} bytes, more than {_MAX_MODEL} for a description.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from coremltools.proto import Model_pb2

        spec = Model_pb2.Model.FromString(model.read_bytes())
    kind = spec.WhichOneof("Type")
    if spec.specificationVersion > NEWEST:
        raise BadInput(
            f"{path} has specification version {spec.specificationVersion}; pocketvit knows those up to {NEWEST} "
            "(iOS 18). Convert the model for an older target."
        )
    if kind != "mlProgram":
        raise BadInput(f"{path} holds {f'a {kind}' if kind else 'no model'}, not an ML program.")
    return Package(path=path, spec=spec, model=model)


def _root_item(path: Path) -> PurePosixPath:
    """The model's place inside Data, as the manifest names it."""
    manifest = path / "Manifest.json"
    if not manifest.is_file():
        raise BadInput(f"{path} is not a Core ML package: it has no Manifest.json.")
    if manifest.stat().st_size > _MAX_MANIFEST:
        raise BadInput(f"{manifest} has {manifest.stat().st_size} bytes; a manifest takes a few hundred.")
    raw: Mapping[str, Any] = json.loads(manifest.read_text(encoding="utf-8"))
    item = PurePosixPath(str(raw["itemInfoEntries"][raw["rootModelIdentifier"]]["path"]))
    if item.is_absolute() or ".." in item.parts:
        raise BadInput(f"{manifest} points to {item}, outside the package.")
    return item


def _inside(package: Path, path: Path) -> Path:
    """Return `path` unless a link leads it out of the package."""
    if not path.resolve().is_relative_to(package.resolve()):
        raise BadInput(f"{package} links to {path.name} outside itself.")
    return path


def _open_weights(package: Path, path: Path) -> WeightFile:
    if not path.is_file():
        raise BadInput(f"{package} has lost its weights: there is no {path.name}.")
    size = path.stat().st_size
    if size < _HEADER:
        raise BadInput(f"{path} has {size} bytes, too few for a weight file; it was cut short.")
    if size > _MAX_WEIGHTS:
        raise BadInput(f"{path} has {size} bytes, more than the {_MAX_WEIGHTS} that a phone could hold.")
    # read, not mapped: a mapped file that somebody cuts short while it runs kills the process
    data = np.fromfile(path, np.uint8)
    count, version = struct.unpack_from("<II", data[:8].tobytes())
    if version != 2:
        raise BadInput(f"{path} is a weight file of version {version}; Core ML packages use version 2.")
    if count * _RECORD > size:
        raise BadInput(f"{path} claims {count} weights in {size} bytes.")
    return WeightFile(path, data)
