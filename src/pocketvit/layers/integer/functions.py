"""The functions of I-ViT (arXiv 2207.01405) on integers: requantization, Shiftmax, ShiftGELU and I-LayerNorm.

Every function takes integer tensors or values of a program and uses integers only. A number x stands for x * scale;
where a scale has to be a power of two it is written 2^-n, and n is given.
"""

from __future__ import annotations

from typing import Any

import torch

from .program import known, reaches

# (1.0111)_2 for log2(e) = 1.4427 (section 3.3) and (1.1011)_2 for 1.702 (section 3.4), each in sixteenths: one product
# and one shift in place of the paper's three shifts and sums, which differ from them only in how they round
LOG2_E = 23
SIGMOID = 27
FULL = 255  # what a weight of Shiftmax of 1 is
_MOST_HALVINGS = 15  # after which an exponential is below one step
_ROOT_BITS = 31
_NEWTON_STEPS = 5  # from at most twice the root: 1, .25, .025, 3e-4, 5e-8 and 1e-15 of it too much


def requantize(x: Any, multiplier: Any, offset: Any, shift: int, lowest: int, highest: int) -> Any:
    """(x * multiplier + offset) / 2^shift, rounded down, within lowest..highest, which may not be negative.

    Dyadic rescaling (section 3.2, equations 4 and 5); offset holds the bias, the zero point and the half that turns
    rounding down into rounding, all times 2^shift. It is clamped before the shift: right shifts and integer divisions
    of a negative number mean different things to different runtimes.
    """
    return (x * multiplier + offset).clamp(lowest << shift, ((highest + 1) << shift) - 1) >> shift


def exponential(x: Any, rate: int, rate_bits: int, n: int) -> tuple[Any, Any]:
    """2^-(rate x / 2^(n + rate_bits)) for x >= 0 of scale 2^-n, as ShiftExp (Algorithm 1, lines 1 to 9) has it.

    The exponent's whole part becomes a right shift, and 2^-r is taken as 1 - r/2 for the rest (equations 9 to 12). As
    the scale is a power of two, its inverse I_0 is exact. Returns (mantissa, halvings): the result is
    mantissa / 2^(n + rate_bits + 1) >> halvings.
    """
    exponent, bits = x * rate, n + rate_bits
    whole = exponent >> bits
    rest = known(exponent - whole * (1 << bits), 0, (1 << bits) - 1)
    return (2 << bits) - rest, whole.clamp(0, _MOST_HALVINGS)


def shiftmax_weights(scores: Any, n: int) -> Any:
    """Weights 0..255 of scores with scale 2^-n, over the last axis; the largest weighs 255. Shiftmax (Algorithm 1).

    The softmax is these over their sum. The paper divides here (IntDiv); `weighted_mean` divides after the product
    with V, which is the same quotient, but of fewer numbers and without rounding each probability to 8 bits.
    """
    below = known(scores.amax(-1, keepdim=True) - scores, 0, _spread(scores))
    mantissa, halvings = exponential(below, LOG2_E, 4, n)
    return (((mantissa * FULL) >> (halvings + n + 4)) + 1) >> 1


def weighted_mean(
    products: Any, weights: Any, multiplier: int, bits: int, zero: int, lowest: int, highest: int
) -> Any:
    """(products / sum of weights) * multiplier / 2^bits + zero, rounded, within lowest..highest >= 0.

    products: (..., N, D) sums of values by weight. weights: (..., N, M), the largest of each row 255.
    """
    whole = weights.sum(-1, keepdim=True, dtype=torch.int32)
    whole = known(whole, FULL, FULL * weights.shape[-1]) * (1 << bits)
    # + whole // 2 rounds to the nearest
    sums = products * multiplier + whole * zero + (whole >> 1)
    return (sums.clamp(0, 2**31 - 1) // whole).clamp(lowest, highest)


def shift_gelu(x: Any, n: int) -> Any:
    """X sigmoid(1.702 x) for x of scale 2^-n, in the same scale: ShiftGELU (Algorithm 2, equation 13).

    With e = exp(-1.702 |x|) it is max(x, 0) - |x| e / (1 + e), for either sign: the paper subtracts the largest of a
    row before it takes exponentials, this takes max(x, 0) of each number, so that no small one is lost beside a large.
    """
    size = x.abs()
    mantissa, halvings = exponential(size, SIGMOID * LOG2_E, 8, n)
    e = mantissa >> (halvings + 8)
    whole = e + (2 << n)
    return x.clamp(0, 2**15 - 1) - (size * e + (whole >> 1)) // whole


def integer_sqrt(x: Any) -> Any:
    """Square root of an int64 >= 1, rounded down or one more: I-LayerNorm (section 3.5, equation 17).

    Newton's iteration, I <- (I + x // I) >> 1, from a power of two between once and twice the root.
    """
    powers = torch.arange(_ROOT_BITS, dtype=torch.int64, device=x.device)
    root = (reaches(x, 4**powers) * 2**powers).sum(-1, keepdim=True, dtype=torch.int64) + 1
    for _ in range(_NEWTON_STEPS):
        root = known((root + x // known(root, 1, 1 << 32)) >> 1, 1, 1 << 32)
    return root


def normalise(x: Any, epsilon: int) -> Any:
    """(x - mean) / sqrt(sum of (x - mean)^2 + epsilon) over the last axis, times 2^15, in int32: I-LayerNorm.

    x: within 16 bits, C channels. epsilon: of the sum of (C (x - mean))^2. C (x - mean) is a whole number, so nothing
    is lost to rounding the mean. int64 where squares are summed and where the quotient is formed: 23 bits squared.
    """
    channels = x.shape[-1]
    widest = channels << 16
    centred = known(x * channels - x.sum(-1, keepdim=True, dtype=torch.int32), -widest, widest).to(torch.int64)
    # the squares of numbers within a range sum to the most where half lie at either end of it (Popoviciu)
    squares = (centred * centred).sum(-1, keepdim=True, dtype=torch.int64)
    squares = known(squares, 0, channels**3 << 30) + epsilon
    inverse = (1 << 46) // integer_sqrt(squares)
    # no number is larger than the root of the sum of all squares: the quotient lies within +-1
    quotient = known(centred * inverse, -(1 << 46), 1 << 46) + ((1 << 46) + (1 << 30))
    return (quotient >> 31).to(torch.int32) - (1 << 15)


def _spread(x: Any) -> int:
    """The largest difference of two elements, where it is known."""
    return 0 if isinstance(x, torch.Tensor) else int(max(x.highest.reshape(-1)) - min(x.lowest.reshape(-1)))
