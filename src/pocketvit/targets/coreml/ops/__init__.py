"""What each operation of an ML program computes: one plain function per operation, with the parameters MIL documents.

A function's annotations say how arguments reach it: `Tensor` (floats always float32), `Tensors` (several), or plain
Python (`int`, `Ints`, `float`, `Floats`, `bool`, `Bools`, `str`; several arguments of `Ints` or `Bools` are joined).
`LateInts` are integers that are None in the dry run where only the image will tell them. `opset` is the iOS version
whose definition holds and `outputs` the declared types; neither is a parameter of the operation.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from ....registry import Registry

Handler = Callable[..., Any]
Tensors = tuple[Any, ...]
Ints = tuple[int, ...]
LateInts = tuple[int, ...] | None
Floats = tuple[float, ...]
Bools = tuple[bool, ...]
Strs = tuple[Any, ...]  # of text, or of whole numbers where they name classes

OPS: Registry[Handler] = Registry("Core ML operation", "pocketvit.targets.coreml.ops")


def handles(*kinds: str) -> Callable[[Handler], Handler]:
    """Register a function as what the operations called `kinds` compute."""

    def register(handler: Handler) -> Handler:
        for kind in kinds:
            OPS.add(kind, handler)
        return handler

    return register


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an operation. kind: as annotated, without '| None'."""

    kind: str
    required: bool

    @property
    def is_tensor(self) -> bool:
        """True where torch tensors arrive, False for plain Python."""
        return self.kind in ("Tensor", "Tensors")


@cache
def parameters(handler: Handler) -> Mapping[str, Parameter]:
    """The parameters of a handler by name; `opset` and `outputs` are among them where it wants them."""
    return {
        name: Parameter(str(p.annotation).removesuffix(" | None"), p.default is inspect.Parameter.empty)
        for name, p in inspect.signature(handler).parameters.items()
    }
