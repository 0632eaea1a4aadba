"""Arithmetic, comparisons and choices, element by element; shapes broadcast as numpy's do."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....errors import BadInput
from . import Handler, handles

_BINARY: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    # NaN when either is, as in MIL's evaluation of constants; its formula x > y ? x : y would give y
    "maximum": torch.maximum,
    "minimum": torch.minimum,
    "equal": torch.eq,
    "not_equal": torch.ne,
    "greater": torch.gt,
    "greater_equal": torch.ge,
    "less": torch.lt,
    "less_equal": torch.le,
    "logical_and": torch.logical_and,
    "logical_or": torch.logical_or,
    "logical_xor": torch.logical_xor,
}


def _binary(function: Callable[[Tensor, Tensor], Tensor]) -> Handler:
    def handler(x: Tensor, y: Tensor) -> Tensor:
        return function(x, y)

    return handler


for _kind, _function in _BINARY.items():
    handles(_kind)(_binary(_function))


@handles("real_div")
def real_div(x: Tensor, y: Tensor) -> Tensor:
    """`x` / y. Of integers MIL declares an integer; coremltools' tests on devices expect it cut towards zero."""
    if x.is_floating_point():
        return x / y
    return torch.div(x, _divisor(y), rounding_mode="trunc")


@handles("floor_div")
def floor_div(x: Tensor, y: Tensor) -> Tensor:
    """The largest whole number not above x / y, for negative numbers as well."""
    return torch.floor_divide(x, _divisor(y))


@handles("mod")
def mod(x: Tensor, y: Tensor) -> Tensor:
    """What floor_div leaves over: it has the sign of y."""
    return torch.remainder(x, _divisor(y))


@handles("pow")
def pow_(x: Tensor, y: Tensor) -> Tensor:
    """`x` to the power of y; BadInput for integers to negative powers, which have no integer result."""
    if not (y.is_meta or y.is_floating_point()) and bool((y < 0).any()):
        raise BadInput("it raises integers to a negative power")
    if y.numel() == 1 and y.ndim <= x.ndim and not y.is_meta:
        return torch.pow(x, y.item())  # squares and roots by their own, much faster, routines
    return torch.pow(x, y)


@handles("select")
def select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """The elements of a where cond is true, of b elsewhere; without a and b MIL's builder makes no program."""
    return torch.where(cond, a, b)


@handles("band_part")
def band_part(x: Tensor, lower: int = -1, upper: int = -1) -> Tensor:
    """The innermost matrices with zeros outside `lower` diagonals below and `upper` above the main one; -1: all."""
    if lower >= 0:
        x = x.triu(-lower)
    return x.tril(upper) if upper >= 0 else x


def _divisor(y: Tensor) -> Tensor:
    if not (y.is_floating_point() or y.is_meta) and bool((y == 0).any()):
        raise BadInput("it divides integers by zero")
    return y
