"""Whether two programs are the same but for how their weights are stored: operation by operation, weight by weight.

An fp16 file hides most faults in its own rounding when only outputs are compared. Its fp32 twin, made from the same
model, does not round; once the twin follows the model, what is left to show is that the file is the twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .arithmetic import HALF_MAX
from .compiler import unpacked_constants
from .layers import WEIGHTS
from .program import Op, Program
from .values import Dtype, TensorType, Value

_HALF_ULPS = 2.0**-9  # relative: two units in the last of fp16's 11 places, because folding may round more than once
_HALF_FLOOR = 2.0**-23  # absolute: below its normal range fp16 has steps of 2^-24
_COMPUTED = 2.0**-8  # relative to the largest: tables that the converter computed, itself in fp16
_NEEDED = 1.01  # times the step that the largest number of a block needs: its scale is itself stored as fp16
_SINGLE = 1e-6  # relative: folding in another order of float32 sums
_STORED = ("p_", "b_", "c_")  # how torch.export names parameters, buffers and constant tensors
_PASSED_ON = {"identity", "cast"}


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a value comes from once casts between float types are looked through. index: which output of `op`."""

    op: Op | None
    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Pair:
    """An activation that a layer reads through 8 bits. reader, parameter: the twin's operation that reads it plain."""

    quantize: Op
    dequantize: Op
    reader: str
    parameter: str

    @property
    def name(self) -> str:
        """The value that is rounded."""
        return str(self.quantize.inputs["input"][0])


@dataclass(frozen=True, slots=True)
class Likeness:
    """Where a program is not its twin, in sentences; what it puts through 8 bits; the twin's operations by its own."""

    differences: tuple[str, ...]
    pairs: tuple[Pair, ...]
    twins: Mapping[str, str]


def differences(shipped: Program, twin: Program) -> list[str]:
    """Where `shipped` is not `twin`, whose activations are plain too; see `likeness`."""
    return list(likeness(shipped, twin).differences)


def likeness(shipped: Program, twin: Program, *, activations: bool = False) -> Likeness:
    """Hold `shipped` against `twin` up to the rounding of its stored weights.

    Both are walked from their results to their inputs in step; float casts are looked through, and, with
    `activations`, the pairs of operations that round what a layer reads. No differences mean that every operation
    and parameter is the same, and every weight within its number format's rounding.
    """
    walk = _Walk(shipped, twin, activations)
    found = tuple(walk.run())
    return Likeness(found, tuple(walk.pairs.values()), walk.twins)


class _Walk:
    def __init__(self, shipped: Program, twin: Program, activations: bool) -> None:
        self.programs = (shipped, twin)
        self.activations = activations
        self.pairs: dict[tuple[str, str], Pair] = {}
        self.twins: dict[str, str] = {}
        self.producers = tuple(_producers(program) for program in self.programs)
        self.constants = tuple(unpacked_constants(program) for program in self.programs)
        self.types = tuple(_types(program) for program in self.programs)

    def run(self) -> Iterator[str]:
        ours, theirs = self.programs
        if ours.opset != theirs.opset:
            yield f"it follows {ours.opset} instead of {theirs.opset}"
            return
        if len(ours.block.outputs) != len(theirs.block.outputs):
            yield f"it has {len(ours.block.outputs)} results instead of {len(theirs.block.outputs)}"
            return
        waiting = list(zip(ours.block.outputs, theirs.block.outputs, strict=True))
        met: set[tuple[str, str]] = set()
        while waiting:
            pair = waiting.pop()
            if pair in met:
                continue
            met.add(pair)
            a, b = (self._source(side, name) for side, name in enumerate(pair))
            if a.name in self.constants[0] and b.name in self.constants[1]:
                yield from self._constant(a, b)
            elif a.op is None or b.op is None or a.name in self.constants[0] or b.name in self.constants[1]:
                if (a.op, b.op) != (None, None) or a.name != b.name:
                    yield f"{_told(a)} stands where the twin has {_told(b)}"
            elif a.op.kind != b.op.kind or a.index != b.index:
                yield f"{a.op} stands where the twin has {b.op}"
            else:
                yield from self._operation(a.op, b.op, waiting)

    def _operation(self, a: Op, b: Op, waiting: list[tuple[str, str]]) -> Iterator[str]:
        """Compare what two operations of one kind are given; what is computed is left to be walked."""
        self.twins[a.name] = b.name
        if a.blocks or b.blocks:
            yield f"{a} holds blocks, which are not compared"
            return
        ours_too, theirs_too = ({k: v.data for k, v in op.attributes.items() if k != "name"} for op in (a, b))
        if set(ours_too) != set(theirs_too) or not all(_same_value(ours_too[k], theirs_too[k]) for k in ours_too):
            yield f"{a} has other attributes than the twin"
            return
        if set(a.inputs) != set(b.inputs):
            yield f"{a} has the parameters {sorted(a.inputs)}, the twin's {sorted(b.inputs)}"
            return
        for parameter, ours in a.inputs.items():
            theirs = b.inputs[parameter]
            if len(ours) != len(theirs):
                yield f"{a} has {len(ours)} {parameter} instead of {len(theirs)}"
                continue
            if (a.kind, parameter) == ("transpose", "perm"):
                # coremltools writes [0, 2, 1, 3] as [0, 2, -3, -1] when it compresses
                axes = self._axes(0, ours)
                if axes is not None and axes == self._axes(1, theirs):
                    continue
            for x, y in zip(ours, theirs, strict=True):
                if isinstance(x, str) and isinstance(y, str):
                    waiting.append((self._before_pair(x, a, b, parameter), y))
                elif isinstance(x, str) or isinstance(y, str) or not _same_value(x.data, y.data):
                    yield f"{a} has another {parameter} than the twin"

    def _before_pair(self, name: str, reader: Op, twin: Op, parameter: str) -> str:
        """What a layer would read if its activation did not go through 8 bits, which is noted."""
        after, _ = self.producers[0].get(name, (None, 0))
        if not self.activations or reader.kind not in WEIGHTS or after is None or after.kind != "dequantize":
            return name
        before, _ = self.producers[0].get(str(after.inputs["input"][0]), (None, 0))
        if before is None or before.kind != "quantize":
            return name
        self.pairs[twin.name, parameter] = Pair(before, after, twin.name, parameter)
        return str(before.inputs["input"][0])

    def _axes(self, side: int, given: tuple[str | Value, ...]) -> list[int] | None:
        """The axes a transpose names, counted from the front; None where they are not a constant of its file."""
        (value,) = given
        axes = self.constants[side].get(value) if isinstance(value, str) else torch.as_tensor(value.data)
        return [int(axis) % len(axes) for axis in axes] if isinstance(axes, Tensor) else None

    def _constant(self, a: _Source, b: _Source) -> Iterator[str]:
        ours, theirs = self.constants[0][a.name], self.constants[1][b.name]
        if not isinstance(ours, Tensor) or not isinstance(theirs, Tensor):
            if ours != theirs:
                yield f"the constant {a.name!r} is {ours!r} instead of {theirs!r}"
        elif ours.shape != theirs.shape or ours.is_floating_point() != theirs.is_floating_point():
            yield f"the constant {a.name!r} is {_brief(ours)} instead of {_brief(theirs)}"
        elif not ours.is_floating_point():
            if not torch.equal(ours, theirs):
                yield f"the constant {a.name!r} is {_brief(ours)} instead of {_brief(theirs)}"
        else:
            yield from self._weights(a, b.name, ours, theirs)

    def _weights(self, a: _Source, twins_name: str, ours: Tensor, theirs: Tensor) -> Iterator[str]:
        step = self._step(a, theirs)
        if step is None:
            assert a.op is not None
            yield f"the weights {a.name!r} are stored as {a.op.kind}, which cannot be held against the twin's numbers"
            return
        stored = self.types[0].get(a.name)
        single = stored is not None and stored.dtype is Dtype.FP32 and a.op is not None and a.op.kind == "const"
        relative, floor = (_SINGLE, 0.0) if single else (_HALF_ULPS, _HALF_FLOOR)
        if not single:  # what fp16 cannot hold is stored as its largest number or as infinity
            ours, theirs = ours.clamp(-HALF_MAX, HALF_MAX), theirs.clamp(-HALF_MAX, HALF_MAX)
        if not single and not twins_name.startswith(_STORED) and theirs.numel():
            floor += _COMPUTED * float(theirs.abs().max())
        excess = (ours - theirs).abs() - (relative * theirs.abs() + floor + step)
        excess = torch.where(ours == theirs, 0.0, excess)  # infinities that are the same
        worst = int(excess.flatten().argmax()) if excess.numel() else 0
        if excess.numel() and not float(excess.flatten()[worst]) <= 0:
            x, y = float(ours.flatten()[worst]), float(theirs.flatten()[worst])
            count = int((~(excess <= 0)).sum())
            yield f"{count} of {ours.numel()} numbers of {a.name!r} are off, the worst {x:.6g} instead of {y:.6g}"

    def _step(self, source: _Source, theirs: Tensor) -> Tensor | float | None:
        """Half the step between stored integers, per element; 0 for plain numbers, None for palettes and pruning.

        Never more than the twin's own numbers need: a file whose scale is too coarse is not excused by it.
        """
        op = source.op
        if op is None or not op.kind.startswith("constexpr"):
            return 0.0
        given: dict[str, Any] = {**{k: v[0] for k, v in op.inputs.items()}, **op.attributes}
        rank = theirs.ndim
        if op.kind == "constexpr_affine_dequantize":
            scale, axis = self._number(given["scale"]), self._number(given["axis"])
            scale = scale.reshape([-1 if i == int(axis) % rank else 1 for i in range(rank)]) if scale.ndim else scale
            scale, data = scale.reshape([1] * rank) if not scale.ndim else scale, given["quantized_data"]
        elif op.kind == "constexpr_blockwise_shift_scale":
            scale, data = self._number(given["scale"]), given["data"]
        else:
            return None
        bits = (self.types[0][data] if isinstance(data, str) else data.type).dtype.bits
        blocks: list[int] = [side // int(count) for side, count in zip(theirs.shape, scale.shape, strict=True)]
        split = theirs.reshape([part for pair in zip(scale.shape, blocks, strict=True) for part in pair])
        inside = [2 * i + 1 for i in range(rank)]
        if "offset" in given:  # the levels go from the least number to the largest, and zero is among them
            needed = (split.amax(inside).clamp(min=0) - split.amin(inside).clamp(max=0)) / (2**bits - 1)
        else:
            needed = split.abs().amax(inside) / (2 ** (bits - 1) - 1)
        half: Tensor = 0.5 * torch.minimum(scale.abs(), _NEEDED * needed)
        for i, block in enumerate(blocks):
            half = half.repeat_interleave(block, i)
        return half

    def _number(self, argument: Any) -> Tensor:
        return self.constants[0][argument] if isinstance(argument, str) else torch.as_tensor(argument.data).float()

    def _source(self, side: int, name: str) -> _Source:
        """Look through identities and through casts from float to float."""
        producers, types = self.producers[side], self.types[side]
        while name in producers:
            op, index = producers[name]
            given = op.inputs.get("x", ())
            if op.kind not in _PASSED_ON or len(given) != 1 or not isinstance(given[0], str):
                return _Source(op, index, name)
            before, after = types.get(given[0]), types.get(name)
            if before is None or after is None or not (before.dtype.is_float and after.dtype.is_float):
                return _Source(op, index, name)
            name = given[0]
        return _Source(None, 0, name)


def _producers(program: Program) -> Mapping[str, tuple[Op, int]]:
    return {output.name: (op, i) for op in program.block.ops for i, output in enumerate(op.outputs)}


def _types(program: Program) -> Mapping[str, TensorType]:
    ends = [*program.inputs, *(output for op in program.block.ops for output in op.outputs)]
    return {end.name: end.type for end in ends if end.type is not None}


def _same_value(a: Any, b: Any) -> bool:
    if isinstance(a, str | tuple) or isinstance(b, str | tuple):
        return a == b
    return a.shape == b.shape and bool((a == b).all())


def _told(source: _Source) -> str:
    return str(source.op) if source.op is not None else f"the input {source.name!r}"


def _brief(tensor: Tensor) -> str:
    return str(tensor.tolist()) if tensor.numel() <= 8 else f"an array of shape {tuple(tensor.shape)}"
