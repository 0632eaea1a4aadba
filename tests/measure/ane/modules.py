"""Models of a few lines, each with one thing that the Neural Engine would mind, and one that has none."""

from __future__ import annotations

import torch
from torch import nn

from pocketvit.measure.ane.audit import Audit, audit
from pocketvit.measure.ane.torch_graph import torch_records


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


def export(module, shape):
    if not isinstance(module, nn.Module):
        module = Function(module)
    with torch.no_grad():
        return torch.export.export(module.eval(), (torch.zeros(shape),))


def records(module, shape):
    return torch_records(export(module, shape))


def audited(module, shape) -> Audit:
    return audit(records(module, shape))


def nchw_windows(w):
    """Six axes, channels first: as a CNN writes it."""

    def windows(x):
        b, c, height, width = x.shape
        x = x.reshape(b, c, height // w, w, width // w, w)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, w, w)

    return windows


def nhwc_windows(w):
    """Six axes, channels last: as Swin writes it."""

    def windows(x):
        b, height, width, c = x.shape
        x = x.reshape(b, height // w, w, width // w, w, c)
        return x.permute(0, 1, 3, 2, 4, 5).reshape(-1, w, w, c)

    return windows


def relay_windows(w):
    """Height first, then width: five axes at most."""

    def windows(x):
        b, height, width, c = x.shape
        x = x.reshape(b * height // w, w, width // w, w, c)
        return x.permute(0, 2, 1, 3, 4).reshape(-1, w, w, c)

    return windows


class Norm1d(nn.Module):
    """A linear layer whose batch norm sees a matrix, as in LeViT."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 64)
        self.bn = nn.BatchNorm1d(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        return self.bn(y.flatten(0, 1)).reshape_as(y)


class Attention(nn.Module):
    """Attention over 256 tokens; heads in one softmax, or one softmax each."""

    def __init__(self, heads: int = 4, split: bool = False) -> None:
        super().__init__()
        self.heads, self.split = heads, split
        self.qkv = nn.Linear(128, 3 * 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if not self.split:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        heads = [(q[:, i] @ k[:, i].transpose(-2, -1)).softmax(-1) @ v[:, i] for i in range(self.heads)]
        return torch.cat(heads, dim=-1)


class Mlp(nn.Module):
    """Layers of a width, then a classifier of 10."""

    def __init__(self, width: int, conv: bool = False) -> None:
        super().__init__()
        layer = (lambda a, b: nn.Conv2d(a, b, 1)) if conv else nn.Linear
        self.first, self.last = layer(64, width), layer(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x))
