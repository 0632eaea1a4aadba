"""The two blocks of MOAT: mobile convolution, and mobile convolution with attention (arXiv 2210.01820, Figure 1).

Axes: B images, C channels, H height, W width, N windows of all images, h, w their sides, S tokens of a window.
Convolutions run channels first, windows and attention channels last: the Neural Engine pads the last axis to 64 bytes,
which a width of 7 would waste.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from functools import partial

from timm.layers import DropPath, SqueezeExcite, create_conv2d
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import Attention, Position, pad_to_windows, window_partition, window_reverse

HEAD_DIM = 32
EXPANSION = 4
LAYER_NORM_EPS = 1e-5
BATCH_NORM = partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01)  # Keras's defaults, which the weights were trained with

TABLED = (Position.RELATIVE, Position.SINGLE_HEAD)

Size = tuple[int, int]


class MobileConvolution(nn.Module):
    """Inverted bottleneck with the norm first: expand, depthwise 3x3, shrink, on a pooled shortcut (section 3.1)."""

    def __init__(
        self, in_chs: int, out_chs: int, *, stride: int, pool_size: int, squeeze_excite: bool, drop_path: float
    ) -> None:
        super().__init__()
        inner = EXPANSION * out_chs
        self.stride = stride
        self.pool_size = pool_size
        self.shortcut = nn.Conv2d(in_chs, out_chs, 1) if in_chs != out_chs else nn.Identity()
        self.pre_norm = BATCH_NORM(in_chs)
        self.expand = nn.Conv2d(in_chs, inner, 1, bias=False)
        self.expand_norm = BATCH_NORM(inner)
        # "same" is TensorFlow's: of an even size, a stride of two pads the bottom and the right only
        self.depthwise = create_conv2d(inner, inner, 3, stride=stride, padding="same", depthwise=True)
        self.depthwise_norm = BATCH_NORM(inner)
        self.se = (
            SqueezeExcite(inner, rd_channels=max(1, out_chs // 4), act_layer=nn.SiLU)
            if squeeze_excite
            else nn.Identity()
        )
        self.shrink = nn.Conv2d(inner, out_chs, 1)
        self.act = nn.GELU()
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride))."""
        shortcut = self.shortcut(same_avg_pool(x_BCHW, self.pool_size) if self.stride == 2 else x_BCHW)
        x_BCHW = self.act(self.expand_norm(self.expand(self.pre_norm(x_BCHW))))
        x_BCHW = self.act(self.depthwise_norm(self.depthwise(x_BCHW)))
        return shortcut + self.drop_path(self.shrink(self.se(x_BCHW)))


def same_avg_pool(x_BCHW: Tensor, size: int) -> Tensor:
    """Average pooling with stride 2 and TensorFlow's "SAME" padding, whose padding does not count in the mean."""
    height, width = x_BCHW.shape[-2:]
    # an even size is padded by size - 2 at its end, an odd one by one more: at the end for 2, at both ends for 3
    start = (height % 2, width % 2) if size == 3 else (0, 0)
    ceil = size == 3 or height % 2 == 1 or width % 2 == 1
    return F.avg_pool2d(x_BCHW, size, 2, padding=start, ceil_mode=ceil, count_include_pad=False)


class MoatBlock(nn.Module):
    """Mobile convolution without squeeze-and-excitation, then attention in place of an MLP (section 3.1)."""

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        *,
        stride: int,
        pool_size: int,
        drop_path: float,
        grid: Size,
        window: Size | None,
        table_size: int,
        position: Position,
        split_heads: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.mbconv = MobileConvolution(
            in_chs, out_chs, stride=stride, pool_size=pool_size, squeeze_excite=False, drop_path=drop_path
        )
        self.norm = nn.LayerNorm(out_chs, eps=LAYER_NORM_EPS)
        self.attn = Attention(
            out_chs,
            out_chs // HEAD_DIM,
            window=window or grid,
            position=position,
            position_base=(table_size, table_size) if position in TABLED else None,
            split_heads=split_heads,
        )
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, in_chs, H, W) to (B, out_chs, ceil(H / stride), ceil(W / stride))."""
        x_BCHW = self.mbconv(x_BCHW)
        return x_BCHW + self.drop_path(self._attend(self.norm(x_BCHW.permute(0, 2, 3, 1))).permute(0, 3, 1, 2))

    def _attend(self, x_BHWC: Tensor) -> Tensor:
        B, H, W, C = x_BHWC.shape
        if self.window is None:
            return self.attn(x_BHWC.reshape(B, H * W, C), window=(H, W)).reshape(B, H, W, C)
        padded_BHWC, bias = pad_to_windows(x_BHWC, self.window)
        windows_NhwC = window_partition(padded_BHWC, self.window)
        tokens_NSC = self.attn(windows_NhwC.flatten(1, 2), bias=bias)
        size = (padded_BHWC.shape[1], padded_BHWC.shape[2])
        return window_reverse(tokens_NSC.reshape(windows_NhwC.shape), self.window, size)[:, :H, :W]
