"""MixFormer by the plain formulas of the paper, over a dictionary of weights: what the model is held against.

Windows are cut in the obvious 6-D form and attended one at a time, head by head; the gate scales the values, as the
paper says. Shares nothing with the model but the names of its weights.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class Reference:
    """weights: a state dict. depths, heads: per stage. window: of the attention."""

    def __init__(
        self, weights: dict[str, Tensor], depths: tuple[int, ...], heads: tuple[int, ...], window: tuple[int, int]
    ) -> None:
        self.weights, self.depths, self.heads, self.window = weights, depths, heads, window

    def features(self, x: Tensor) -> list[Tensor]:
        """Outputs of the stages (B, H, W, C) for images (B, 3, H, W)."""
        x = _grown(x, 4, 4, axes=(2, 3))
        for name, stride in (("stem.conv1", 2), ("stem.conv2", 1), ("stem.conv3", 1)):
            x = _gelu(self._batch_norm(f"{name}.bn", self._conv(f"{name}.conv", x, stride=stride, padding=1)))
        x = self._layer_norm("stem.norm", self._conv("stem.proj", x, stride=2).permute(0, 2, 3, 1))
        found = []
        for stage, (depth, heads) in enumerate(zip(self.depths, self.heads, strict=True)):
            if stage:
                name = f"stages.{stage}.downsample"
                x = _grown(self._batch_norm(f"{name}.norm", x.permute(0, 3, 1, 2)), 2, 2, axes=(2, 3))
                x = self._conv(f"{name}.conv", x, stride=2).permute(0, 2, 3, 1)
            for block in range(depth):
                x = self.block(f"stages.{stage}.blocks.{block}", x, heads)
            found.append(x)
        return found

    def logits(self, x: Tensor) -> Tensor:
        """The last stage's tokens widened one by one, their average classified."""
        x = _gelu(self._linear("widen.0", self._layer_norm("norm", self.features(x)[-1])))
        return self._linear("head.fc", x.flatten(1, 2).mean(1))

    def block(self, name: str, x: Tensor, heads: int) -> Tensor:
        """x (B, H, W, C) with two shortcuts."""
        x = x + self.mix(f"{name}.attn", self._layer_norm(f"{name}.norm1", x), heads)
        y = self._layer_norm(f"{name}.norm2", x)
        return x + self._linear(f"{name}.mlp.fc2", _gelu(self._linear(f"{name}.mlp.fc1", y)))

    def mix(self, name: str, x: Tensor, heads: int) -> Tensor:
        """Both branches, over a map grown with zeros to whole windows and cut again."""
        height, width = x.shape[1:3]
        x = _grown(x, *self.window, axes=(1, 2))
        conv = self._layer_norm(f"{name}.conv_in.1", self._linear(f"{name}.conv_in.0", x)).permute(0, 3, 1, 2)
        conv = self._conv(f"{name}.conv.conv", conv, padding=1, groups=conv.shape[1])
        conv = _gelu(self._batch_norm(f"{name}.conv.bn", conv))
        channels = self._gate(f"{name}.channel_gate", conv.flatten(2).mean(2)[:, :, None, None])[:, :, 0, 0]
        tokens = self._layer_norm(f"{name}.attention_in.1", self._linear(f"{name}.attention_in.0", x))
        attended = self._windows(f"{name}.attention", tokens, channels, heads)
        places = self._gate(f"{name}.spatial_gate", attended.permute(0, 3, 1, 2))
        conv = self._batch_norm(f"{name}.conv_norm", places * self._conv(f"{name}.conv_half", conv))
        both = [self._layer_norm(f"{name}.attention_norm", attended), conv.permute(0, 2, 3, 1)]
        return self._linear(f"{name}.proj", torch.cat(both, dim=-1))[:, :height, :width]

    def _windows(self, name: str, x: Tensor, channels: Tensor, heads: int) -> Tensor:
        B, H, W, C = x.shape
        h, w = self.window
        windows = x.reshape(B, H // h, h, W // w, w, C).permute(0, 1, 3, 2, 4, 5)
        out = torch.empty_like(windows)
        for image in range(B):
            for row in range(H // h):
                for column in range(W // w):
                    tokens = windows[image, row, column].reshape(h * w, C)
                    out[image, row, column] = self._attend(name, tokens, channels[image], heads).reshape(h, w, C)
        return out.permute(0, 1, 3, 2, 4, 5).reshape(B, H, W, C)

    def _attend(self, name: str, x: Tensor, channels: Tensor, heads: int) -> Tensor:
        """One window of one image: x (S, C), channels (C)."""
        h, w = self.window
        size = x.shape[1] // heads
        q, k, v = self._linear(f"{name}.qkv", x).split(x.shape[1], dim=1)
        v = v * channels
        y, column = torch.arange(h).repeat_interleave(w), torch.arange(w).repeat(h)
        below, right = y[None, :] - y[:, None] + h - 1, column[None, :] - column[:, None] + w - 1
        out = []
        for head in range(heads):
            part = slice(head * size, (head + 1) * size)
            scores = q[:, part] @ k[:, part].T / math.sqrt(size)
            scores = scores + self.weights[f"{name}.relative.table"][head][below, right]
            out.append(torch.softmax(scores, dim=1) @ v[:, part])
        return torch.cat(out, dim=1)

    def _gate(self, name: str, x: Tensor) -> Tensor:
        x = _gelu(self._batch_norm(f"{name}.0.bn", self._conv(f"{name}.0.conv", x)))
        return 1 / (1 + torch.exp(-self._conv(f"{name}.1", x)))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _conv(self, name: str, x: Tensor, *, stride: int = 1, padding: int = 0, groups: int = 1) -> Tensor:
        weight, bias = self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
        return F.conv2d(x, weight, bias, stride=stride, padding=padding, groups=groups)

    def _layer_norm(self, name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _batch_norm(self, name: str, x: Tensor) -> Tensor:
        parts = ("running_mean", "running_var", "weight", "bias")
        mean, variance, scale, shift = (self.weights[f"{name}.{part}"][:, None, None] for part in parts)
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift


def _gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def _grown(x: Tensor, rows: int, columns: int, *, axes: tuple[int, int]) -> Tensor:
    """A copy with zeros below and to the right, until the two axes are multiples of rows and columns."""
    sides = list(x.shape)
    for axis, multiple in zip(axes, (rows, columns), strict=True):
        sides[axis] = math.ceil(sides[axis] / multiple) * multiple
    out = x.new_zeros(sides)
    out[tuple(slice(side) for side in x.shape)] = x
    return out
