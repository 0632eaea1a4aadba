"""The parts of a Mobile-Former block: a MobileNet branch, a few global tokens, and the bridge between them.

Axes: B batch, C channels, H W rows and columns, S = H*W pixels, T tokens, D token width, h heads, c = C/h or D/h
channels of one head. The bridge is attention that spares the many pixels every projection: only the few tokens are
projected (arXiv 2108.05895, section 3).

Pixels stay on the last axis throughout, also where they ask: the Neural Engine pads the last axis to 64 bytes, so a
map of (pixels, 6 tokens) would be mostly padding, and no map of pixels is ever transposed. The tokens are brought to
the same form, (B, h, c, T), for every attention.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import math

import torch
import torch.nn.functional as F
from timm.layers import ConvNormAct, DropPath, Mlp
from torch import Tensor, nn

BRIDGE_HEADS = 2
FORMER_HEADS = 4


def split_heads(t_BTC: Tensor, heads: int) -> Tensor:
    """Tokens (B, T, C) as maps are: (B, h, c, T)."""
    return t_BTC.transpose(1, 2).unflatten(1, (heads, -1))


def join_heads(t_BhcT: Tensor) -> Tensor:
    """The inverse of split_heads."""
    return t_BhcT.flatten(1, 2).transpose(1, 2)


class DynamicReLU(nn.Module):
    """The larger of two lines through zero, whose slopes each channel gets from a token (arXiv 2003.10027, DY-ReLU-B).

    Slopes lie in 0..2 and -1..1, around the 1 and 0 of a plain ReLU; the intercepts of that paper are left out.
    """

    def __init__(self, channels: int, token_dim: int) -> None:
        super().__init__()
        self.slopes = Mlp(token_dim, token_dim // 4, 2 * channels, act_layer=nn.ReLU)

    def forward(self, x_BCHW: Tensor, token_BD: Tensor) -> Tensor:
        """Activations (B, C, H, W)."""
        # a vector until the last moment: as (B, C, 1, 1) the Neural Engine would pad each number to 64 bytes
        first_BC, second_BC = F.hardsigmoid(self.slopes(token_BD)).chunk(2, dim=1)
        return torch.maximum(x_BCHW * (2 * first_BC)[:, :, None, None], x_BCHW * (2 * second_BC - 1)[:, :, None, None])


class MobileToFormer(nn.Module):
    """Tokens look at the map: queries of the tokens, keys and values the pixels themselves (equation 1).

    What a token finds is scaled per channel by 0..2 from that token, as in the authors' release.
    """

    def __init__(self, channels: int, token_dim: int, drop_path: float) -> None:
        super().__init__()
        self.scale = (channels // BRIDGE_HEADS) ** -0.5
        self.query = nn.Linear(token_dim, channels)
        self.gate = nn.Linear(token_dim, channels)
        self.proj = nn.Linear(channels, token_dim)
        self.drop_path = DropPath(drop_path)
        self.norm = nn.LayerNorm(token_dim)

    def forward(self, x_BCHW: Tensor, t_BTD: Tensor) -> Tensor:
        """Tokens (B, T, D) that have seen the map."""
        pixels_BhcS = x_BCHW.flatten(2).unflatten(1, (BRIDGE_HEADS, -1))
        queries_BhcT = split_heads(self.query(t_BTD) * self.scale, BRIDGE_HEADS)
        attention_BhTS = (queries_BhcT.transpose(2, 3) @ pixels_BhcS).softmax(dim=-1)
        seen_BTC = join_heads(pixels_BhcS @ attention_BhTS.transpose(2, 3))
        seen_BTC = seen_BTC * (2 * F.hardsigmoid(self.gate(t_BTD)))
        return self.norm(t_BTD + self.drop_path(self.proj(seen_BTC)))


class Former(nn.Module):
    """A transformer block over the tokens, norms after the sums; keys and values are the tokens, not projected."""

    def __init__(self, token_dim: int, drop_path: float) -> None:
        super().__init__()
        self.scale = (token_dim // FORMER_HEADS) ** -0.5
        self.query = nn.Linear(token_dim, token_dim)
        self.proj = nn.Linear(token_dim, token_dim)
        self.norm1 = nn.LayerNorm(token_dim)
        self.mlp = Mlp(token_dim, 2 * token_dim)
        self.norm2 = nn.LayerNorm(token_dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, t_BTD: Tensor) -> Tensor:
        """Tokens (B, T, D)."""
        keys_BhcT = split_heads(t_BTD, FORMER_HEADS)
        queries_BhcT = split_heads(self.query(t_BTD) * self.scale, FORMER_HEADS)
        attention_BhTT = (queries_BhcT.transpose(2, 3) @ keys_BhcT).softmax(dim=-1)
        mixed_BTD = join_heads(keys_BhcT @ attention_BhTT.transpose(2, 3))
        t_BTD = self.norm1(t_BTD + self.drop_path(self.proj(mixed_BTD)))
        return self.norm2(t_BTD + self.mlp(t_BTD))


class FormerToMobile(nn.Module):
    """Pixels look at the tokens: queries the pixels themselves, keys and values of the tokens (equation 2)."""

    def __init__(self, channels: int, token_dim: int, drop_path: float) -> None:
        super().__init__()
        self.scale = (channels // BRIDGE_HEADS) ** -0.5
        self.key = nn.Linear(token_dim, channels)  # its bias cannot matter to the softmax; the authors have one
        self.value = nn.Linear(token_dim, channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor, t_BTD: Tensor) -> Tensor:
        """The map (B, C, H, W) plus what each pixel finds in the tokens."""
        pixels_BhcS = x_BCHW.flatten(2).unflatten(1, (BRIDGE_HEADS, -1))
        keys_BhcT = split_heads(self.key(t_BTD) * self.scale, BRIDGE_HEADS)
        values_BhcT = split_heads(self.value(t_BTD), BRIDGE_HEADS)
        attention_BhTS = (keys_BhcT.transpose(2, 3) @ pixels_BhcS).softmax(dim=2)  # over the tokens
        found_BCHW = (values_BhcT @ attention_BhTS).reshape(x_BCHW.shape)
        return x_BCHW + self.drop_path(found_BCHW)


class ChannelShuffle(nn.Module):
    """Deal the channels of `groups` groups out in turn, so that grouped convolutions mix them (arXiv 1707.01083)."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The same channels in another order."""
        return x_BCHW.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)


def shuffle(groups: int, *, where: bool) -> nn.Module:
    """Return a ChannelShuffle where one is wanted, otherwise nothing."""
    return ChannelShuffle(groups) if where else nn.Identity()


class LiteBottleneck(nn.Sequential):
    """A depthwise convolution that multiplies the channels, and a pointwise one (Table 1, bneck-lite)."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int, groups: int) -> None:
        super().__init__(
            ConvNormAct(inputs, inputs * expansion, 3, stride, groups=inputs, act_layer=nn.ReLU6),
            shuffle(inputs, where=groups > 1),
            ConvNormAct(inputs * expansion, outputs, groups=groups, apply_act=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The map (B, C', H', W')."""
        y_BCHW = super().forward(x_BCHW)
        return x_BCHW + y_BCHW if self.residual else y_BCHW


class Bottleneck(nn.Module):
    """MobileNetV2's inverted bottleneck with dynamic ReLUs: pointwise, depthwise, pointwise (section 3)."""

    def __init__(
        self, inputs: int, outputs: int, expansion: int, token_dim: int, groups: int, drop_path: float
    ) -> None:
        super().__init__()
        hidden = inputs * expansion
        self.expand = ConvNormAct(inputs, hidden, groups=groups, apply_act=False)
        self.shuffle1 = shuffle(groups, where=groups > 1)
        self.act1 = DynamicReLU(hidden, token_dim)
        self.depthwise = ConvNormAct(hidden, hidden, 3, groups=hidden, apply_act=False)
        self.act2 = DynamicReLU(hidden, token_dim)
        self.project = ConvNormAct(hidden, outputs, groups=groups, apply_act=False)
        self.shuffle2 = shuffle(groups, where=groups > 1)
        self.drop_path = DropPath(drop_path)
        self.residual = inputs == outputs

    def forward(self, x_BCHW: Tensor, token_BD: Tensor) -> Tensor:
        """The map (B, C', H, W)."""
        y_BCHW = self.act1(self.shuffle1(self.expand(x_BCHW)), token_BD)
        y_BCHW = self.act2(self.depthwise(y_BCHW), token_BD)
        y_BCHW = self.shuffle2(self.project(y_BCHW))
        return x_BCHW + self.drop_path(y_BCHW) if self.residual else y_BCHW


class Downsample(nn.Module):
    """Depthwise (stride 2), pointwise, then depthwise, pointwise around a shortcut (section 3).

    The first depthwise convolution multiplies the channels by `expansion`, the second by 4.
    """

    def __init__(
        self, inputs: int, outputs: int, expansion: int, token_dim: int, groups: int, drop_path: float
    ) -> None:
        super().__init__()
        first, second = inputs * expansion, outputs * 4
        self.depthwise1 = ConvNormAct(inputs, first, 3, stride=2, groups=inputs, apply_act=False)
        self.shuffle1 = shuffle(inputs, where=groups > 1)
        self.act1 = DynamicReLU(first, token_dim)
        self.project1 = ConvNormAct(first, outputs, groups=groups, apply_act=False)
        self.depthwise2 = ConvNormAct(outputs, second, 3, groups=outputs, apply_act=False)
        self.shuffle2 = shuffle(outputs, where=groups > 1)
        self.act2 = DynamicReLU(second, token_dim)
        self.project2 = ConvNormAct(second, outputs, groups=groups, apply_act=False)
        self.drop_path = DropPath(drop_path)

    def forward(self, x_BCHW: Tensor, token_BD: Tensor) -> Tensor:
        """The map (B, C', H/2, W/2)."""
        x_BCHW = self.project1(self.act1(self.shuffle1(self.depthwise1(x_BCHW)), token_BD))
        y_BCHW = self.project2(self.act2(self.shuffle2(self.depthwise2(x_BCHW)), token_BD))
        return x_BCHW + self.drop_path(y_BCHW)


class MobileFormerBlock(nn.Module):
    """Mobile -> Former, Former, Mobile, Former -> Mobile (Figure 3); `down` halves the map."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        expansion: int,
        *,
        down: bool,
        token_dim: int,
        groups: int,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.mobile_to_former = MobileToFormer(inputs, token_dim, drop_path)
        self.former = Former(token_dim, drop_path)
        mobile = Downsample if down else Bottleneck
        self.mobile = mobile(inputs, outputs, expansion, token_dim, groups, drop_path)
        self.former_to_mobile = FormerToMobile(outputs, token_dim, drop_path)

    def forward(self, x_BCHW: Tensor, t_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, C', H', W') and the tokens (B, T, D); the first token steers the dynamic ReLUs."""
        t_BTD = self.former(self.mobile_to_former(x_BCHW, t_BTD))
        x_BCHW = self.mobile(x_BCHW, t_BTD[:, 0])
        return self.former_to_mobile(x_BCHW, t_BTD), t_BTD


class MobileFormerHead(nn.Module):
    """A last look of the tokens at the map, then pooled channels and the first token through two layers (Table 1)."""

    def __init__(
        self,
        channels: int,
        hidden: int,
        num_classes: int,
        *,
        token_dim: int,
        groups: int,
        drop_rate: float,
        drop_path: float,
    ) -> None:
        super().__init__()
        self.bridge = MobileToFormer(channels, token_dim, drop_path)
        self.shuffle = shuffle(groups, where=groups > 1)
        self.conv = ConvNormAct(channels, 6 * channels, groups=groups, act_layer=nn.ReLU6)
        self.hidden = nn.Linear(6 * channels + token_dim, hidden)
        self.norm = nn.BatchNorm1d(hidden)
        self.drop = nn.Dropout(drop_rate)
        self.fc = nn.Linear(hidden, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x_BCHW: Tensor, t_BTD: Tensor, *, pre_logits: bool = False) -> Tensor:
        """Logits (B, classes), or what the last layer sees (B, hidden)."""
        token_BD = self.bridge(x_BCHW, t_BTD)[:, 0]
        pooled_BC = F.hardswish(self.conv(self.shuffle(x_BCHW)).mean((2, 3)))
        y_BC = self.drop(F.hardswish(self.norm(self.hidden(torch.cat([pooled_BC, token_BD], dim=1)))))
        return y_BC if pre_logits else self.fc(y_BC)


def init_weights(module: nn.Module) -> None:
    """Draw the weights of one convolution or linear layer as the authors do, in place."""
    if isinstance(module, nn.Conv2d):
        # not divided by the groups: the norm after each convolution takes the scale out
        outgoing = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
        nn.init.normal_(module.weight, std=math.sqrt(2 / outgoing))
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)
