"""Linear attention (arXiv 2006.16236), not causal: cost linear in the number of tokens.

Axes: B image, N token, C channel, h head, D channels of one head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...errors import BadInput
from .mixer import TokenMixer

_EPS = 1e-6  # the authors'; only queries that are all far below zero come near it


class LinearAttention(TokenMixer):
    """Attention with the kernel phi(q) . phi(k), phi = elu + 1, in place of exp(q . k) (equations 5 to 7).

        V_i = phi(Q_i) sum_j phi(K_j)^T V_j / phi(Q_i) sum_j phi(K_j)^T

    head_dim: channels of one head. The sums over j are the same for every i: two small matrix products.
    """

    def __init__(self, dim: int, grid: tuple[int, int], *, head_dim: int = 64, proj_drop: float = 0.0) -> None:
        super().__init__(dim, grid)
        if head_dim < 1 or dim % head_dim:
            raise BadInput(f"Linear attention's {dim} channels do not divide into heads of {head_dim}.")
        self.head_dim = head_dim
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def mix(self, x_BNC: Tensor) -> Tensor:
        """See the class."""
        q, k, v = (part.unflatten(-1, (-1, self.head_dim)) for part in self.qkv(x_BNC).chunk(3, dim=-1))
        q_BhND, v_BhND = _phi(q).permute(0, 2, 1, 3), v.permute(0, 2, 1, 3)
        # a mean in place of the sum: the ratio is the same, and half precision cannot overflow
        k_BhDN = _phi(k).permute(0, 2, 3, 1) / self.tokens
        above = q_BhND @ (k_BhDN @ v_BhND)
        below = q_BhND @ k_BhDN.sum(dim=-1, keepdim=True)
        return self.proj_drop(self.proj((above / (below + _EPS)).permute(0, 2, 1, 3).flatten(2)))


def _phi(x: Tensor) -> Tensor:
    """elu(x) + 1, without the subtraction of 1 that would round small values away."""
    return torch.clamp(x, max=0).exp() + torch.clamp(x, min=0)
