"""What a vision transformer is made of, as operations: a model is walked once for each form that computes them.

Forms: `Exact` (float, and what ranges are observed in), `Training` (integers in float tensors, with gradients) and
`Recording` (an integer program). The walkers in deit.py and swin.py call nothing else, so the three cannot drift.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

from ...layers.integer import Site

X = TypeVar("X")


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Rows of a linear layer whose results go to one site. weight: (out, in); bias: (out,) or None."""

    weight: Tensor
    bias: Tensor | None
    to: Site


class Form(ABC, Generic[X]):
    """The operations, on activations X of shape (B, ...). `name` is the module, in messages and in counts."""

    @abstractmethod
    def move(self, x: X, how: Callable[[Any], Any]) -> X:
        """Reshape, permute, narrow or roll."""

    @abstractmethod
    def linear(self, name: str, x: X, parts: Sequence[Part]) -> list[X]:
        """Linear layer over the last axis, split into its parts; all parts have sites of as many bits."""

    @abstractmethod
    def norm(self, name: str, x: X, norm: nn.LayerNorm, to: Site) -> X:
        """LayerNorm over the last axis of a 16-bit x."""

    @abstractmethod
    def gelu(self, name: str, x: X, to: Site) -> X:
        """GELU of an x whose scale is a power of two."""

    @abstractmethod
    def attention(self, name: str, q: X, k: X, v: X, scale: float, bias: Tensor | None) -> X:
        """softmax(scale q k^T + bias) v of (B, heads, N, D); bias (heads, N, N), or (windows, heads, N, N)."""

    @abstractmethod
    def add(self, x: X, y: X, to: Site, drop_path: nn.Module) -> X:
        """Sum of x and y, both at the 16-bit site `to`; y dropped at random while training."""

    @abstractmethod
    def add_constant(self, x: X, constant: Tensor, to: Site) -> X:
        """Sum of x and a constant, x at the 16-bit site `to`."""

    @abstractmethod
    def mean(self, name: str, x: X, dim: int, to: Site) -> X:
        """Mean over one axis, which goes."""


def biased(scores: Any, bias: Any) -> Any:
    """Add a bias to attention scores (B, heads, N, N); one for each window repeats over the images."""
    if len(bias.shape) == 3:
        return scores + bias
    shape = scores.shape
    return (scores.reshape(-1, *bias.shape) + bias).reshape(-1, *shape[1:])
