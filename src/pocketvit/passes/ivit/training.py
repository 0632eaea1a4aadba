"""The form that is trained: integers in float tensors, computed by the integer functions, with gradients through them.

Forward, every value is what the integer form computes (as long as float32 holds its sums exactly, below 2^24);
backward, rounding passes gradients straight through, clamping stops them, and Shiftmax, ShiftGELU and I-LayerNorm have
the gradients of the functions they approximate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.integer import (
    Rescaling,
    Site,
    normalise,
    requantize,
    rescale,
    shift_gelu,
    shiftmax_weights,
    weighted_mean,
)
from .constants import fraction, gelu_rescaling, integer_weights, mean_rescaling, norm_epsilon, norm_rescaling
from .exact import mixed_site, scores_site
from .form import Form, Part, biased
from .recording import Quantity

_MOMENTUM = 0.05  # of the running peaks


class Ranges(nn.Module):
    """What a training form keeps beside the model: the peak of every site, and the normalisation of its images."""

    peaks: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, peaks: dict[str, float], mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.names = tuple(peaks)
        self.register_buffer("peaks", torch.tensor(list(peaks.values())))
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())


class Training(Form[Quantity]):
    """ranges: read at the start; where `update`, moved towards the peaks of this batch by `finish`."""

    def __init__(self, ranges: Ranges, *, update: bool) -> None:
        self.ranges, self.update = ranges, update
        self._peaks = dict(zip(ranges.names, ranges.peaks.tolist(), strict=True))
        self._seen: dict[str, Tensor] = {}

    def finish(self) -> None:
        """Move the running peaks towards what this batch showed."""
        if not self._seen:
            return
        old = self.ranges.peaks
        with torch.no_grad():
            new = [self._seen.get(name, old[i]) for i, name in enumerate(self.ranges.names)]
            self.ranges.peaks.lerp_(torch.stack(new).to(old), _MOMENTUM)

    def _at(self, site: Site) -> float:
        return site.scale(self._peaks[site.name])

    def _see(self, x: Tensor, scale: float, site: Site) -> None:
        if self.update:
            seen = x.detach().abs().amax() * scale
            self._seen[site.name] = torch.maximum(seen, self._seen.get(site.name, seen))

    def _rounded(self, exact: Tensor, x: Tensor, rescaling: Rescaling, to: Site, scale: float) -> Quantity:
        """Integers at a site, rescaled from integers x; gradients are those of `exact`, in the site's units."""
        self._see(exact, scale, to)
        multiplier, offset = rescaling.multiplier.to(x.device), rescaling.offset.to(x.device)
        ints = requantize(x.int(), multiplier, offset, rescaling.shift, 1, 2 * to.zero - 1) - to.zero
        return Quantity(ints=valued(exact.clamp(-to.largest, to.largest), ints), scale=scale)

    def move(self, x: Quantity, how: Callable[[Any], Any]) -> Quantity:
        """As the form says."""
        return replace(x, ints=how(x.ints))

    def linear(self, name: str, x: Quantity, parts: Sequence[Part]) -> list[Quantity]:
        """As the form says."""
        sizes = [len(part.weight) for part in parts]
        scales = [self._at(part.to) for part in parts]
        weight, rescaling = integer_weights(name, parts, x.scale, scales)
        sums = F.linear(x.ints, valued(weight, weight.detach().round()))
        found = []
        rows = zip(
            sums.split(sizes, -1), rescaling.multiplier.split(sizes), rescaling.offset.split(sizes), strict=True
        )
        for part, scale, (some, multiplier, offset) in zip(parts, scales, rows, strict=True):
            exact = some * (multiplier.float() / 2**rescaling.shift)
            if part.bias is not None:
                exact = exact + part.bias / scale
            one = Rescaling(multiplier=multiplier, offset=offset, shift=rescaling.shift)
            found.append(self._rounded(exact, some.detach().round(), one, part.to, scale))
        return found

    def norm(self, name: str, x: Quantity, norm: nn.LayerNorm, to: Site) -> Quantity:
        """As the form says."""
        scale = self._at(to)
        exact = F.layer_norm(x.ints * x.scale, norm.normalized_shape, norm.weight, norm.bias, norm.eps) / scale
        normal = normalise(x.ints.detach().int(), norm_epsilon(norm, x.scale))
        return self._rounded(exact, normal, norm_rescaling(name, norm, scale, to), to, scale)

    def gelu(self, name: str, x: Quantity, to: Site) -> Quantity:
        """As the form says."""
        scale = self._at(to)
        exact = F.gelu(x.ints * x.scale) / scale
        active = shift_gelu(x.ints.detach().int(), fraction(x.scale))
        return self._rounded(exact, active, gelu_rescaling(name, x.scale, scale, to), to, scale)

    def attention(
        self, name: str, q: Quantity, k: Quantity, v: Quantity, scale: float, bias: Tensor | None
    ) -> Quantity:
        """As the form says."""
        site, to = scores_site(name), mixed_site(name)
        score_scale = self._at(site)
        factor = q.scale * k.scale * scale / score_scale
        keys = q.ints @ k.ints.transpose(-1, -2)
        rescaling = rescale(name, torch.tensor(factor), torch.zeros(()), 128 * 127 * q.ints.shape[-1], site)
        scores = self._rounded(keys * factor, keys.detach(), rescaling, site, score_scale).ints
        if bias is not None:
            bias = bias / score_scale
            scores = biased(scores, valued(bias, bias.detach().round()))
        ints = shiftmax_weights(scores.detach().int(), fraction(score_scale))
        attention = (scores * score_scale).softmax(-1)
        attention = valued(attention, ints / ints.sum(-1, keepdim=True))
        multiplier, bits, mixed_scale = mean_rescaling(v.scale, self._at(to), ints.shape[-1])
        exact = (attention @ v.ints) * (v.scale / mixed_scale)
        self._see(exact, mixed_scale, to)
        with torch.no_grad():
            sums = (ints.float() @ v.ints).int()
            mixed = weighted_mean(sums, ints, multiplier, bits, to.zero, 1, 255) - to.zero
        return Quantity(ints=valued(exact.clamp(-to.largest, to.largest), mixed), scale=mixed_scale)

    def add(self, x: Quantity, y: Quantity, to: Site, drop_path: nn.Module) -> Quantity:
        """As the form says."""
        total = x.ints + drop_path(y.ints)
        self._see(total, x.scale, to)
        total = total.clamp(-to.largest, to.largest)
        return replace(x, ints=valued(total, total.detach().round()))  # a branch that is kept is scaled up

    def add_constant(self, x: Quantity, constant: Tensor, to: Site) -> Quantity:
        """As the form says."""
        units = constant / x.scale
        total = x.ints + valued(units, units.detach().round().clamp(-to.largest, to.largest))
        self._see(total, x.scale, to)
        return replace(x, ints=total.clamp(-to.largest, to.largest))

    def mean(self, name: str, x: Quantity, dim: int, to: Site) -> Quantity:
        """As the form says."""
        count, scale = x.ints.shape[dim], self._at(to)
        factor = x.scale / count / scale
        total = x.ints.sum(dim)
        rescaling = rescale(name, torch.tensor(factor), torch.zeros(()), 32768 * count, to)
        return self._rounded(total * factor, total.detach(), rescaling, to, scale)


def valued(exact: Tensor, value: Tensor) -> Tensor:
    """`value`, bit for bit, with the gradient of `exact` (straight through)."""
    return _StraightThrough.apply(exact, value)


class _StraightThrough(torch.autograd.Function):
    """A sum of the one and a detached difference would round the integers."""

    @staticmethod
    def forward(ctx: Any, exact: Tensor, value: Tensor) -> Tensor:
        return value.to(exact.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
