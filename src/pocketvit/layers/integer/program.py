"""Integer programs: arithmetic on integer tensors, recorded once, with the range of every value proven as it is built.

A `Value` is used like an integer `torch.Tensor` (+, -, *, //, >>, abs, clamp, amax, sum, to, reshape, permute, narrow,
roll), so a function written with those runs on tensors, for training, and on values, to be recorded. What is recorded
runs in torch (`IntegerProgram`) and can be written in any format whose runtime has these few operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...errors import CheckFailed

INTEGERS = (torch.uint8, torch.int8, torch.int32, torch.int64)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One operation: kind names it, inputs are the numbers of earlier values, options what else it needs."""

    kind: str
    inputs: tuple[int, ...]
    options: tuple[Any, ...]


# The whole vocabulary. Each gets tensors, then options; shifts, divisions and sums keep the type of the first.
KINDS: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "subtract": torch.sub,
    "multiply": torch.mul,
    "divide": lambda x, y: torch.div(x, y, rounding_mode="floor"),  # of nothing negative
    "shift": lambda x, bits: x >> bits,  # right, by a constant, of nothing negative
    "shift_by": lambda x, bits: x >> bits,  # right, by another value, of nothing negative
    "clamp": torch.clamp,  # of int32
    "reaches": lambda x, y: (x >= y).to(x.dtype),  # 1 or 0
    "absolute": torch.abs,
    "largest": lambda x, dim: x.amax(dim, keepdim=True),
    "total": lambda x, dim: x.sum(dim, keepdim=True, dtype=x.dtype),
    "cast": lambda x, dtype: x.to(dtype),
    "product": lambda x, y, zero: torch.matmul(x.int() - zero, y.int()),  # (x - zero) @ y of 8-bit integers
    "reshape": lambda x, *shape: x.reshape(shape),
    "permute": lambda x, *dims: x.permute(dims),
    "narrow": lambda x, dim, start, length: x.narrow(dim, start, length),
    "roll": lambda x, shifts, dims: x.roll(shifts, dims),
    "pad": lambda x, *edges: F.pad(x, edges),  # with zeros, as torch counts edges: from the last axis
}
_MOVES = {"reshape", "permute", "narrow", "roll"}


def product(x: Any, y: Any, zero: int) -> Any:
    """(x - zero) @ y in int32, of values; x is uint8 or int8, y int8."""
    return x.program.record("product", (x, y), (zero,))


def pad(x: Any, *edges: int) -> Any:
    """Zeros round a tensor or a value; edges as torch counts them, from the last axis."""
    return x.program.record("pad", (x,), edges) if isinstance(x, Value) else F.pad(x, edges)


def reaches(x: Any, y: Any) -> Any:
    """1 where x >= y, of a tensor or a value, else 0, in the type of x."""
    return x._with("reaches", y) if isinstance(x, Value) else KINDS["reaches"](x, y)


def known(x: Any, lowest: int, highest: int) -> Any:
    """State bounds that follow from how x and its operands depend on each other, which intervals cannot see."""
    if isinstance(x, Value):
        x.lowest, x.highest = np.asarray(lowest, object), np.asarray(highest, object)
    return x


class Value:
    """One integer tensor of a recorded program: its shape for one image, its type and the range it was proven to have.

    lowest, highest: exact Python integers, one for all or one for each channel of the last axis.
    """

    def __init__(
        self, program: Recorder, number: int, example: Tensor, lowest: NDArray[Any], highest: NDArray[Any]
    ) -> None:
        self.program, self.number, self.example = program, number, example
        self.layer = program.layer
        self.lowest, self.highest = lowest, highest

    @property
    def shape(self) -> torch.Size:
        """As of a tensor, for one image."""
        return self.example.shape

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        return self.example.dtype

    @property
    def device(self) -> torch.device:
        """Where constants for it are made."""
        return torch.device("cpu")

    def __add__(self, other: Any) -> Value:
        return self._with("add", other)

    def __sub__(self, other: Any) -> Value:
        return self._with("subtract", other)

    def __rsub__(self, other: Any) -> Value:
        return self.program.value(other, self.dtype)._with("subtract", self)

    def __mul__(self, other: Any) -> Value:
        return self._with("multiply", other)

    def __floordiv__(self, other: Any) -> Value:
        return self._with("divide", other)

    def __rfloordiv__(self, other: Any) -> Value:
        return self.program.value(other, self.dtype)._with("divide", self)

    def __rshift__(self, bits: int | Value) -> Value:
        if isinstance(bits, Value):
            return self._with("shift_by", bits)
        return self.program.record("shift", (self,), (bits,))

    def abs(self) -> Value:
        """As of a tensor."""
        return self.program.record("absolute", (self,), ())

    def clamp(self, lowest: int, highest: int) -> Value:
        """As of a tensor of int32: ONNX Runtime 1.31 clips some numbers of int64 to the wrong end."""
        assert self.dtype is torch.int32
        return self.program.record("clamp", (self,), (lowest, highest))

    def amax(self, dim: int, keepdim: bool) -> Value:
        """As of a tensor, the axis kept."""
        return self.program.record("largest", (self,), (dim,))

    def sum(self, dim: int, keepdim: bool, dtype: torch.dtype) -> Value:
        """As of a tensor, the axis kept."""
        return self.to(dtype).program.record("total", (self.to(dtype),), (dim,))

    def to(self, dtype: torch.dtype) -> Value:
        """As of a tensor."""
        return self if dtype is self.dtype else self.program.record("cast", (self,), (dtype,))

    def reshape(self, *shape: int) -> Value:
        """As of a tensor; the first axis, which is or holds the images, must be -1."""
        return self.program.record("reshape", (self,), shape)

    def permute(self, *dims: int) -> Value:
        """As of a tensor."""
        return self.program.record("permute", (self,), dims)

    def narrow(self, dim: int, start: int, length: int) -> Value:
        """As of a tensor."""
        return self.program.record("narrow", (self,), (dim, start, length))

    def roll(self, shifts: Sequence[int], dims: Sequence[int]) -> Value:
        """As of a tensor."""
        return self.program.record("roll", (self,), (tuple(shifts), tuple(dims)))

    def _with(self, kind: str, other: Any) -> Value:
        return self.program.record(kind, (self, self.program.value(other, self.dtype)), ())


class Recorder:
    """Builds a program, step by step; `layer` is the module being recorded, for messages."""

    def __init__(self) -> None:
        self.layer = ""
        self.steps: list[Step] = []
        self.values: list[Value] = []
        self.constants: dict[int, Tensor] = {}
        self._known: dict[tuple[int, torch.dtype], Value] = {}

    def input(self, shape: Sequence[int], dtype: torch.dtype) -> Value:
        """The one input, of shape (1, ...); it may take every value of its type."""
        limits = torch.iinfo(dtype)
        example = torch.empty(tuple(shape), dtype=dtype, device="meta")
        return self._append(Step(kind="input", inputs=(), options=()), example, limits.min, limits.max)

    def value(self, what: Any, dtype: torch.dtype) -> Value:
        """A value as it is, or a number or an integer tensor as a constant of `dtype`."""
        if isinstance(what, Value):
            return what
        if isinstance(what, int):
            if (what, dtype) not in self._known:
                self._known[what, dtype] = self._constant(torch.tensor(what, dtype=dtype))
            return self._known[what, dtype]
        return self._constant(what.detach().cpu().to(dtype))

    def _constant(self, tensor: Tensor) -> Value:
        if tensor.ndim and tensor.numel() == tensor.shape[-1]:  # one number for each channel
            lowest = highest = tensor.reshape(-1).long().numpy().astype(object)
        else:
            lowest, highest = (np.asarray(int(limit), object) for limit in tensor.aminmax())
        made = self._append(Step(kind="constant", inputs=(), options=()), tensor.to("meta"), lowest, highest)
        self.constants[made.number] = tensor
        return made

    def record(self, kind: str, inputs: Sequence[Value], options: Sequence[Any]) -> Value:
        """Append a step; CheckFailed, naming the layer, where an operand was not proven to fit its type."""
        for operand in inputs:
            self.check(operand)
        step = Step(kind=kind, inputs=tuple(i.number for i in inputs), options=tuple(options))
        example = KINDS[kind](*(i.example for i in inputs), *options)
        bounds = _bounds(kind, inputs, options, self.constants)
        if bounds is None:
            raise CheckFailed(
                f"{self.layer} cannot be computed in integers: {kind} needs operands that are proven not to be "
                "negative, divisors above 0 and shifts of less than 32 bits."
            )
        return self._append(step, example, *bounds)

    def check(self, value: Value) -> None:
        """Raise CheckFailed, naming the layer it was computed in, unless a value fits its type whatever the image."""
        limits = torch.iinfo(value.dtype)
        lowest, highest = np.min(value.lowest), np.max(value.highest)
        if lowest < limits.min or highest > limits.max:
            raise CheckFailed(
                f"{value.layer} cannot be computed in integers: the result of {self.steps[value.number].kind} may lie "
                f"anywhere from {lowest} to {highest}, which {str(value.dtype).removeprefix('torch.')} does not hold."
            )

    def _append(self, step: Step, example: Tensor, lowest: Any, highest: Any) -> Value:
        assert example.dtype in INTEGERS, f"{step.kind} gives {example.dtype}"
        self.steps.append(step)
        value = Value(self, len(self.values), example, np.asarray(lowest, object), np.asarray(highest, object))
        self.values.append(value)
        return value


def _bounds(
    kind: str, inputs: Sequence[Value], options: Sequence[Any], constants: dict[int, Tensor]
) -> tuple[Any, Any] | None:
    """Least and greatest result, by interval arithmetic; None where an operand breaks the operation's condition."""
    a = inputs[0]
    if kind in ("cast", "absolute"):
        if kind == "cast":
            return a.lowest, a.highest
        return np.maximum(0, np.maximum(a.lowest, -a.highest)), np.maximum(-a.lowest, a.highest)
    if kind == "reaches":
        return 0, 1
    if kind == "clamp":
        low, high = options
        return np.clip(a.lowest, low, high), np.clip(a.highest, low, high)
    if kind in _MOVES:
        return np.min(a.lowest), np.max(a.highest)
    if kind == "pad":
        return min(0, np.min(a.lowest)), max(0, np.max(a.highest))
    if kind == "largest":
        return np.min(a.lowest), np.max(a.highest)
    if kind == "total":
        count = a.shape[options[0]]
        return np.min(a.lowest) * count, np.max(a.highest) * count
    if kind == "shift":
        return None if np.min(a.lowest) < 0 else (a.lowest >> options[0], a.highest >> options[0])
    b = inputs[1]
    if kind == "product":
        return _product_bounds(a, b, options[0], constants.get(b.number))
    if kind == "add":
        return a.lowest + b.lowest, a.highest + b.highest
    if kind == "subtract":
        return a.lowest - b.highest, a.highest - b.lowest
    if kind == "multiply":
        corners = [np.asarray(p * q, object) for p in (a.lowest, a.highest) for q in (b.lowest, b.highest)]
        return reduce(np.minimum, corners), reduce(np.maximum, corners)
    if np.min(a.lowest) < 0 or np.min(b.lowest) < (kind == "divide"):
        return None
    if kind == "divide":
        return a.lowest // b.highest, a.highest // b.lowest
    # a shift by as many bits as a number has means different things to different machines
    return None if np.max(b.highest) > 31 else (a.lowest >> b.highest, a.highest >> b.lowest)


def _product_bounds(a: Value, b: Value, zero: int, weight: Tensor | None) -> tuple[Any, Any]:
    """Exact for a constant weight (in, out), from its own numbers; from the ranges alone for two activations."""
    low, high = int(np.min(a.lowest)) - zero, int(np.max(a.highest)) - zero
    if weight is None:
        corners = [p * q for p in (low, high) for q in (int(np.min(b.lowest)), int(np.max(b.highest)))]
        return a.shape[-1] * min(corners), a.shape[-1] * max(corners)
    exact = weight.long()
    up, down = exact.clamp(min=0).sum(0), exact.clamp(max=0).sum(0)
    least, greatest = up * low + down * high, up * high + down * low
    return least.numpy().astype(object), greatest.numpy().astype(object)


class IntegerProgram(nn.Module):
    """A recorded program, run by torch on any number of images; every tensor in it is an integer tensor."""

    def __init__(self, recorder: Recorder, result: Value) -> None:
        super().__init__()
        recorder.check(result)
        self.steps = tuple(recorder.steps)
        self.dtypes = tuple(value.dtype for value in recorder.values)
        self.shapes = tuple(tuple(value.shape) for value in recorder.values)
        self.result = result.number
        for number, constant in recorder.constants.items():
            self.register_buffer(f"constant_{number}", constant)
        last_use = {i: n for n, step in enumerate(self.steps) for i in step.inputs}
        self._over = [tuple(i for i, n in last_use.items() if n == step) for step in range(len(self.steps))]

    def constant(self, number: int) -> Tensor:
        """The constant that is value `number`."""
        return self.get_buffer(f"constant_{number}")

    def forward(self, x: Tensor) -> Tensor:
        """The result for an input with any number of images."""
        return self.run(x)[self.result]

    def run(self, x: Tensor, keep: Sequence[int] = ()) -> dict[int, Tensor]:
        """The result and the values in `keep`, by number."""
        values: dict[int, Tensor] = {}
        for number, step in enumerate(self.steps):
            if step.kind == "input":
                values[number] = x
            elif step.kind == "constant":
                values[number] = self.constant(number)
            else:
                values[number] = KINDS[step.kind](*(values[i] for i in step.inputs), *step.options)
            for done in self._over[number]:
                if done not in keep:
                    del values[done]
        return {number: values[number] for number in {*keep, self.result}}
