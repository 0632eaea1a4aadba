"""Functions of one tensor, element by element."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ....errors import BadInput
from . import Handler, handles

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "abs": torch.abs,
    "acos": torch.acos,
    "asin": torch.asin,
    "atan": torch.atan,
    "atanh": torch.atanh,
    "ceil": torch.ceil,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "exp": torch.exp,
    "floor": torch.floor,
    "logical_not": torch.logical_not,
    "round": torch.round,  # halves to the even neighbour
    "sign": torch.sign,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "sqrt": torch.sqrt,
    "square": torch.square,
    "tan": torch.tan,
    "tanh": torch.tanh,
}
_INTEGERS = {
    "int8": torch.int8,
    "uint8": torch.uint8,
    "int16": torch.int16,
    "uint16": torch.int32,  # torch computes with few unsigned types; int32 holds all of uint16
    "int32": torch.int32,
}
_MAX_SHIFT = 30  # 2**31 is not an int32


def _unary(function: Callable[[Tensor], Tensor]) -> Handler:
    def handler(x: Tensor) -> Tensor:
        return function(x)

    return handler


for _kind, _function in _UNARY.items():
    handles(_kind)(_unary(_function))


@handles("exp2")
def exp2(x: Tensor) -> Tensor:
    """2 to the power of x; BadInput for integers whose result is not a whole number within int32."""
    if x.is_floating_point():
        return torch.exp2(x)
    if not x.is_meta and bool(((x < 0) | (x > _MAX_SHIFT)).any()):
        raise BadInput(f"it raises 2 to integers outside 0 to {_MAX_SHIFT}, which has no int32 result")
    return torch.bitwise_left_shift(torch.ones_like(x), x)


@handles("inverse")
def inverse(x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """1 / (x + epsilon)."""
    return torch.reciprocal(x + epsilon)


@handles("log")
def log(x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Natural logarithm of x + epsilon."""
    return torch.log(x + epsilon)


@handles("rsqrt")
def rsqrt(x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """1 / sqrt(x + epsilon)."""
    return torch.rsqrt(x + epsilon)


@handles("clip")
def clip(x: Tensor, alpha: float, beta: float, opset: int) -> Tensor:
    """`x` held within alpha and beta. Where alpha is the larger, iOS 17 refuses and before that the result is beta."""
    if opset >= 17 and alpha >= beta:
        raise BadInput(f"its alpha ({alpha:g}) should be smaller than its beta ({beta:g})")
    return torch.clamp(x, alpha, beta)


@handles("threshold")
def threshold(x: Tensor, alpha: float) -> Tensor:
    """The larger of x and alpha; integers stay integers."""
    return torch.clamp(x, min=alpha if x.is_floating_point() else int(alpha))


@handles("cast")
def cast(x: Tensor, dtype: str) -> Tensor:
    """`x` as another type: fractions are cut towards zero, integers wrap around, anything but zero is true.

    What a float becomes that the integer type cannot hold is defined nowhere, nor is it here. Between float types
    nothing happens: the interpreter's arithmetic decides where to round.
    """
    if dtype in ("fp16", "fp32"):
        return x if x.is_floating_point() else x.float()
    if dtype == "bool":
        return x.bool()
    if dtype not in _INTEGERS:
        raise BadInput(f"it casts to {dtype!r}; known are bool, fp16, fp32, {', '.join(_INTEGERS)}")
    whole = x.to(torch.int32)
    return whole & 0xFFFF if dtype == "uint16" else whole.to(_INTEGERS[dtype])
