"""What a package takes and gives, as its description says: arrays, images, labels; converted to and from tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BadInput
from .package import Package

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SIDE = 16384  # pixels or elements along one axis of an input

_ARRAY_TYPES = {65552: "float16", 65568: "float32", 65600: "float64", 131104: "int32", 131080: "int8"}


@dataclass(frozen=True, slots=True)
class Feature:
    """An input or output. kind: 'array', 'image' or what the description says (a label's 'string', a 'dictionary').

    shape: default shape as the program sees it, (1, channels, height, width) for an image. shapes: every shape allowed
    where they are listed. ranges: smallest and largest per axis where they may vary (None: no upper limit). colour:
    RGB, BGR or GRAYSCALE for an image. default: fills an optional input that is not given.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    colour: str = ""
    dtype: str = "float32"
    default: float | None = None

    @property
    def is_flexible(self) -> bool:
        """True when more than one shape is allowed."""
        return bool(self.shapes) or any(low != high for low, high in self.ranges)

    @property
    def torch_dtype(self) -> torch.dtype:
        """What the program computes with: int32 or float32."""
        return torch.int32 if self.dtype.startswith("int") else torch.float32

    def allows(self, shape: tuple[int, ...]) -> bool:
        """True when the package takes an input of this shape."""
        if shape == self.shape or shape in self.shapes:
            return True
        return 0 < len(shape) == len(self.ranges) and all(
            low <= side and (high is None or side <= high)
            for side, (low, high) in zip(shape, self.ranges, strict=True)
        )

    def tensor(self, value: Any) -> Tensor:
        """Turn what a caller gives, an array or for an image a PIL picture, into the program's tensor.

        A picture becomes 0..255 in float32, its channels in the package's own order. Raises BadInput for another
        shape, size or kind of content.
        """
        wanted = np.int32 if self.torch_dtype is torch.int32 else np.float32
        try:
            given = self._pixels(value) if self.kind == "image" else np.asarray(value)
            if given.dtype.kind not in "fiub":
                raise TypeError(f"{given.dtype} is none")
            array = np.array(given, wanted)
        except (ValueError, TypeError, OverflowError, RuntimeError) as e:
            raise BadInput(f"The input {self.name!r} takes numbers in one block ({str(e)[:100]}).") from e
        if wanted is np.int32 and not np.array_equal(array, given):
            raise BadInput(f"The input {self.name!r} takes whole numbers that fit 32 bits.")
        if not self.allows(array.shape):
            expected = f"one of {[self.shape, *self.shapes]}" if self.shapes else f"{self.shape}"
            within = f" within {list(self.ranges)}" if self.is_flexible and self.ranges else ""
            raise BadInput(f"The input {self.name!r} takes shape {expected}{within}, not {array.shape}.")
        return torch.from_numpy(np.ascontiguousarray(array))

    def _pixels(self, value: Image | Any) -> np.ndarray:
        mode = "L" if self.colour.startswith("GRAYSCALE") else "RGB"
        if not hasattr(value, "convert"):  # an array: the program's own layout, 0..255
            return np.asarray(value)
        pixels = np.asarray(value.convert(mode), np.float32)
        if mode == "L":
            return pixels[None, None]
        ordered = pixels[..., ::-1] if self.colour == "BGR" else pixels
        return ordered.transpose(2, 0, 1)[None]


def read_features(package: Package) -> tuple[tuple[Feature, ...], tuple[Feature, ...]]:
    """Return the package's inputs and outputs; BadInput for sizes that cannot be."""
    description = package.spec.description
    try:
        return (
            tuple(_feature(end) for end in _interface(package, description, "input")),
            tuple(_feature(end) for end in _interface(package, description, "output")),
        )
    except (BadInput, ValueError) as e:
        raise BadInput(f"{package.path}: {e}") from e


def _interface(package: Package, description: Any, side: str) -> Any:
    """The ends of the default function where there are several, of the model otherwise."""
    for function in description.functions:
        if function.name == description.defaultFunctionName:
            return getattr(function, side)
    return getattr(description, side)


def _feature(end: Any) -> Feature:
    kind = end.type.WhichOneof("Type")
    if kind == "multiArrayType":
        return _array(end.name, end.type.multiArrayType, end.type.isOptional)
    if kind == "imageType":
        return _image(end.name, end.type.imageType)
    return Feature(end.name, (kind or "nothing").removesuffix("Type"))


def _array(name: str, spec: Any, optional: bool) -> Feature:
    flexibility, default = spec.WhichOneof("ShapeFlexibility"), spec.WhichOneof("defaultOptionalValue")
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    if flexibility == "enumeratedShapes":
        shapes = tuple(_shape(name, entry.shape) for entry in spec.enumeratedShapes.shapes)
    elif flexibility == "shapeRange":
        ranges = tuple(_range(entry) for entry in spec.shapeRange.sizeRanges)
    return Feature(
        name,
        "array",
        shape=_shape(name, spec.shape),
        shapes=shapes,
        ranges=ranges,
        dtype=_ARRAY_TYPES.get(spec.dataType, "float32"),
        default=float(getattr(spec, default)) if optional and default else None,
    )


def _image(name: str, spec: Any) -> Feature:
    colour = type(spec).ColorSpace.Name(spec.colorSpace)
    channels = 1 if colour.startswith("GRAYSCALE") else 3
    flexibility = spec.WhichOneof("SizeFlexibility")
    shapes: tuple[tuple[int, ...], ...] = ()
    ranges: tuple[tuple[int, int | None], ...] = ()
    if flexibility == "enumeratedSizes":
        shapes = tuple(_shape(name, (1, channels, s.height, s.width)) for s in spec.enumeratedSizes.sizes)
    elif flexibility == "imageSizeRange":
        sides = spec.imageSizeRange
        ranges = ((1, 1), (channels, channels), _range(sides.heightRange), _range(sides.widthRange))
    shape = _shape(name, (1, channels, spec.height, spec.width))
    return Feature(name, "image", shape=shape, shapes=shapes, ranges=ranges, colour=colour)


def _shape(name: str, sides: Any) -> tuple[int, ...]:
    shape = tuple(int(side) for side in sides)
    if not all(1 <= side <= MAX_SIDE for side in shape):
        raise BadInput(f"{name!r} has shape {shape}; each side should be 1 to {MAX_SIDE}")
    return shape


def _range(spec: Any) -> tuple[int, int | None]:
    return int(spec.lowerBound), None if spec.upperBound < 0 else int(spec.upperBound)
