"""A model as an integer program: every operation of a form, recorded with the integers that stand for its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ...layers.integer import (
    Recorder,
    Rescaling,
    Site,
    Value,
    normalise,
    product,
    requantize,
    rescale,
    shift_gelu,
    shiftmax_weights,
    weighted_mean,
)
from .constants import fraction, gelu_rescaling, integer_weights, mean_rescaling, norm_epsilon, norm_rescaling
from .exact import mixed_site, scores_site
from .form import Form, Part, biased


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantity:
    """(ints - zero) * scale."""

    ints: Any
    scale: float
    zero: int = 0


class Recording(Form[Quantity]):
    """peaks: of each site. layers: the names of those whose weights became integers, in order."""

    def __init__(self, recorder: Recorder, peaks: Mapping[str, float]) -> None:
        self.recorder, self.peaks = recorder, peaks
        self.layers: list[str] = []
        self.marks: dict[str, Quantity] = {}

    def _at(self, site: Site) -> float:
        return site.scale(self.peaks[site.name])

    def move(self, x: Quantity, how: Callable[[Any], Any]) -> Quantity:
        """As the form says."""
        return replace(x, ints=how(x.ints))

    def linear(self, name: str, x: Quantity, parts: Sequence[Part]) -> list[Quantity]:
        """As the form says."""
        self.recorder.layer = name
        self.layers.append(name)
        sizes = [len(part.weight) for part in parts]
        scales = [self._at(part.to) for part in parts]
        weight, rescaling = integer_weights(name, parts, x.scale, scales)
        ints = weight.detach().round()
        found = self._rounded(product(x.ints, self.recorder.value(ints.T, torch.int8), x.zero), rescaling, parts[0].to)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        split = [found.narrow(-1, a, n) for a, n in zip(starts, sizes, strict=True)] if len(sizes) > 1 else [found]
        return [self._mark(p.to, p_ints, scale) for p, p_ints, scale in zip(parts, split, scales, strict=True)]

    def _rounded(self, x: Value, rescaling: Rescaling, to: Site) -> Value:
        """Integers at a site: uint8 with a zero of 128, or int32 about 0."""
        ints = requantize(x, rescaling.multiplier, rescaling.offset, rescaling.shift, 1, 2 * to.zero - 1)
        return ints.to(torch.uint8) if to.bits == 8 else ints - to.zero

    def _mark(self, to: Site, ints: Value, scale: float) -> Quantity:
        found = Quantity(ints=ints, scale=scale, zero=to.zero if to.bits == 8 else 0)
        self.marks[to.name] = found
        return found

    def norm(self, name: str, x: Quantity, norm: nn.LayerNorm, to: Site) -> Quantity:
        """As the form says."""
        self.recorder.layer = name
        scale = self._at(to)
        normal = normalise(x.ints, norm_epsilon(norm, x.scale))
        return self._mark(to, self._rounded(normal, norm_rescaling(name, norm, scale, to), to), scale)

    def gelu(self, name: str, x: Quantity, to: Site) -> Quantity:
        """As the form says."""
        self.recorder.layer = name
        scale = self._at(to)
        active = shift_gelu(x.ints, fraction(x.scale))
        return self._mark(to, self._rounded(active, gelu_rescaling(name, x.scale, scale, to), to), scale)

    def attention(
        self, name: str, q: Quantity, k: Quantity, v: Quantity, scale: float, bias: Tensor | None
    ) -> Quantity:
        """As the form says."""
        self.recorder.layer = name
        site, to = scores_site(name), mixed_site(name)
        score_scale = self._at(site)
        keys = product(q.ints, _signed(k).permute(0, 1, 3, 2), q.zero)
        factor = torch.tensor(q.scale * k.scale * scale / score_scale)
        largest = 128 * 127 * q.ints.shape[-1]
        scores = self._rounded(keys, rescale(name, factor, torch.zeros(()), largest, site), site)
        self._mark(site, scores, score_scale)
        if bias is not None:
            scores = biased(scores, self.recorder.value((bias / score_scale).round(), torch.int32))
        weights = shiftmax_weights(scores, fraction(score_scale))
        sums = product(weights.to(torch.uint8), _signed(v), 0)
        multiplier, bits, mixed_scale = mean_rescaling(v.scale, self._at(to), weights.shape[-1])
        mixed = weighted_mean(sums, weights, multiplier, bits, to.zero, 1, 255)
        return self._mark(to, mixed.to(torch.uint8), mixed_scale)

    def add(self, x: Quantity, y: Quantity, to: Site, drop_path: nn.Module) -> Quantity:
        """As the form says."""
        assert x.scale == y.scale, "only numbers at one site can be added"
        return self._mark(to, (x.ints + y.ints).clamp(-to.largest, to.largest), x.scale)

    def add_constant(self, x: Quantity, constant: Tensor, to: Site) -> Quantity:
        """As the form says."""
        ints = (constant.detach() / x.scale).round().clamp(-to.largest, to.largest)
        found = (x.ints + self.recorder.value(ints, torch.int32)).clamp(-to.largest, to.largest)
        return self._mark(to, found, x.scale)

    def mean(self, name: str, x: Quantity, dim: int, to: Site) -> Quantity:
        """As the form says."""
        self.recorder.layer = name
        count, scale = x.ints.shape[dim], self._at(to)
        total = x.ints.sum(dim, keepdim=True, dtype=torch.int32)
        factor = torch.tensor(x.scale / count / scale)
        mean = self._rounded(total, rescale(name, factor, torch.zeros(()), 32768 * count, to), to)
        return self._mark(to, mean.reshape(-1, *(n for i, n in enumerate(mean.shape) if i not in (0, dim))), scale)


def _signed(x: Quantity) -> Value:
    """8-bit integers about 0, as the right-hand side of a product takes them."""
    return (x.ints.to(torch.int32) - x.zero).to(torch.int8)
