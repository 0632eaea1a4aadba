"""The steps of a program: each operation with its arguments bound, run in order on numbered slots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ...errors import BadInput
from .arithmetic import to_half
from .ops import Handler
from .program import Op

_MAX_ROUNDS = 100_000  # of all loops of one run together, nested ones included


class Slots(Protocol):
    """Values by number: a list while running, dictionaries while compiling."""

    def __getitem__(self, slot: int, /) -> Any:
        """The value in a slot."""


Observer = Callable[[Op, Mapping[str, Any], tuple[Any, ...]], None]
# what torch raises when the content of indices or shapes is wrong; anything else is our own mistake
TORCH_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError, ArithmeticError, KeyError)


@dataclass(slots=True)
class Step:
    """One operation ready to run. dynamic: parameters that arrive in slots, with how to convert them."""

    op: Op
    handler: Handler
    static: dict[str, Any]
    dynamic: tuple[tuple[str, str, int | tuple[int, ...]], ...]
    results: tuple[int, ...]
    rounded: tuple[bool, ...]
    frees: tuple[int, ...] = ()
    blocks: tuple[Plan, ...] = ()

    def arguments(self, slots: Slots) -> dict[str, Any]:
        """All arguments of this execution, tensors from their slots."""
        found = dict(self.static)
        for name, kind, place in self.dynamic:
            if kind == "Tensor":
                found[name] = slots[place]  # type: ignore[index]
            elif kind == "Tensors":
                found[name] = tuple(slots[i] for i in place)  # type: ignore[union-attr]
            else:
                found[name] = plain(slots[place], kind, name)  # type: ignore[index]
        return found

    def compute(self, arguments: Mapping[str, Any]) -> tuple[Any, ...]:
        """Call the handler; BadInput names the operation when what it is given does not fit together."""
        try:
            found = self.handler(**arguments)
        except TORCH_ERRORS as e:
            first = next((line for line in str(e).splitlines() if line.strip()), type(e).__name__)
            sentence = str(e) if isinstance(e, BadInput) else f"its arguments do not fit together ({first[:200]})"
            raise BadInput(f"{self.op}: {sentence}") from e
        return found if isinstance(found, tuple) else (found,)


@dataclass(slots=True)
class Execution:
    """One run: who watches it, and how many rounds its loops have made."""

    observe: Observer | None = None
    rounds: int = 0


@dataclass(slots=True)
class Plan:
    """The steps of a block. slots are numbered through the whole program, so that nested blocks see outer values."""

    steps: list[Step]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def run(self, slots: list[Any], execution: Execution) -> None:
        """Execute every step on `slots`, in place."""
        for step in self.steps:
            arguments = step.arguments(slots)
            results = _control(step, arguments, slots, execution) if step.blocks else step.compute(arguments)
            for i, slot in enumerate(step.results):
                slots[slot] = to_half(results[i]) if step.rounded[i] else results[i]
            if execution.observe is not None:
                execution.observe(step.op, arguments, tuple(slots[slot] for slot in step.results))
            for slot in step.frees:
                slots[slot] = None


@dataclass(slots=True)
class Compiled:
    """A program for fixed input shapes. slots: how many there are. constants: what some hold from the start."""

    plan: Plan
    slots: int
    constants: dict[int, Any] = field(default_factory=dict)

    def run(self, inputs: tuple[Any, ...], observe: Observer | None = None) -> tuple[Any, ...]:
        """Run on tensors in the order of the program's inputs; returns its results in order."""
        slots: list[Any] = [None] * self.slots
        for slot, constant in self.constants.items():
            slots[slot] = constant
        for slot, value in zip(self.plan.inputs, inputs, strict=True):
            slots[slot] = value
        self.plan.run(slots, Execution(observe))
        return tuple(slots[slot] for slot in self.plan.outputs)


def _control(step: Step, arguments: dict[str, Any], slots: list[Any], execution: Execution) -> tuple[Any, ...]:
    if step.op.kind == "cond":
        chosen = step.blocks[0] if bool(arguments["pred"][0]) else step.blocks[1]
        chosen.run(slots, execution)
        return tuple(slots[slot] for slot in chosen.outputs)
    test, body = step.blocks
    values = arguments["loop_vars"]
    while execution.rounds < _MAX_ROUNDS:
        execution.rounds += 1
        for slot, value in zip(test.inputs, values, strict=True):
            slots[slot] = value
        test.run(slots, execution)
        if not bool(slots[test.outputs[0]]):
            return values
        for slot, value in zip(body.inputs, values, strict=True):
            slots[slot] = value
        body.run(slots, execution)
        values = tuple(slots[slot] for slot in body.outputs)
    raise BadInput(f"{step.op} did not end after {_MAX_ROUNDS} rounds of all loops")


def plain(value: Any, kind: str, name: str) -> Any:
    """Turn a constant or a small computed tensor into the Python value a parameter wants."""
    if kind == "str" or isinstance(value, str):
        if kind != "str" or not isinstance(value, str):
            raise BadInput(f"its {name} should be {'text' if kind == 'str' else f'of kind {kind}'}")
        return value
    if isinstance(value, tuple):
        if kind != "Strs":
            raise BadInput(f"its {name} is a list of text")
        return value
    if kind == "Strs":
        raise BadInput(f"its {name} is no list")
    if value.is_meta and kind == "LateInts":
        return None
    if value.is_meta:
        raise BadInput(
            f"its {name} depends on what the image shows, so shapes cannot be known before it runs; "
            "pocketvit runs programs whose shapes follow from the input's"
        )
    single, convert = _PLAIN[kind]
    integral = not value.is_floating_point()
    if (convert is int and not integral) or (convert is bool and value.dtype is not torch.bool):
        raise BadInput(f"its {name} is {value.dtype} instead of {kind}")
    if single:
        if value.numel() != 1:
            raise BadInput(f"its {name} holds {value.numel()} numbers instead of one")
        return convert(value.item())
    return tuple(convert(item) for item in value.reshape(-1).tolist())


_PLAIN: dict[str, tuple[bool, Callable[[Any], Any]]] = {
    "int": (True, int), "float": (True, float), "bool": (True, bool),
    "Ints": (False, int), "LateInts": (False, int), "Floats": (False, float), "Bools": (False, bool),
}  # fmt: skip
