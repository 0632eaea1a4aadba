"""The integers and scales of each layer, for the form that records a program and for the one that is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...layers.integer import Rescaling, Site, rescale, rescale_product
from .form import Part


def fraction(scale: float) -> int:
    """Bits after the point, n, of a scale 2^-n."""
    return round(-math.log2(scale))


def integer_weights(
    name: str, parts: Sequence[Part], scale_in: float, scales: Sequence[float]
) -> tuple[Tensor, Rescaling]:
    """The weights (out, in) of all parts in units of their scales, before they are rounded, and their rescaling."""
    weight = torch.cat([part.weight for part in parts])
    bias = torch.cat([weight.new_zeros(len(p.weight)) if p.bias is None else p.bias for p in parts])
    each = [weight.new_full((len(p.weight),), s, dtype=torch.double) for p, s in zip(parts, scales, strict=True)]
    scale, rescaling = rescale_product(name, weight, bias, scale_in, torch.cat(each), parts[0].to)
    return weight / scale[:, None].float(), rescaling


def norm_epsilon(norm: nn.LayerNorm, scale: float) -> int:
    """The epsilon of a LayerNorm as `normalise` takes it, at least 1."""
    return max(1, round(norm.eps * norm.normalized_shape[0] ** 3 / scale**2))


def norm_rescaling(name: str, norm: nn.LayerNorm, scale: float, to: Site) -> Rescaling:
    """What turns normalised numbers of 15 bits into those at a site: the affine part of the norm."""
    weight, bias = norm.weight.detach(), norm.bias.detach()
    channels = norm.normalized_shape[0]
    return rescale(name, weight * (channels**0.5 / 2**15 / scale), bias / scale, 2**15, to)


def gelu_rescaling(name: str, scale_in: float, scale: float, to: Site) -> Rescaling:
    """What turns a ShiftGELU of 15 bits into numbers at a site."""
    return rescale(name, torch.tensor(scale_in / scale), torch.zeros(()), 2**15, to)


def mean_rescaling(scale_in: float, scale: float, count: int) -> tuple[int, int, float]:
    """Multiplier, bits and exact scale of a weighted mean of `count` 8-bit numbers; see functions.weighted_mean."""
    whole = 255 * count
    bits = 14
    while bits and (whole * 128 * (scale_in / scale + 1) + whole) * 2**bits >= 2**31 - 1:
        bits -= 1
    multiplier = max(1, int(scale_in / scale * 2**bits))
    return multiplier, bits, scale_in * 2**bits / multiplier
