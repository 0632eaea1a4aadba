"""tiny-MOAT-1 as implementations for PyTorch usually write it: windows cut with six axes, channels first, a relative
position bias for each head, and one layer for queries, keys and values. Written from the paper (arXiv 2210.01820) and
the conventions of such code; the subject of a test, not a model of pocketvit's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class MBConv(nn.Module):
    def __init__(self, given: int, width: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        inner = 4 * given
        self.norm = nn.BatchNorm2d(given)
        self.expand, self.expand_norm = nn.Conv2d(given, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(inner)
        self.squeeze = SqueezeExcite(inner, given // 4) if squeeze else nn.Identity()
        self.project, self.project_norm = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(2) if stride == 2 else nn.Identity()
        self.shortcut = nn.Conv2d(given, width, 1) if given != width else nn.Identity()
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.expand_norm(self.expand(self.norm(x))))
        y = self.squeeze(self.act(self.depthwise_norm(self.depthwise(y))))
        return self.project_norm(self.project(y)) + self.shortcut(self.pool(x))


class WindowAttention(nn.Module):
    """Softmax attention over (N, S, C) with a bias table for each head."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.table = nn.Parameter(0.5 * torch.randn((2 * window - 1) ** 2, heads))
        place = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        distance = (place[:, :, None] - place[:, None, :]) + window - 1
        self.register_buffer("index", distance[0] * (2 * window - 1) + distance[1])

    def forward(self, x: Tensor) -> Tensor:
        N, S, C = x.shape
        q, k, v = self.qkv(x).reshape(N, S, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        bias = self.table[self.index.flatten()].reshape(S, S, self.heads).permute(2, 0, 1)
        scores = (q * self.scale) @ k.transpose(-2, -1) + bias
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(N, S, C))


class MoatBlock(nn.Module):
    def __init__(self, given: int, width: int, stride: int, window: int) -> None:
        super().__init__()
        self.mbconv = MBConv(given, width, stride, squeeze=False)
        self.norm = nn.LayerNorm(width)
        self.attn = WindowAttention(width, width // 32, window)
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        x = self.mbconv(x)
        B, C, H, W = x.shape
        w = self.window
        windows = x.view(B, C, H // w, w, W // w, w).permute(0, 2, 4, 3, 5, 1).reshape(-1, w * w, C)
        windows = self.attn(self.norm(windows))
        windows = windows.view(B, H // w, W // w, w, w, C).permute(0, 5, 1, 3, 2, 4)
        return x + windows.reshape(B, C, H, W)


class ThirdPartyMoat(nn.Module):
    """tiny-MOAT-1 (widths 40, 80, 160, 320; depths 2, 3, 7, 2) with local attention and a classifier."""

    def __init__(self, window: int = 8, classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Conv2d(3, 40, 3, 2, 1),
            nn.BatchNorm2d(40),
            nn.GELU(),
            nn.Conv2d(40, 40, 3, 1, 1),
        ]
        given = 40
        for stage, (width, depth) in enumerate(zip((40, 80, 160, 320), (2, 3, 7, 2), strict=True)):
            for block in range(depth):
                stride = 2 if block == 0 else 1
                if stage < 2:
                    layers.append(MBConv(given, width, stride, squeeze=True))
                else:
                    layers.append(MoatBlock(given, width, stride, window))
                given = width
        self.body = nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(320), nn.Linear(320, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x).mean((2, 3))))
