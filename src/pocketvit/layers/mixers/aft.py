"""The attention free transformer (arXiv 2105.14103): full, simple, local and conv, not causal.

Output t is a gated mean of the values, one set of weights per channel (equation 2, s the sigmoid):

    Y_t = s(Q_t) * sum_t' exp(K_t' + w_tt') V_t' / sum_t' exp(K_t' + w_tt')

Numerator and denominator hold the same exponentials, so any factor that does not depend on t' cancels between them:
the largest key of each channel may be taken from K, and the largest bias of each row from w. No exponential then
exceeds 1, nothing overflows however large the keys (in half precision neither), and the largest key still
contributes exp(w - max w) to the denominator, which keeps it from zero.

Axes: B image, N and T token, R rank of the position bias, C channel, h head, H and W the grid.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...errors import BadInput
from ..folding import Foldable
from .mixer import TokenMixer

_FUSED = "This AFT is fused: only the exponential of its position bias is left."


class AFT(TokenMixer):
    """What the four variants share: projections, gate and output; they differ in how they average the values.

    keys: number of different keys per token, one per channel unless AFT-conv shares them among a head's channels.
    """

    def __init__(self, dim: int, grid: tuple[int, int], *, keys: int, proj_drop: float) -> None:
        super().__init__(dim, grid)
        self.keys = keys
        self.qkv = nn.Linear(dim, 2 * dim + keys)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def mix(self, x_BNC: Tensor) -> Tensor:
        """See the class."""
        q, k, v = self.qkv(x_BNC).split([self.dim, self.keys, self.dim], dim=-1)
        return self.proj_drop(self.proj(q.sigmoid() * self.average(k, v)))

    @abstractmethod
    def average(self, k: Tensor, v_BNC: Tensor) -> Tensor:
        """The fraction of equation 2, keys (B, N, keys): (B, N, C), or (B, 1, C) where all tokens share it."""


class AFTSimple(AFT):
    """AFT without position biases (equation 5): one mean over the tokens, which each token gates for itself."""

    def __init__(self, dim: int, grid: tuple[int, int], *, proj_drop: float = 0.0) -> None:
        super().__init__(dim, grid, keys=dim, proj_drop=proj_drop)

    def average(self, k: Tensor, v_BNC: Tensor) -> Tensor:
        """See AFT."""
        return (k.softmax(dim=1) * v_BNC).sum(dim=1, keepdim=True)


class AFTFull(AFT, Foldable):
    """AFT with a learned bias for every pair of tokens (equation 2).

    rank: of the factors of w = u v^T (equation 7; the paper takes 128 for ImageNet), or None for a free T x T matrix.
    Both sums of equation 2 are one product with the matrix exp(w), which `fuse` turns into a constant.
    """

    u: Tensor | None
    v: Tensor | None
    w: Tensor | None
    weights: Tensor | None

    def __init__(self, dim: int, grid: tuple[int, int], *, rank: int | None = 128, proj_drop: float = 0.0) -> None:
        super().__init__(dim, grid, keys=dim, proj_drop=proj_drop)
        if rank is not None and rank < 1:
            raise BadInput(f"The rank of AFT's position bias must be at least 1, not {rank}; None leaves it whole.")
        # section 5.1 draws factors and whole biases alike from N(0, 10^-2), read here as the standard deviation
        shapes = {"w": self.tokens} if rank is None else {"u": rank, "v": rank}
        for name in "uvw":
            drawn = nn.Parameter(torch.randn(self.tokens, shapes[name]) * 1e-2) if name in shapes else None
            self.register_parameter(name, drawn)
        self.register_buffer("weights", None)

    def no_weight_decay(self) -> set[str]:
        """The position bias or its factors."""
        return {"u", "v", "w"}

    def position_bias(self) -> Tensor:
        """w_TT: how much output t (row) favours token t' (column); raises BadInput once fused."""
        if self.u is not None and self.v is not None:
            return self.u @ self.v.T
        if self.w is None:
            raise BadInput(_FUSED)
        return self.w

    def average(self, k: Tensor, v_BNC: Tensor) -> Tensor:
        """See AFT."""
        e_BNC = (k - k.amax(dim=1, keepdim=True)).exp()
        sums = self._weights() @ torch.cat([e_BNC * v_BNC, e_BNC], dim=-1)
        above, below = sums.chunk(2, dim=-1)
        return above / below

    @property
    def is_folded(self) -> bool:
        """True once only exp(w) is left."""
        return self.weights is not None

    def fuse(self) -> AFTFull:
        """Keep exp(w) and drop what it is made of."""
        if self.weights is None:
            self.weights = self._weights().detach()
            self.u = self.v = self.w = None
        return self

    def _weights(self) -> Tensor:
        if self.weights is not None:
            return self.weights
        w_TT = self.position_bias()
        return (w_TT - w_TT.amax(dim=1, keepdim=True)).exp()


class AFTLocal(AFTFull):
    """AFT with learned biases near by and zero elsewhere (equation 4); tokens out of the window still count.

    window: s of the paper; the bias acts where rows and columns both differ by less than s. A grid of one row is the
    paper's sequence, |t - t'| < s.
    """

    near: Tensor

    def __init__(
        self, dim: int, grid: tuple[int, int], *, window: int, rank: int | None = 128, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, grid, rank=rank, proj_drop=proj_drop)
        if window < 1:
            raise BadInput(f"The window of AFT-local must be at least 1, not {window}; AFT-simple has none.")
        within = [(torch.arange(side)[:, None] - torch.arange(side)).abs() < window for side in grid]
        # the Kronecker product puts the rows' condition on blocks and the columns' inside them
        self.register_buffer("near", torch.kron(within[0].float(), within[1].float()), persistent=False)

    def position_bias(self) -> Tensor:
        """w_TT, zero outside the window."""
        return super().position_bias() * self.near


class AFTConv(AFT, Foldable):
    """AFT whose biases depend on relative positions only, as a convolution's weights do (equation 6, in 2-D).

    heads: sets of biases; channel c belongs to head c % heads, and a head's channels share one key. kernel: width of
    the square within which the bias acts, odd; beyond it the bias is zero and only the global sum remains:

        sum_t' exp(K_t' + w) x_t' = conv(exp(K) x, exp(w) - 1) + sum_t' exp(K_t') x_t'

    Biases are normalised per head, then scaled and shifted by gain and shift, both 0 at first (equation 8). The
    subtraction costs digits where a bias is far below zero: relative rounding grows by exp(-min w).
    """

    w: Tensor | None
    gain: Tensor | None
    shift: Tensor | None
    filter: Tensor | None
    least: Tensor | None

    def __init__(
        self, dim: int, grid: tuple[int, int], *, heads: int = 32, kernel: int = 11, proj_drop: float = 0.0
    ) -> None:
        if heads < 1 or dim % heads:
            raise BadInput(f"AFT-conv's {dim} channels do not divide into {heads} heads.")
        if kernel < 3 or kernel % 2 == 0:
            raise BadInput(f"AFT-conv's kernel must be odd and at least 3, not {kernel}.")
        super().__init__(dim, grid, keys=heads, proj_drop=proj_drop)
        self.w = nn.Parameter(torch.randn(heads, 1, kernel, kernel))
        self.gain = nn.Parameter(torch.zeros(heads, 1, 1, 1))
        self.shift = nn.Parameter(torch.zeros(heads, 1, 1, 1))
        self.register_buffer("filter", None)
        self.register_buffer("least", None)

    def no_weight_decay(self) -> set[str]:
        """The biases, their gain and their shift."""
        return {"w", "gain", "shift"}

    def position_bias(self) -> Tensor:
        """w_h1KK: the bias of each head for the token at row i - K // 2 and column j - K // 2 from the output.

        Raises BadInput once fused.
        """
        if self.w is None or self.gain is None or self.shift is None:
            raise BadInput(_FUSED)
        centred = self.w - self.w.mean(dim=(2, 3), keepdim=True)
        return self.gain * centred / self.w.std(dim=(2, 3), keepdim=True, correction=0) + self.shift

    def average(self, k: Tensor, v_BNC: Tensor) -> Tensor:
        """See AFT."""
        k_BhHW, v_BCHW = self.to_map(k), self.to_map(v_BNC)
        e_BhHW = (k_BhHW - k_BhHW.amax(dim=(2, 3), keepdim=True)).exp()
        terms = torch.cat([self._per_channel(e_BhHW, 1) * v_BCHW, e_BhHW], dim=1)
        whole = terms.sum(dim=(2, 3), keepdim=True)
        filter_h1KK, least_h11 = self._filter()
        filters = torch.cat([self._per_channel(filter_h1KK, 0), filter_h1KK])
        near = F.conv2d(terms, filters, padding=filters.shape[-1] // 2, groups=filters.shape[0])
        above, below = (near + whole).split([self.dim, self.keys], dim=1)
        # No weight is less than this, so neither is their sum: it changes nothing but what rounding may have left of
        # two sums that cancel, which must not be zero.
        below = torch.maximum(below, least_h11 * whole[:, self.dim :])
        return self.to_tokens(above / self._per_channel(below, 1))

    @property
    def is_folded(self) -> bool:
        """True once only exp(w) - 1 is left."""
        return self.filter is not None

    def fuse(self) -> AFTConv:
        """Keep exp(w) - 1 and drop what it is made of."""
        if self.filter is None:
            self.filter, self.least = (constant.detach() for constant in self._filter())
            self.w = self.gain = self.shift = None
        return self

    def _filter(self) -> tuple[Tensor, Tensor]:
        """exp(w) - 1, and the least exp(w) of each head where outside the kernel w is 0."""
        if self.filter is not None and self.least is not None:
            return self.filter, self.least
        w_h1KK = self.position_bias()
        least = w_h1KK.amin(dim=(2, 3)).clamp(max=0).exp()
        # what is smaller than eps is rounding anyway
        return w_h1KK.expm1(), least.clamp(min=torch.finfo(least.dtype).eps)[:, :, None]

    def _per_channel(self, x: Tensor, axis: int) -> Tensor:
        """One head per entry to one channel per entry; copies end to end, which needs no rank above 4."""
        return x if self.keys == self.dim else torch.cat([x] * (self.dim // self.keys), dim=axis)
