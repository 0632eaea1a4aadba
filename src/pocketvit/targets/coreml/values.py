"""The types and values of an ML program (MIL), and the packed numbers that hold its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from ...errors import BadInput

MAX_ELEMENTS = 1 << 30  # of one tensor: 4 GiB in float32; a program that claims more is damaged or hostile


class Dtype(StrEnum):
    """Element types, named as coremltools names them."""

    FP16 = "fp16"
    FP32 = "fp32"
    FP64 = "fp64"
    BF16 = "bf16"
    INT4 = "int4"
    INT8 = "int8"
    INT16 = "int16"
    INT32 = "int32"
    INT64 = "int64"
    UINT1 = "uint1"
    UINT2 = "uint2"
    UINT3 = "uint3"
    UINT4 = "uint4"
    UINT6 = "uint6"
    UINT8 = "uint8"
    UINT16 = "uint16"
    UINT32 = "uint32"
    UINT64 = "uint64"
    BOOL = "bool"
    STRING = "string"

    @property
    def bits(self) -> int:
        """Bits of one element as stored; 0 for strings."""
        if self is Dtype.BOOL:
            return 8
        return int("".join(filter(str.isdigit, self.value)) or 0)

    @property
    def is_float(self) -> bool:
        """True for fp16, fp32, fp64 and bf16."""
        return self.value.startswith(("fp", "bf"))

    @property
    def is_integer(self) -> bool:
        """True for signed and unsigned integers of any width."""
        return self.value.startswith(("int", "uint"))

    @property
    def numpy(self) -> np.dtype:
        """The smallest numpy type that holds an element; integers narrower than a byte get a byte."""
        if self is Dtype.STRING:
            raise BadInput("strings are no numbers")
        if self is Dtype.BF16:
            return np.dtype(np.float32)
        if self.is_float:
            return np.dtype(f"float{self.bits}")
        if self is Dtype.BOOL:
            return np.dtype(bool)
        return np.dtype(f"{'u' if self.value.startswith('u') else ''}int{max(8, self.bits)}")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Element type and shape; None stands for a dimension known only when the program runs."""

    dtype: Dtype
    shape: tuple[int | None, ...]

    @property
    def is_static(self) -> bool:
        """True when every dimension is known."""
        return None not in self.shape

    @property
    def sides(self) -> tuple[int, ...]:
        """The shape where all of it is known; BadInput otherwise."""
        if not self.is_static:
            raise BadInput(f"{self} has no fixed shape")
        return tuple(side for side in self.shape if side is not None)

    @property
    def elements(self) -> int:
        """Number of elements; unknown dimensions count as one."""
        return math.prod(1 if side is None else side for side in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}({', '.join('?' if side is None else str(side) for side in self.shape)})"


@dataclass(frozen=True, slots=True)
class Value:
    """A constant. data: an array of the type's shape; text for a string; a tuple for several or for a list."""

    type: TensorType
    data: NDArray | str | tuple


def unpack(raw: bytes | NDArray[np.uint8], dtype: Dtype, elements: int) -> NDArray:
    """Turn stored bytes into `elements` numbers (flat); little-endian, first element in the lowest bits.

    Raises BadInput when there are not exactly as many bytes as the elements need.
    """
    buffer = np.frombuffer(raw, np.uint8) if isinstance(raw, bytes) else raw
    needed = (elements * dtype.bits + 7) // 8
    if len(buffer) != needed:
        raise BadInput(f"{elements} elements of {dtype} take {needed} bytes, not {len(buffer)}")
    if dtype is Dtype.BF16:
        return (buffer.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    if dtype is Dtype.BOOL:
        return buffer != 0
    if dtype.bits >= 8:
        return buffer.view(dtype.numpy)
    bits = np.unpackbits(buffer, bitorder="little", count=elements * dtype.bits).reshape(elements, dtype.bits)
    numbers = np.packbits(bits, axis=1, bitorder="little")[:, 0]
    if dtype is Dtype.INT4:
        return ((numbers.astype(np.int8) ^ 8) - 8).astype(np.int8)
    return numbers
