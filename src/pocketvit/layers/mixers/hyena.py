"""Hyena (arXiv 2302.10866) on images: gates and implicit long convolutions, two-sided and two-dimensional.

The paper's Hyena-ViT (section 4.5, appendix A.4) runs the language operator over the sequence of patches, causally,
without class token and position embedding; its CIFAR-10 model has filters over rows and columns, as large as the
image, under a decaying window. An image has no past, and in the sequence a patch is further from the one below it
than from the far end of its row. So the filters here are those of the latter, two-dimensional, and see both ways:
one value for every offset between two patches. Neither the number of parameters nor their meaning depends on the
grid, since offsets are fractions of it.

Axes: B image, N token, C channel, H and W the grid, P = 2H - 1 and Q = 2W - 1 a filter (see long_convolution.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ...errors import BadInput
from ..folding import Foldable
from .long_convolution import Form, LongConvolution
from .mixer import TokenMixer


class Sine(nn.Module):
    """sin(f x) with a learned frequency f per channel: what lets so small a network draw sharp filters."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise over the last axis."""
        return (self.frequency * x).sin()


class ImplicitFilter(nn.Module):
    """Filters as a function of the offset: a network on its sines and cosines, under a window (equation 7).

    h(t) = exp(-rate * |t|) * FFN(encoding(t)), t the offset as a fraction of the grid. Rates are fixed; over the
    channels they let a filter fall to 1% at 0.3 to 1.5 times the grid, as in the authors' code.

    width: of the network, which has four linear layers (table A.4). bands: frequencies of the encoding per axis.
    """

    encoding: Tensor
    window: Tensor
    here: Tensor

    def __init__(self, dim: int, grid: tuple[int, int], *, count: int, width: int, bands: int) -> None:
        super().__init__()
        sizes = [2 + 4 * bands, width, width, width]
        layers = [part for i, o in pairwise(sizes) for part in (nn.Linear(i, o), Sine(o))]
        self.network = nn.Sequential(*layers, nn.Linear(width, count * dim, bias=False))
        # the skip connection D of the authors' convolution
        self.skip = nn.Parameter(torch.randn(count, dim))
        rows, columns = (torch.arange(1 - side, side) / side for side in grid)
        t_PQ2 = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1)
        waves = (math.pi * torch.arange(1, bands + 1) * t_PQ2[..., None]).flatten(2)
        self.register_buffer("encoding", torch.cat([t_PQ2, waves.cos(), waves.sin()], dim=-1), persistent=False)
        rates = torch.linspace(math.log(100) / 1.5, math.log(100) / 0.3, dim)
        self.register_buffer("window", torch.exp(-rates[:, None, None] * t_PQ2.norm(dim=-1)), persistent=False)
        self.register_buffer("here", (t_PQ2 == 0).all(dim=-1), persistent=False)
        self.count = count

    def forward(self) -> Tensor:
        """Filters (count, C, P, Q), the skip connection added to the offset 0."""
        h_nCPQ = self.network(self.encoding).permute(2, 0, 1).unflatten(0, (self.count, -1)) * self.window
        return h_nCPQ + self.skip[:, :, None, None] * self.here

    def init_weights(self) -> None:
        """Linear layers as PyTorch draws them: a ViT's 0.02 would leave filters that are nothing but the skip."""
        for part in self.network:
            if isinstance(part, nn.Linear):
                part.reset_parameters()


class Hyena(TokenMixer, Foldable):
    """The Hyena operator (definition 3.1): z_1 = v, z_{n+1} = x_n * (h_n conv z_n), y = z_{N+1}, N the order.

    All projections, the value among them, pass a short depthwise convolution (algorithm 1). As in the authors' code
    and its count of operations (appendix A.2), that is h_1: the other N - 1 filters are long and implicit.

    form: of the long convolutions. `fuse` evaluates the filters once and for good, and where the form was fft goes
    over to matmul, since exporters and the Neural Engine have no FFT. Of the two that export (vit_tiny_hyena, 224
    pixels, fp32 on a CPU), matmul is as fast as direct in ONNX Runtime and OpenVINO, within a fifth, and seven times
    as fast in ExecuTorch; direct has the smaller file and loses less to 8-bit activations.
    """

    filters: Tensor | None

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        *,
        order: int = 2,
        form: Form | str = Form.FFT,
        width: int = 64,
        bands: int = 8,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, grid)
        if order < 2:
            raise BadInput(f"Hyena needs an order of at least 2, one long convolution, not {order}.")
        if min(width, bands) < 1:
            raise BadInput(f"Hyena's filters need at least one band and a width of one, not {bands} and {width}.")
        if form not in list(Form):
            raise BadInput(f"Hyena's convolutions have no form {form!r}; choose one of {', '.join(Form)}.")
        self.order = order
        self.projections = nn.Linear(dim, (order + 1) * dim)
        self.short = nn.Conv2d((order + 1) * dim, (order + 1) * dim, 3, padding=1, groups=(order + 1) * dim)
        self.filter: ImplicitFilter | None = ImplicitFilter(dim, grid, count=order - 1, width=width, bands=bands)
        self.convolve = LongConvolution(grid, Form(form))
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_buffer("filters", None)

    def no_weight_decay(self) -> set[str]:
        """The filters: a decaying network makes them smooth, the skip connection nothing."""
        return set() if self.filter is None else {f"filter.{name}" for name, _ in self.filter.named_parameters()}

    def mix(self, x_BNC: Tensor) -> Tensor:
        """See the class."""
        first, *gates, value = self.short(self.to_map(self.projections(x_BNC))).chunk(self.order + 1, dim=1)
        z_BCHW = first * value
        for gate, prepared in zip(gates, self._prepared(), strict=True):
            z_BCHW = gate * self.convolve(z_BCHW, prepared)
        return self.proj_drop(self.proj(self.to_tokens(z_BCHW)))

    @property
    def is_folded(self) -> bool:
        """True once the network that draws the filters is gone."""
        return self.filter is None

    def fuse(self) -> Hyena:
        """Keep the filters, in the form that is exported, and drop the network that draws them."""
        if self.filter is not None:
            if self.convolve.form is Form.FFT:
                self.convolve = LongConvolution(self.grid, Form.MATMUL).to(self.proj.weight)
            self.filters = torch.stack(list(self._prepared())).detach()
            self.filter = None
        return self

    def _prepared(self) -> Sequence[Tensor]:
        if self.filter is None:
            assert self.filters is not None
            return self.filters.unbind()
        return [self.convolve.prepare(h_CPQ) for h_CPQ in self.filter().unbind()]
