"""Composite operations written out step by step: norms, softmax, reductions and activations.

Every step goes through `keep(name, value)`, which returns what a later step sees: rounded to fp16 (half.py), or as it
is but looked at (headroom.py). The last step of an operation is its result, which the plan rounds, so it is not kept.
Formulas are those of the operations' definitions, in the order in which they are written there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch.nn.functional as F
from torch import Tensor

Keep = Callable[[str, Tensor], Tensor]
Ints = tuple[int, ...]

BLOCK = 32  # fp16 numbers in a line of 64 bytes; after so many terms an accumulator is stored
MASKED = -math.inf

# steps where infinity leads to the right limit: the sigmoid of -20 is 1 / inf, the exponential of -inf is 0
SATURATING = frozenset(
    {
        "shifted by the largest",
        "exponential of -x",
        "one plus exponential of -x",
        "square of x",
        "cube of x",
        "inner of tanh",
    }
)
# steps that something is divided by, where even a few values without precision spoil results
DIVISORS = frozenset({"variance plus epsilon", "sum of squares plus epsilon", "x plus epsilon"})


def accumulate(keep: Keep, name: str, parts: Iterable[Tensor]) -> Tensor:
    """Add up parts, each the exact sum of at most BLOCK terms, keeping the accumulator after each."""
    total: Tensor | None = None
    for part in parts:
        total = keep(name, part if total is None else total + part)
    if total is None:
        raise ValueError("nothing to add up")
    return total


def total(keep: Keep, name: str, x: Tensor, axes: Ints) -> Tensor:
    """Sum over `axes`, which stay with length 1, accumulated BLOCK terms at a time."""
    axes = tuple(sorted(axis % x.ndim for axis in axes))
    if not axes:
        return x
    last = tuple(range(x.ndim - len(axes), x.ndim))
    flat = x.movedim(axes, last).flatten(last[0])
    blocks = F.pad(flat, (0, -flat.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK)).sum(-1)
    kept = [1 if i in axes else side for i, side in enumerate(x.shape)]
    return accumulate(keep, name, blocks.unbind(-1)).reshape(kept)


def softmax(keep: Keep, x: Tensor, axis: int = -1) -> Tensor:
    """Shift by the largest, exponentials, their sum, quotient."""
    shifted = keep("shifted by the largest", x - x.amax(axis, keepdim=True))
    powers = keep("exponential", shifted.exp())
    return powers / total(keep, "sum of exponentials", powers, (axis,))


def layer_norm(
    keep: Keep,
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Mean, centred values, squares, their sum, variance, reciprocal root, scale, shift; gamma and beta of x[axes]."""
    chosen = tuple(axis % x.ndim for axis in (range(x.ndim) if axes is None else axes))
    wide = [side if i in chosen else 1 for i, side in enumerate(x.shape)]
    return _affine(keep, _normalised(keep, x, chosen, epsilon), gamma, beta, wide)


def instance_norm(
    keep: Keep, x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5
) -> Tensor:
    """As layer_norm over the axes after the channels; gamma and beta per channel."""
    y = _normalised(keep, x, tuple(range(2, x.ndim)), epsilon)
    return _affine(keep, y, gamma, beta, _channels(x))


def batch_norm(
    keep: Keep,
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """Centred on the stored mean, times the reciprocal root of the stored variance, scale, shift."""
    wide = _channels(x)
    root = _reciprocal_root(keep, "variance plus epsilon", variance.reshape(wide), epsilon)
    centred = keep("centred values", x - mean.reshape(wide))
    return _affine(keep, keep("normalised values", centred * root), gamma, beta, wide)


def l2_norm(keep: Keep, x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """X over the root of the sum of its squares plus epsilon, over the last three axes."""
    squares = total(keep, "sum of squares", keep("square", x * x), (-3, -2, -1))
    return x * _reciprocal_root(keep, "sum of squares plus epsilon", squares, epsilon)


def local_response_norm(
    keep: Keep, x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Tensor:
    """X over (k + alpha / size times the squares of `size` channels around it) to the power beta."""
    squares = keep("square", x * x).movedim(1, -1)
    windows = F.pad(squares, (size // 2, (size - 1) // 2)).unfold(-1, size, 1)
    summed = total(keep, "sum of squares", windows, (-1,)).squeeze(-1).movedim(-1, 1)
    base = keep("scaled sum plus k", keep("scaled sum", summed * (alpha / size)) + k)
    return x / keep("power", base**beta)


def reduce_sum(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Accumulated in steps of BLOCK."""
    return _reduced(keep, "sum", x, axes, keep_dims)


def reduce_mean(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The accumulated sum, then the division."""
    summed = _reduced(keep, "sum", x, axes, keep_dims)
    return summed / (x.numel() / max(summed.numel(), 1))


def reduce_sum_square(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Squares, accumulated."""
    return _reduced(keep, "sum of squares", keep("square", x * x), axes, keep_dims)


def reduce_l1_norm(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Magnitudes, accumulated."""
    return _reduced(keep, "sum of magnitudes", x.abs(), axes, keep_dims)


def reduce_l2_norm(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Squares, accumulated, then the root."""
    return reduce_sum_square(keep, x, axes, keep_dims).sqrt()


def reduce_log_sum(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """The accumulated sum, then its logarithm."""
    return _reduced(keep, "sum", x, axes, keep_dims).log()


def reduce_log_sum_exp(keep: Keep, x: Tensor, axes: Ints | None = None, keep_dims: bool = False) -> Tensor:
    """Shift by the largest, exponentials, their sum, its logarithm, shift back."""
    over = _over(x, axes)
    largest = x.amax(over, keepdim=True)
    powers = keep("exponential", keep("shifted by the largest", x - largest).exp())
    logs = keep("logarithm", total(keep, "sum of exponentials", powers, over).log())
    found = logs + largest
    return found if keep_dims else found.squeeze(over)


def sigmoid(keep: Keep, x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return 1 / keep("one plus exponential of -x", 1 + keep("exponential of -x", (-x).exp()))


def silu(keep: Keep, x: Tensor) -> Tensor:
    """X times its sigmoid."""
    return x * keep("sigmoid", sigmoid(keep, x))


def gelu(keep: Keep, x: Tensor, mode: str = "EXACT") -> Tensor:
    """X / 2 (1 + erf(x / root 2)), or one of the two approximations with their own steps."""
    if mode == "SIGMOID_APPROXIMATION":
        return x * keep("sigmoid", sigmoid(keep, keep("scaled x", 1.702 * x)))
    if mode == "TANH_APPROXIMATION":
        cube = keep("cube of x", keep("square of x", x * x) * x)
        inner = keep("inner of tanh", x + keep("inner of tanh", 0.044715 * cube))
        gate = keep("tanh", keep("inner of tanh", math.sqrt(2 / math.pi) * inner).tanh())
    else:
        gate = keep("error function", keep("x over root two", x / math.sqrt(2)).erf())
    return keep("half of x", 0.5 * x) * keep("one plus gate", 1 + gate)


def softplus(keep: Keep, x: Tensor) -> Tensor:
    """log(1 + exp(x)), as it is defined: it overflows from x = 11.1 on."""
    return keep("one plus exponential", 1 + keep("exponential", x.exp())).log()


def softplus_parametric(keep: Keep, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Alpha log(1 + exp(beta x)), alpha and beta per channel."""
    wide = _channels(x)
    return alpha.reshape(wide) * keep("softplus", softplus(keep, keep("scaled x", beta.reshape(wide) * x)))


def elu(keep: Keep, x: Tensor, alpha: float) -> Tensor:
    """X where positive, alpha (exp(x) - 1) elsewhere: next to 0 the difference loses its digits."""
    below = alpha * keep("exponential minus one", keep("exponential", x.clamp(max=0).exp()) - 1)
    return x.clamp(min=0) + below


def rsqrt(keep: Keep, x: Tensor, epsilon: float = 1e-12) -> Tensor:
    """One over the root of x plus epsilon."""
    return _plus_epsilon(keep, "x plus epsilon", x, epsilon).rsqrt()


def inverse(keep: Keep, x: Tensor, epsilon: float = 1e-4) -> Tensor:
    """One over x plus epsilon."""
    return 1 / _plus_epsilon(keep, "x plus epsilon", x, epsilon)


def log(keep: Keep, x: Tensor, epsilon: float = 1e-45) -> Tensor:
    """Logarithm of x plus epsilon."""
    return _plus_epsilon(keep, "x plus epsilon", x, epsilon).log()


STEPS: dict[str, Callable[..., Tensor]] = {
    step.__name__: step
    for step in (
        softmax, layer_norm, instance_norm, batch_norm, l2_norm, local_response_norm, reduce_sum, reduce_mean,
        reduce_sum_square, reduce_l1_norm, reduce_l2_norm, reduce_log_sum, reduce_log_sum_exp, sigmoid, silu, gelu,
        softplus, softplus_parametric, elu, rsqrt, inverse, log,
    )
}  # fmt: skip


def _normalised(keep: Keep, x: Tensor, axes: Ints, epsilon: float) -> Tensor:
    """Mean 0 and variance 1 over `axes`."""
    terms = math.prod(x.shape[axis] for axis in axes)
    centred = keep("centred values", x - keep("mean", total(keep, "sum", x, axes) / terms))
    squares = total(keep, "sum of squares", keep("square", centred * centred), axes)
    root = _reciprocal_root(keep, "variance plus epsilon", keep("variance", squares / terms), epsilon)
    return keep("normalised values", centred * root)


def _reciprocal_root(keep: Keep, name: str, x: Tensor, epsilon: float) -> Tensor:
    return keep("reciprocal root", _plus_epsilon(keep, name, x, epsilon).rsqrt())


def _plus_epsilon(keep: Keep, name: str, x: Tensor, epsilon: float) -> Tensor:
    return keep(name, x + keep("epsilon", x.new_full((), epsilon)))


def _affine(keep: Keep, x: Tensor, gamma: Tensor | None, beta: Tensor | None, wide: list[int]) -> Tensor:
    scaled = x if gamma is None else x * gamma.reshape(wide)
    return scaled if beta is None else keep("scaled values", scaled) + beta.reshape(wide)


def _channels(x: Tensor) -> list[int]:
    """The shape in which a value per channel (axis 1) broadcasts against x."""
    return [1, -1] + [1] * (x.ndim - 2)


def _over(x: Tensor, axes: Ints | None) -> Ints:
    return tuple(range(x.ndim)) if axes is None else tuple(axis % x.ndim for axis in axes)


def _reduced(keep: Keep, name: str, x: Tensor, axes: Ints | None, keep_dims: bool) -> Tensor:
    over = _over(x, axes)
    found = total(keep, name, x, over)
    return found if keep_dims else found.squeeze(over)
