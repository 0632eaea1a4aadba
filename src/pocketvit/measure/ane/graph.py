"""A model as the Neural Engine would meet it: one record per operation, and what its tensors cost to move.

Padded traffic, the number everything else is built on, is defined here. The last axis of a buffer on the Neural
Engine starts on a multiple of 64 bytes and is padded up to one (Apple, "Deploying Transformers on the Apple Neural
Engine", principle 1), so a last axis of 7 half-precision values occupies 64 bytes instead of 14. Then

    padded traffic of an operation = padded bytes of the activations it reads + of those it writes
    logical traffic                = the same without padding

- Activations only: weights and constants are counted apart, once each.
- Floats count 16 bits, the engine's width, whatever the file stores. Of a cast, only the 16-bit side counts: the
  other side is the app's buffer. Integers and booleans count their own width.
- An operation with a side that nobody knows is left out of the bytes, and counted as left out.
- A view is free: an identity, or a reshape that leaves the last axis as long as it was, because rows keep their order
  and their padding. Any other reshape and every transpose is a layout copy.
- Wasted traffic is what carries no computation: all that a layout copy moves, and the padding of everything else.
  Both kinds of a bottleneck show up in it, but it is a count of bytes, not a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

ALIGNMENT = 64  # bytes that the last axis is padded up to
LANES = 32  # 16-bit values in them
RESHAPES = frozenset({"reshape", "expand_dims", "squeeze", "identity", "flatten2d"})
_FLOAT_BYTES = 2
_WIDTHS = {"bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "int64": 8}


def anywhere(path: str) -> str:
    """A module path with '*' for its numbers, the same for places that differ in their position only."""
    return re.sub(r"\d+", "*", path)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named value. dtype as Core ML names it (fp16, fp32, int32, bool); a dimension that is None is not known.

    flexible: the shape is the one for the default input, of several that the file takes.
    """

    name: str
    shape: tuple[int | None, ...]
    dtype: str = "fp16"
    flexible: bool = False

    @property
    def is_known(self) -> bool:
        """True where every side is a number."""
        return None not in self.shape

    @property
    def is_fixed(self) -> bool:
        """True where no other shape can come."""
        return self.is_known and not self.flexible

    @property
    def is_float(self) -> bool:
        """True for any float."""
        return self.dtype.startswith(("fp", "bf"))

    @property
    def last(self) -> int:
        """Length of the last axis; 1 for a scalar or where it is not known."""
        return (self.shape[-1] or 1) if self.shape else 1

    @property
    def logical_bytes(self) -> int:
        """Bytes of its elements; 0 where a side is not known."""
        return math.prod(side or 0 for side in self.shape) * self._width

    @property
    def padded_bytes(self) -> int:
        """Bytes with the last axis padded to a multiple of 64."""
        row = self.last * self._width
        return self.logical_bytes // row * (-(-row // ALIGNMENT) * ALIGNMENT) if row else 0

    @property
    def _width(self) -> int:
        return _FLOAT_BYTES if self.is_float else _WIDTHS.get(self.dtype, 4)

    def __str__(self) -> str:
        return "x".join("?" if side is None else str(side) for side in self.shape) or "scalar"


@dataclass(frozen=True, kw_only=True, slots=True)
class OpRecord:
    """One operation of a torch graph or a package.

    kind: as Core ML names it (conv, linear, matmul...). module: path of the module it comes from; `located` says how
    that is known: "module" (the exporter recorded it), "weight" (read off the name of its weight, where "_" and "."
    look alike), "after" (what it reads was last touched by that module) or "op" (nothing but its own name). source:
    file and line of the model's code, where recorded. inputs: activations only. weight_bytes: constants first used
    here. axes: of a softmax or norm, those it runs over; of a transpose, the permutation. rank: the highest among the
    model's own tensors that it stands for, before any expansion. expandable: False where a rank above 5 stops the
    conversion. dilated: a convolution with gaps. rolled: a gather that shifts an axis around its end.
    """

    kind: str
    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    module: str = ""
    located: str = "op"
    source: str = ""
    weight_bytes: int = 0
    axes: tuple[int, ...] = ()
    rank: int = 0
    expandable: bool = True
    dilated: bool = False
    rolled: bool = False

    @property
    def is_view(self) -> bool:
        """True where no byte has to move."""
        if self.kind not in RESHAPES or len(self.inputs) != 1 or len(self.outputs) != 1:
            return False
        return self.kind == "identity" or self.inputs[0].last == self.outputs[0].last

    @property
    def is_left_out(self) -> bool:
        """True where it moves bytes, and how many is not known."""
        return not self.is_view and not all(tensor.is_known for tensor in (*self.inputs, *self.outputs))

    @property
    def is_layout_copy(self) -> bool:
        """True where bytes move and nothing is computed."""
        return self.kind == "transpose" or (self.kind in RESHAPES and bool(self.inputs) and not self.is_view)

    @property
    def logical_bytes(self) -> int:
        """Bytes read and written, without padding."""
        return sum(tensor.logical_bytes for tensor in self._moved)

    @property
    def padded_bytes(self) -> int:
        """Bytes read and written, with the last axes padded."""
        return sum(tensor.padded_bytes for tensor in self._moved)

    @property
    def wasted_bytes(self) -> int:
        """Bytes that carry no computation."""
        return self.padded_bytes if self.is_layout_copy else self.padded_bytes - self.logical_bytes

    @property
    def highest_rank(self) -> int:
        """Of the tensors it stands for."""
        return max((self.rank, *(len(tensor.shape) for tensor in (*self.inputs, *self.outputs))))

    @property
    def _moved(self) -> tuple[Tensor, ...]:
        if self.is_view or self.is_left_out:
            return ()
        tensors = (*self.inputs, *self.outputs)
        return tuple(t for t in tensors if t.dtype == "fp16") if self.kind == "cast" else tensors


class Graph:
    """The records in order, and who makes and reads each value."""

    def __init__(self, ops: Sequence[OpRecord]) -> None:
        self.ops = tuple(ops)

    @cached_property
    def makers(self) -> Mapping[str, OpRecord]:
        """By name of a value, the operation that writes it."""
        return {output.name: op for op in self.ops for output in op.outputs}

    @cached_property
    def _readers(self) -> Mapping[str, list[OpRecord]]:
        found: dict[str, list[OpRecord]] = {}
        for op in self.ops:
            for name in dict.fromkeys(tensor.name for tensor in op.inputs):
                found.setdefault(name, []).append(op)
        return found

    def readers(self, op: OpRecord) -> list[OpRecord]:
        """The operations that read what `op` writes."""
        return [reader for output in op.outputs for reader in self._readers.get(output.name, ())]

    def sources(self, op: OpRecord) -> list[OpRecord]:
        """The operations that write what `op` reads."""
        return [self.makers[tensor.name] for tensor in op.inputs if tensor.name in self.makers]
