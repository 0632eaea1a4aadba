"""What an fp16 audit finds: of each operation and constant how near it comes to the ends of fp16. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ...types import Evidence


class State(StrEnum):
    """What fp16 does to a value.

    overflows: it exceeds 65504, or a step inside its operation does, which is infinite only on hardware that holds
    that step in fp16 (what hardware does is not public). tight: half of that. loses precision: rounding moves it by
    more than 2^-8 of its root mean square, as much as bf16 would, which happens only when values below 2^-14 matter
    beside the others; or something is divided by a value below 2^-14. fine: nothing of these.
    """

    OVERFLOWS = "overflows"
    TIGHT = "tight"
    IMPRECISE = "loses precision"
    FINE = "fine"


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """The numbers of one value over all images, seen from fp16.

    worst: largest magnitude over 65504, inf where it is not finite. smallest: smallest magnitude other than 0.
    subnormal, flushed: shares of all its numbers that are not 0 and below 2^-14, below 2^-25. noise: root mean square
    of what rounding to fp16 changes in numbers that fit, over that of the numbers.
    """

    worst: float
    smallest: float
    subnormal: float
    flushed: float
    noise: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """A value inside an operation. worst: largest magnitude over 65504; least: smallest magnitude, 0 included.

    heals: infinity there leads to the right result all the same, as in 1 / (1 + exp(20)).
    """

    name: str
    worst: float
    least: float
    heals: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class OpHeadroom:
    """One operation. name: of its first output, unique in the program; index: its place in the program."""

    name: str
    kind: str
    index: int
    result: Spread
    steps: tuple[Step, ...]
    state: State
    because: str

    @property
    def worst(self) -> float:
        """Largest magnitude over 65504, of its result or of a step that must not overflow."""
        return max([self.result.worst, *(step.worst for step in self.steps if not step.heals)])

    def step(self, *names: str) -> float:
        """The worst of the steps of these names, 0 where there is none."""
        return max((step.worst for step in self.steps if step.name in names), default=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConstantHeadroom:
    """A stored constant that fp16 cannot hold as it is."""

    name: str
    elements: int
    spread: Spread
    state: State
    because: str
    kind: str = "constant"

    @property
    def worst(self) -> float:
        """Largest magnitude over 65504."""
        return self.spread.worst


@dataclass(frozen=True, kw_only=True, slots=True)
class Headroom:
    """What was found. ops: every operation that makes numbers stored in fp16, in the program's order.

    constants: only those that do not fit, weights unpacked. In a package with fp16 values, what it declares float32
    is left out; one that is float32 throughout is judged as if it were stored in fp16.
    """

    images: int
    ops: tuple[OpHeadroom, ...]
    constants: tuple[ConstantHeadroom, ...]
    evidence: Evidence = Evidence.INTERPRETED

    def of(self, *states: State) -> tuple[OpHeadroom | ConstantHeadroom, ...]:
        """Constants and operations in one of these states, operations by how far they reach."""
        ops = sorted((op for op in self.ops if op.state in states), key=lambda op: -op.worst)
        return (*(constant for constant in self.constants if constant.state in states), *ops)

    @property
    def sentence(self) -> str:
        """Counts by state, in words."""
        counts = {state: len(self.of(state)) for state in State if state is not State.FINE}
        named = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
        return f"{len(self.ops)} operations on {self.images} images: {named or 'all within fp16'}"
