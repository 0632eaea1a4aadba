"""The exact functions in float: shows that a walker computes its model, and what range every site has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.integer import Site
from .form import Form, Part, biased


class Exact(Form[Tensor]):
    """peaks: the largest magnitude that came to each site, over all that was computed."""

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}

    def see(self, x: Tensor, site: Site) -> Tensor:
        """Note the range of x."""
        self.peaks[site.name] = max(self.peaks.get(site.name, 0.0), x.abs().max().item())
        return x

    def move(self, x: Tensor, how: Callable[[Any], Any]) -> Tensor:
        """As the form says."""
        return how(x)

    def linear(self, name: str, x: Tensor, parts: Sequence[Part]) -> list[Tensor]:
        """As the form says."""
        return [self.see(F.linear(x, part.weight, part.bias), part.to) for part in parts]

    def norm(self, name: str, x: Tensor, norm: nn.LayerNorm, to: Site) -> Tensor:
        """As the form says."""
        return self.see(F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps), to)

    def gelu(self, name: str, x: Tensor, to: Site) -> Tensor:
        """As the form says."""
        return self.see(F.gelu(x), to)

    def attention(self, name: str, q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Tensor | None) -> Tensor:
        """As the form says."""
        scores = self.see(q @ k.transpose(-1, -2) * scale, scores_site(name))
        if bias is not None:
            scores = biased(scores, bias)
        return self.see(scores.softmax(-1) @ v, mixed_site(name))

    def add(self, x: Tensor, y: Tensor, to: Site, drop_path: nn.Module) -> Tensor:
        """As the form says."""
        return self.see(x + y, to)

    def add_constant(self, x: Tensor, constant: Tensor, to: Site) -> Tensor:
        """As the form says."""
        return self.see(x + constant, to)

    def mean(self, name: str, x: Tensor, dim: int, to: Site) -> Tensor:
        """As the form says."""
        return self.see(x.mean(dim), to)


def scores_site(name: str) -> Site:
    """Where the scores of an attention are rounded, before its bias."""
    return Site(name=f"{name}.scores", bits=16, power=True)


def mixed_site(name: str) -> Site:
    """Where values mixed by an attention are rounded."""
    return Site(name=f"{name}.mixed")
