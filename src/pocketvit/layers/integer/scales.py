"""From real numbers to the integers that stand for them: the scales of activations and weights, and dyadic rescaling.

Quantization is symmetric (I-ViT, arXiv 2207.01405, equation 1): 8 bits at what a product multiplies, one scale for an
activation and one for each output channel of a weight; 16 bits for what is only added, normalised or exponentiated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import CheckFailed

INT32 = 2**31 - 1
HEADROOM = 2  # of 16-bit numbers, over the largest that calibration showed: of 15 bits one can be spared
_FINEST = 12  # bits after the point of a 16-bit number whose scale is a power of two
_WEIGHT = 127
_LEAST_MULTIPLIER = 16  # below, rounding it up would cost more than a tenth of a bit in every channel
_TINY = 1e-8


@dataclass(frozen=True, kw_only=True, slots=True)
class Site:
    """A place where numbers are rounded, known by name. bits: 8 or 16. power: its scale is a power of two."""

    name: str
    bits: int = 8
    power: bool = False

    @property
    def zero(self) -> int:
        """What stands for 0 while numbers are not negative: 128 or 32768."""
        return 1 << (self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest number on either side of 0."""
        return self.zero - 1

    def scale(self, peak: float) -> float:
        """The scale, where the largest magnitude seen is `peak`."""
        if self.power:
            return 2.0 ** -self.fraction(peak)
        return max(peak, _TINY) * (HEADROOM if self.bits > 8 else 1) / self.largest

    def fraction(self, peak: float) -> int:
        """N of a scale 2^-n; CheckFailed where numbers are too large to have any bit after the point."""
        bits = math.floor(math.log2(self.largest / HEADROOM / max(peak, _TINY)))
        if bits < 1:
            raise CheckFailed(f"{self.name} reaches {peak:.3g}, which is too large for {self.bits} bits.")
        return min(bits, _FINEST)


@dataclass(frozen=True, kw_only=True, slots=True)
class Rescaling:
    """x -> (x * multiplier + offset) >> shift: numbers at their site, `zero` added; see functions.requantize."""

    multiplier: Tensor
    offset: Tensor
    shift: int


@torch.no_grad()
def rescale_product(
    name: str, weight: Tensor, bias: Tensor | None, scale_in: float, scale_out: Tensor, site: Site
) -> tuple[Tensor, Rescaling]:
    """Weight scales (out,) and the rescaling of 8-bit inputs times those weights (out, in) to `site`.

    The accumulator times its multiplier must fit int32 whatever the input, so the multiplier keeps as many bits as
    that leaves. It is rounded up, and the weight's scale with it, so that their product is exact: rescaling is dyadic
    without an error of its own. Raises CheckFailed, naming the layer, where int32 leaves too few bits.
    """
    weight = weight.double()
    finest = weight.abs().amax(1).clamp(min=_TINY) / _WEIGHT
    zero = torch.zeros((), dtype=torch.float64, device=weight.device)
    shift_out = (zero if bias is None else bias.double()) / scale_out
    sums = weight.abs().sum(1)
    fixed = shift_out.abs() + site.zero + 1
    longest = 31 - site.bits
    for shift in range(longest, -1, -1):
        multiplier = (finest * scale_in / scale_out * 2**shift).ceil()
        scale = multiplier / 2**shift * scale_out / scale_in
        largest = 128 * (sums / scale + 0.5 * weight.shape[1])
        if (largest * multiplier + fixed * 2**shift).max() < INT32:
            break
    else:
        multiplier = torch.zeros_like(finest)
    # with every bit there is, a small multiplier only says that the layer's results are small beside their site's
    if multiplier.max() < _LEAST_MULTIPLIER and shift < longest:
        raise CheckFailed(
            f"{name} cannot be computed in integers: its sums of {weight.shape[1]} products reach "
            f"{largest.max():.3g}, which leaves int32 no room to rescale them."
        )
    offset = ((shift_out + site.zero + 0.5) * 2**shift).floor()
    return scale, Rescaling(multiplier=multiplier.int(), offset=offset.int().expand_as(multiplier), shift=shift)


@torch.no_grad()
def rescale(name: str, factor: Tensor, addend: Tensor, largest: int, site: Site) -> Rescaling:
    """The rescaling of numbers up to `largest` by `factor`, `addend` added in units of `site`; for each channel."""
    factor, addend = factor.double(), addend.double()
    fixed = addend.abs() + site.zero + 1
    for shift in range(31 - site.bits, -1, -1):
        multiplier = (factor * 2**shift).round()
        if (largest * multiplier.abs() + fixed * 2**shift).max() < INT32:
            break
    else:
        multiplier = torch.zeros_like(factor)
    if not multiplier.any():
        raise CheckFailed(f"{name} cannot be computed in integers: int32 leaves no room to rescale it.")
    offset = ((addend + site.zero + 0.5) * 2**shift).floor()
    return Rescaling(multiplier=multiplier.int(), offset=offset.int().expand_as(multiplier), shift=shift)
