"""How near a program comes to the ends of fp16, operation by operation, on real images.

The program runs in float32 and every value is held against what fp16 holds: 65504 at the top,
2^-14 for full precision, 2^-25 for anything but zero. Inside composite operations (norms, softmax, products...) the
steps a device has to hold are computed too, those of steps.py and step_products.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ...types import Progress, silent
from .arithmetic import HALF_MAX, HALF_TINY, Arithmetic
from .compiler import as_tensor, unpacked_constants
from .findings import ConstantHeadroom, Headroom, OpHeadroom, Spread, State, Step
from .interpreter import Interpreter
from .ops import parameters
from .program import Op, Output
from .step_products import PRODUCTS
from .steps import DIVISORS, SATURATING, STEPS
from .values import Dtype, Value

Inputs = Mapping[str, Any]  # of one image, by name, as Interpreter.predict takes them

TIGHT = 0.5  # of 65504; data a little outside the images seen would overflow
ROUGH = 2.0**-8  # relative change by which rounding counts as a loss; numbers of normal size change by at most 2^-11
HALF_FLUSHED = 2.0**-25  # half of the smallest fp16 number; below it, rounding gives zero
_STEPS = STEPS | PRODUCTS
# these only move or copy values that another operation made, or hold operations of their own
_MOVES = frozenset(
    "reshape transpose squeeze expand_dims split slice_by_index slice_by_size concat stack identity tile gather "
    "gather_along_axis gather_nd space_to_depth depth_to_space pixel_shuffle pixel_unshuffle flatten2d reverse "
    "reshape_like sliding_windows space_to_batch batch_to_space max_pool cond while_loop".split()
)


def headroom(source: Interpreter | Path | str, images: Sequence[Inputs], progress: Progress = silent) -> Headroom:
    """Run a package in float32 on every one of `images` and compare what it computes with the ends of fp16.

    Raises BadInput for a package that cannot be interpreted, and without images.
    """
    interpreter = source if isinstance(source, Interpreter) else Interpreter(source)
    if interpreter.arithmetic is not Arithmetic.FP32:
        raise BadInput(f"Headroom is measured in fp32 arithmetic, not in {interpreter.arithmetic}.")
    if not images:
        raise BadInput(f"{interpreter.path} needs at least one image to be audited on.")
    audit = _Audit(interpreter)
    for done, inputs in enumerate(images):
        progress("headroom", done, len(images))
        interpreter.run(inputs, audit.observe)
    progress("headroom", len(images), len(images))
    return audit.found(len(images))


@dataclass(slots=True)
class _Tally:
    """Adds up one value's numbers over images."""

    worst: float = 0.0
    smallest: float = math.inf
    count: int = 0
    subnormal: int = 0
    flushed: int = 0
    energy: float = 0.0
    error: float = 0.0

    def add(self, x: Tensor) -> None:
        size = x.abs()
        self.worst = max(self.worst, _finite_or_inf(size.max()))
        low = size < HALF_TINY
        held = torch.where(size <= HALF_MAX, x, 0.0)  # what overflows, nan too, is counted by `worst`
        self.count += x.numel()
        self.energy += float(held.double().square().sum())
        self.error += float((held.half().float() - held).double().square().sum())
        if bool(low.any()):
            tiny = size[low]
            tiny = tiny[tiny > 0]
            self.subnormal += tiny.numel()
            self.flushed += int((tiny < HALF_FLUSHED).sum())
        self.smallest = min(self.smallest, float(torch.where(size > 0, size, math.inf).min()))

    def spread(self) -> Spread:
        return Spread(
            worst=self.worst / HALF_MAX,
            smallest=self.smallest if math.isfinite(self.smallest) else 0.0,
            subnormal=self.subnormal / max(self.count, 1),
            flushed=self.flushed / max(self.count, 1),
            noise=math.sqrt(self.error / self.energy) if self.energy else 0.0,
        )


@dataclass(slots=True)
class _Audited:
    op: Op
    result: _Tally = field(default_factory=_Tally)
    steps: dict[str, tuple[float, float]] = field(default_factory=dict)

    def keep(self, name: str, x: Tensor) -> Tensor:
        """Look at a step and let it through as it is."""
        least, most = (_finite_or_inf(end) for end in x.abs().aminmax())
        before = self.steps.get(name, (0.0, math.inf))
        self.steps[name] = max(before[0], most), min(before[1], least)
        return x

    def found(self) -> OpHeadroom:
        spread = self.result.spread()
        steps = tuple(
            Step(name=name, worst=worst / HALF_MAX, least=least, heals=name in SATURATING)
            for name, (worst, least) in self.steps.items()
            if name != "epsilon"
        )
        state, because = _judged(spread, steps)
        return OpHeadroom(
            name=self.op.name,
            kind=self.op.kind,
            index=self.op.index,
            result=spread,
            steps=steps,
            state=state,
            because=because,
        )


class _Audit:
    def __init__(self, interpreter: Interpreter) -> None:
        self.program = interpreter.program
        outputs = [output for op in self.program.block.walk() if op.kind != "const" for output in op.outputs]
        self.mixed = any(output.type is not None and output.type.dtype is Dtype.FP16 for output in outputs)
        self.ops: dict[str, _Audited] = {}

    def observe(self, op: Op, arguments: Mapping[str, Any], results: tuple[Any, ...]) -> None:
        if op.kind in _MOVES:
            return
        kept = [x for x, output in zip(results, op.outputs, strict=True) if self._stored_as_half(output)]
        tensors = [x for x in kept if isinstance(x, Tensor) and x.is_floating_point() and x.numel()]
        if not tensors:
            return
        audited = self.ops.setdefault(op.name, _Audited(op))
        for x in tensors:
            audited.result.add(x)
        if op.kind in _STEPS:
            step = _STEPS[op.kind]
            known = parameters(step)
            step(audited.keep, **{name: value for name, value in arguments.items() if name in known})

    def found(self, images: int) -> Headroom:
        constants = (_constant(name, value) for name, value in self._constants())
        return Headroom(
            images=images,
            ops=tuple(sorted((audited.found() for audited in self.ops.values()), key=lambda op: op.index)),
            constants=tuple(constant for constant in constants if constant.state is not State.FINE),
        )

    def _stored_as_half(self, output: Output) -> bool:
        if output.type is None or not output.type.dtype.is_float:
            return False
        return output.type.dtype is Dtype.FP16 or not self.mixed

    def _constants(self) -> Iterable[tuple[str, Any]]:
        """Constants stored in fp16 with their numbers, weights unpacked."""
        for op in self.program.block.walk():
            if op.kind == "const" and self._stored_as_half(op.outputs[0]):
                yield op.name, as_tensor(op.attributes["val"])
            for parameter, arguments in op.inputs.items():
                for argument in arguments:
                    if isinstance(argument, Value) and self._stored_as_half(Output("", argument.type)):
                        yield f"{op.name}, {parameter}", as_tensor(argument)
        packed = [op for op in self.program.block.ops if op.kind.startswith("constexpr")]
        unpacked = unpacked_constants(self.program) if packed else {}
        for op in packed:
            if self._stored_as_half(op.outputs[0]) and op.name in unpacked:
                yield op.name, unpacked[op.name]


def _judged(spread: Spread, steps: tuple[Step, ...]) -> tuple[State, str]:
    """The state of an operation and the sentence that says why."""
    values = [("result", spread.worst), *((step.name, step.worst) for step in steps if not step.heals)]
    name, worst = max(values, key=lambda value: value[1])
    if worst > TIGHT:
        reach = f"reaches {worst:.3g} times what fp16 holds" if math.isfinite(worst) else "is infinite"
        return (State.OVERFLOWS if worst > 1 else State.TIGHT), f"its {name} {reach}"
    if spread.noise > ROUGH:
        return State.IMPRECISE, (
            f"{spread.subnormal:.0%} of its values are below 2^-14 and matter: rounding moves it by {spread.noise:.1%}"
        )
    divisors = [step for step in steps if step.name in DIVISORS and step.least < HALF_TINY]
    if divisors:
        return State.IMPRECISE, f"it divides by its {divisors[0].name}, which falls to {divisors[0].least:.1e}"
    return State.FINE, ""


def _constant(name: str, value: Any) -> ConstantHeadroom:
    tally = _Tally()
    elements = value.numel() if isinstance(value, Tensor) else 0
    if elements:
        tally.add(value)
    spread = tally.spread()
    state, because = State.FINE, ""
    if spread.worst > 1:
        state = State.OVERFLOWS
        because = "it holds infinities" if math.isinf(spread.worst) else f"it reaches {spread.worst:.3g} times 65504"
    elif elements == 1 and spread.flushed:
        # a small number by itself, such as an epsilon, may be rough, but not nothing
        state, because = State.IMPRECISE, f"{spread.smallest:.1e} becomes 0"
    elif elements > 1 and spread.noise > ROUGH:
        state, because = State.IMPRECISE, f"rounding moves it by {spread.noise:.1%}"
    return ConstantHeadroom(name=name, elements=elements, spread=spread, state=state, because=because)


def _finite_or_inf(x: Tensor) -> float:
    value = float(x)
    return value if math.isfinite(value) else math.inf
