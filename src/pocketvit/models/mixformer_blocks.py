"""The mixing block of MixFormer: window attention beside depthwise convolution (arXiv 2204.02557, section 3).

The structure and the norms are those of the authors' release (PaddleClas, model_zoo/mixformer.py).

Axes: B images, H and W rows and columns, C channels, D half of the channels, N windows of all images, h and w rows
and columns of a window, S tokens of a window.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import torch
from timm.layers import ConvNormAct, DropPath, Mlp
from torch import Tensor, nn

from ..errors import BadInput
from ..layers import Attention, Position, pad_to_windows, window_partition, window_reverse


def to_channels_first(x_BHWC: Tensor) -> Tensor:
    """(B, H, W, C) to (B, C, H, W), for the convolutions."""
    return x_BHWC.permute(0, 3, 1, 2)


def to_channels_last(x_BCHW: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H, W, C), for the linear layers and norms."""
    return x_BCHW.permute(0, 2, 3, 1)


def _normed_linear(width_in: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, width_out), nn.LayerNorm(width_out))


def _gate(width_in: int, width_hidden: int, width_out: int) -> nn.Sequential:
    """An interaction: two 1x1 convolutions and a sigmoid, the values the other branch is scaled by."""
    return nn.Sequential(
        ConvNormAct(width_in, width_hidden, 1, bias=True, act_layer=nn.GELU),
        nn.Conv2d(width_hidden, width_out, 1),
        nn.Sigmoid(),
    )


class MixingAttention(nn.Module):
    """Both branches and what they tell each other; the sides of x (B, H, W, C) are multiples of the window.

    Channel interaction: the convolved map, averaged over the image, gates the channels of the attention's values.
    Spatial interaction: the attention's output gates the positions of the convolved map.
    """

    def __init__(self, dim: int, heads: int, window: tuple[int, int]) -> None:
        super().__init__()
        if dim % (2 * heads) or dim < 16:
            raise BadInput(
                f"A mixing block {dim} wide cannot give half of its channels to {heads} attention heads; "
                f"choose a width that is a multiple of {2 * heads} and at least 16."
            )
        half = dim // 2
        self.attention_in = _normed_linear(dim, half)
        self.conv_in = _normed_linear(dim, dim)
        self.window = window
        self.attention = Attention(half, heads, window=window, position=Position.RELATIVE, qkv="fused")
        self.attention.set_submodule("proj", nn.Identity())  # one projection follows both branches
        self.conv = ConvNormAct(dim, dim, 3, groups=dim, bias=True, act_layer=nn.GELU)
        self.channel_gate = _gate(dim, dim // 8, half)
        self.spatial_gate = _gate(half, half // 8, 1)
        self.conv_half = nn.Conv2d(dim, half, 1)
        self.conv_norm = nn.BatchNorm2d(half)
        self.attention_norm = nn.LayerNorm(half)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        conv_BCHW = self.conv(to_channels_first(self.conv_in(x_BHWC)))
        channel_gate_BD11 = self.channel_gate(conv_BCHW.mean(dim=(2, 3), keepdim=True))
        # The paper scales the values. All tokens of an image share the factor of a channel, so it comes out of their
        # weighted sum, and here it needs no axis for windows or heads.
        attended_BHWD = self._attend(self.attention_in(x_BHWC)) * to_channels_last(channel_gate_BD11)
        spatial_gate_B1HW = self.spatial_gate(to_channels_first(attended_BHWD))
        conv_BDHW = self.conv_norm(spatial_gate_B1HW * self.conv_half(conv_BCHW))
        both_BHWC = torch.cat([self.attention_norm(attended_BHWD), to_channels_last(conv_BDHW)], dim=-1)
        return self.proj(both_BHWC)

    def _attend(self, x_BHWD: Tensor) -> Tensor:
        _, H, W, D = x_BHWD.shape
        rows, columns = self.window
        x_NSD = window_partition(x_BHWD, self.window).reshape(-1, rows * columns, D)
        x_NhwD = self.attention(x_NSD).reshape(-1, rows, columns, D)
        return window_reverse(x_NhwD, self.window, (H, W))


class MixingBlock(nn.Module):
    """Mixing attention, then a feed-forward network, each behind a norm and with a shortcut."""

    def __init__(self, dim: int, heads: int, window: tuple[int, int], drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(dim)
        self.attn = MixingAttention(dim, heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape, of any size.

        Where the window does not divide the map, zeros are added below and to the right, and cut off again. As in the
        authors' code they come after the first norm and take full part: the linear layers give them their biases, the
        attention does not mask them, and the convolution, its average and the batch norms see them. At 224 pixels and
        window 7 nothing is padded.
        """
        _, H, W, _ = x_BHWC.shape
        padded_BHWC, _ = pad_to_windows(self.norm1(x_BHWC), self.window)
        mixed_BHWC = self.attn(padded_BHWC)[:, :H, :W]
        x_BHWC = x_BHWC + self.drop_path(mixed_BHWC)
        return x_BHWC + self.drop_path(self.mlp(self.norm2(x_BHWC)))
