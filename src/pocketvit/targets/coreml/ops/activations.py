"""Activation functions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from . import Handler, handles

_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    # linear above 20, where log(1 + e^x) is x to the last bit of float32
    "softplus": F.softplus,
    "softsign": F.softsign,
}


def _activation(function: Callable[[Tensor], Tensor]) -> Handler:
    def handler(x: Tensor) -> Tensor:
        return function(x)

    return handler


for _kind, _function in _PLAIN.items():
    handles(_kind)(_activation(_function))


@handles("gelu")
def gelu(x: Tensor, mode: str = "EXACT") -> Tensor:
    """`x` times the normal distribution function, exactly or by tanh or by sigmoid(1.702 x)."""
    if mode == "EXACT":
        return F.gelu(x)
    if mode == "TANH_APPROXIMATION":
        return F.gelu(x, approximate="tanh")
    if mode == "SIGMOID_APPROXIMATION":
        return x * torch.sigmoid(1.702 * x)
    raise BadInput(f"its mode {mode!r} is not EXACT, TANH_APPROXIMATION or SIGMOID_APPROXIMATION")


@handles("softmax")
def softmax(x: Tensor, axis: int = -1) -> Tensor:
    """exp(x) over its sum along the axis."""
    return torch.softmax(x, axis)


@handles("elu")
def elu(x: Tensor, alpha: float) -> Tensor:
    """`x` where positive, elsewhere alpha (e^x - 1)."""
    return F.elu(x, alpha)


@handles("leaky_relu")
def leaky_relu(x: Tensor, alpha: float) -> Tensor:
    """`x` where positive, elsewhere alpha x."""
    return F.leaky_relu(x, alpha)


@handles("clamped_relu")
def clamped_relu(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`x` where positive, elsewhere alpha x; at most beta.

    So says MIL's text. Its evaluation of constants adds beta to that when beta is negative, which the text does not.
    """
    return torch.clamp(F.leaky_relu(x, alpha), max=beta)


@handles("thresholded_relu")
def thresholded_relu(x: Tensor, alpha: float) -> Tensor:
    """`x` where at least alpha, elsewhere zero."""
    return torch.where(x >= alpha, x, 0.0)


@handles("linear_activation")
def linear_activation(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha` x + beta."""
    return (x * alpha).add_(beta)


@handles("scaled_tanh")
def scaled_tanh(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha` tanh(beta x)."""
    return alpha * torch.tanh(beta * x)


@handles("sigmoid_hard")
def sigmoid_hard(x: Tensor, alpha: float, beta: float) -> Tensor:
    """`alpha` x + beta held within 0 and 1."""
    return (x * alpha).add_(beta).clamp_(0.0, 1.0)  # in place of its own product: a third of the time


@handles("prelu")
def prelu(x: Tensor, alpha: Tensor) -> Tensor:
    """`x` where positive, elsewhere alpha x with an alpha (C) for each channel of x (N, C, ...)."""
    return F.prelu(x, alpha)


@handles("softplus_parametric")
def softplus_parametric(x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """`alpha` log(1 + e^(beta x)) with an alpha and a beta (C) for each channel of x (N, C, ...)."""
    sides = (-1, *(1 for _ in range(x.ndim - 2)))
    return alpha.view(sides) * F.softplus(beta.view(sides) * x)
