"""Convolution of a map with filters as large as the map can use, in three forms with equal results.

Axes: B image, C channel, H and W the map, P = 2H - 1 and Q = 2W - 1 the filter: index p is the offset p - (H - 1) of
the output's row from the input's, so that any token reaches any other. M: points of a transform along one axis.
"""

from __future__ import annotations

import math
from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Form(StrEnum):
    """How a long convolution over N = H * W tokens is computed.

    fft: product of fast Fourier transforms, N log N; neither the Neural Engine nor most exporters have an FFT.
    direct: one depthwise convolution, N^2. matmul: the Fourier transforms as products with small constant matrices,
    N^1.5 and made of what every runtime is best at.
    """

    FFT = "fft"
    DIRECT = "direct"
    MATMUL = "matmul"


class LongConvolution(nn.Module):
    """y[i, j] = sum over i', j' of h[i - i', j - j'] z[i', j'], per channel, for maps of one size."""

    into_h: Tensor
    into_w: Tensor
    through_h: Tensor
    through_w: Tensor
    back_h: Tensor
    back_w: Tensor

    def __init__(self, grid: tuple[int, int], form: Form) -> None:
        super().__init__()
        self.grid = grid
        self.form = form
        if form is Form.MATMUL:
            for axis, side in zip("hw", grid, strict=True):
                for name, matrix in zip(("into", "through", "back"), fourier_matrices(side), strict=True):
                    self.register_buffer(f"{name}_{axis}", matrix.to(torch.get_default_dtype()), persistent=False)

    def prepare(self, h_CPQ: Tensor) -> Tensor:
        """Filters as `forward` takes them; what does not depend on the image is done here, once where they stay."""
        match self.form:
            case Form.FFT:
                return h_CPQ
            case Form.DIRECT:
                return h_CPQ.flip(-2, -1).unsqueeze(1)  # torch's convolution does not turn the filter round
            case Form.MATMUL:
                return (self.through_h @ h_CPQ @ self.through_w.T).transpose(1, 2)

    def forward(self, z_BCHW: Tensor, prepared: Tensor) -> Tensor:
        """The convolved map."""
        H, W = self.grid
        match self.form:
            case Form.FFT:
                # 2H >= P points: what wraps round lands in rows that are cut off, so this is linear, not circular
                size = (2 * H, 2 * W)
                # the transform knows no half precision on CPU
                z, h = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (z_BCHW, prepared))
                y = torch.fft.irfft2(torch.fft.rfft2(z, s=size) * torch.fft.rfft2(h, s=size), s=size)
                return y[..., H - 1 : 2 * H - 1, W - 1 : 2 * W - 1].to(z_BCHW.dtype)
            case Form.DIRECT:
                return F.conv2d(z_BCHW, prepared, padding=(H - 1, W - 1), groups=prepared.shape[0])
            case Form.MATMUL:
                # Constants on the right: one large product each, where a constant on the left is one per channel.
                # The spectrum lies on its side, which saves two transposes.
                z_BCMM = (z_BCHW @ self.into_w.T).transpose(2, 3) @ self.into_h.T
                y_BCMH = (z_BCMM * prepared) @ self.back_h.T
                return y_BCMH.transpose(2, 3) @ self.back_w.T


def fourier_matrices(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real matrices A (M, side), B (M, 2 side - 1), G (side, M) with y = G (A z * B h), M = 3 side - 2, in float64.

    That is the discrete Fourier transform over 2 side - 1 points, each complex product taken as three real ones:
    (a + ib)(c + id) = [a (c + d) - d (a + b)] + i [a (c + d) + c (b - a)].
    """
    points = 2 * side - 1
    frequency = torch.arange(side, dtype=torch.float64)[:, None] * (2 * math.pi / points)
    at, offset = torch.arange(side), torch.arange(1 - side, side)
    c, d = torch.cos(frequency * at), -torch.sin(frequency * at)
    a, b = torch.cos(frequency * offset), -torch.sin(frequency * offset)
    weight = torch.full((side, 1), 2 / points, dtype=torch.float64)
    weight[0] = 1 / points  # all other frequencies stand for their conjugates as well
    real, imaginary = (weight * c).T, (weight * d).T
    # frequency 0 is real: its second and third products are nothing
    into = torch.cat([c + d, d[1:], c[1:]])
    through = torch.cat([a, (a + b)[1:], (b - a)[1:]])
    back = torch.cat([real + imaginary, -real[:, 1:], imaginary[:, 1:]], dim=1)
    return into, through, back
