"""Multi-head self-attention over tokens, in the forms that accelerators like.

B batch (or windows of all images), S tokens, C channels, n heads of d channels each.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput
from .positions import AbsolutePosition, LocallyEnhancedPosition, Position, RelativePositionBias

_Kind = TypeVar("_Kind", bound=StrEnum)
_RELATIVE = (Position.RELATIVE, Position.SINGLE_HEAD)
_LEPE = (Position.LEPE, Position.LEPE_FUSED)


class Projection(StrEnum):
    """How queries, keys and values are made; both compute the same."""

    SEPARATE = "separate"  # three layers: each output is a third as wide, which an accelerator's cache holds better
    FUSED = "fused"  # one layer, cut in three: timm's form


class Attention(nn.Module):
    """softmax(q k^T / sqrt(d) + position) v over (B, S, C), channels last (arXiv 1706.03762, section 3.2).

    window: (h, w) with S = h w, tokens row by row; every position but NONE needs it. position_base: window of a
    relative table, where not `window` (see RelativePositionBias). head_dim: d, else dim / heads. split_heads: one
    softmax per head over (B, S, S) in place of one over (B, n, S, S), as Apple's code has it for less latency on the
    Neural Engine. attn_drop, proj_drop: dropout of the attention weights and of the output. Layers are called q, k, v
    (or qkv) and proj.
    Raises BadInput for heads, a position or a window that do not go together.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        window: tuple[int, int] | None = None,
        position: Position | str = Position.NONE,
        position_base: tuple[int, int] | None = None,
        head_dim: int | None = None,
        qkv: Projection | str = Projection.SEPARATE,
        qkv_bias: bool = True,
        split_heads: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        if heads < 1 or (dim % heads if head_dim is None else head_dim < 1):
            of = "" if head_dim is None else f" of {head_dim}"
            raise BadInput(f"{dim} channels do not make {heads} heads{of}; give a divisor, or the size as head_dim.")
        self.position = _member(Position, position)
        if self.position is not Position.NONE and window is None:
            raise BadInput(f"The position '{self.position}' needs the window (h, w) its tokens fill.")
        if position_base is not None and self.position not in _RELATIVE:
            raise BadInput(f"The position '{self.position}' has no table to resize from {position_base}.")
        self.heads = heads
        self.head_dim = dim // heads if head_dim is None else head_dim
        self.scale = self.head_dim**-0.5
        self.window = window
        self.split_heads = split_heads
        inner = heads * self.head_dim
        self.qkv: nn.Linear | None = None
        if _member(Projection, qkv) is Projection.FUSED:
            self.qkv = nn.Linear(dim, 3 * inner, bias=qkv_bias)
        else:
            self.q, self.k, self.v = (nn.Linear(dim, inner, bias=qkv_bias) for _ in range(3))
        self.proj = nn.Linear(inner, dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj_drop = nn.Dropout(proj_drop)
        self.absolute: AbsolutePosition | None = None
        self.relative: RelativePositionBias | None = None
        self.lepe: LocallyEnhancedPosition | None = None
        if window is not None:
            if self.position is Position.ABSOLUTE:
                self.absolute = AbsolutePosition(window[0] * window[1], dim)
            elif self.position in _RELATIVE:
                single = self.position is Position.SINGLE_HEAD
                self.relative = RelativePositionBias(window, heads, single_head=single, base=position_base)
            elif self.position in _LEPE:
                self.lepe = LocallyEnhancedPosition(inner if self.position is Position.LEPE else dim)

    def forward(self, x_BSC: Tensor, bias: Tensor | None = None, window: tuple[int, int] | None = None) -> Tensor:
        """(B, S, C) to the same shape. bias: of pad_to_windows, (windows per image, 1, S), for windows in its order.

        window: what the tokens fill, where that is another window than the module was made for; a relative table is
        resized to it. Raises BadInput for tokens that do not fill it, or windows that are not of whole images.
        """
        window = window or self.window
        _check(x_BSC, bias, window)
        x = x_BSC if self.absolute is None else self.absolute(x_BSC)
        if self.position is Position.LEPE_FUSED:
            x = x + self._locally(x, bias, window)
        q, k, v = (self.q(x), self.k(x), self.v(x)) if self.qkv is None else self.qkv(x).chunk(3, dim=-1)
        attend = self._head_by_head if self.split_heads else self._all_heads
        # Scaled before the product: scores that fp16 cannot hold never arise.
        out = attend(q * self.scale, k, v, bias, None if self.relative is None else self.relative(window))
        if self.position is Position.LEPE:
            out = out + self._locally(v, bias, window)
        return self.proj_drop(self.proj(out))

    def _all_heads(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, relative: Tensor | None) -> Tensor:
        B, S, _ = q.shape
        q, k, v = (t.reshape(B, S, self.heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        mask = None if relative is None else relative[None]
        if bias is not None:
            padding = _for_all_images(bias, B)[:, None]
            mask = padding if mask is None else mask + padding
        dropout = self.attn_drop.p if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=1.0)
        return out.transpose(1, 2).reshape(B, S, -1)

    def _head_by_head(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, relative: Tensor | None) -> Tensor:
        tables = () if relative is None else relative.unbind()  # one for each head, or one for all
        padding = None if bias is None else _for_all_images(bias, q.shape[0])
        outs = []
        for head, (qd, kd, vd) in enumerate(zip(*(t.split(self.head_dim, dim=-1) for t in (q, k, v)), strict=True)):
            scores = qd @ kd.transpose(1, 2)
            if tables:
                scores = scores + tables[head % len(tables)]
            if padding is not None:
                scores = scores + padding
            outs.append(self.attn_drop(scores.softmax(dim=-1)) @ vd)
        return torch.cat(outs, dim=-1)

    def _locally(self, x_BSC: Tensor, bias: Tensor | None, window: tuple[int, int] | None) -> Tensor:
        """The depthwise convolution over each window, in which padding counts as zero, as it does outside."""
        assert window is not None  # __init__ asked for it
        assert self.lepe is not None
        B, _, C = x_BSC.shape
        if bias is not None:
            x_BSC = x_BSC * _for_all_images((bias == 0).to(x_BSC.dtype), B).transpose(1, 2)
        x_BChw = x_BSC.transpose(1, 2).reshape(B, C, *window)
        return self.lepe(x_BChw).flatten(2).transpose(1, 2)


def separate_qkv(qkv: nn.Linear) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """Cut a fused layer, queries before keys before values as in timm, into three with copies of its weights."""
    if qkv.out_features % 3:
        raise BadInput(f"A fused layer's outputs are queries, keys and values; {qkv.out_features} is not 3 times any.")
    width = qkv.out_features // 3
    layers = []
    for part in range(3):
        layer = nn.Linear(qkv.in_features, width, bias=qkv.bias is not None).to(qkv.weight)
        layer.load_state_dict({n: t[part * width : (part + 1) * width] for n, t in qkv.state_dict().items()})
        layers.append(layer)
    q, k, v = layers
    return q, k, v


def _for_all_images(bias: Tensor, windows: int) -> Tensor:
    """Repeat what belongs to the windows of one image for each image of the batch; alone, it stays a constant."""
    images = windows // bias.shape[0]
    return bias if images == 1 else bias.repeat(images, 1, 1)


def _member(kinds: type[_Kind], name: _Kind | str) -> _Kind:
    try:
        return kinds(name)
    except ValueError:
        raise BadInput(
            f"There is no {kinds.__name__.lower()} called '{name}'; there are {', '.join(kinds)}."
        ) from None


def _check(x_BSC: Tensor, bias: Tensor | None, window: tuple[int, int] | None) -> None:
    B, S, _ = x_BSC.shape
    if window is not None and window[0] * window[1] != S:
        raise BadInput(
            f"{S} tokens do not fill a window of {window[0]}x{window[1]}; cut the map with window_partition first."
        )
    if bias is not None and (B % bias.shape[0] or bias.shape[1:] != (1, S)):
        raise BadInput(
            f"A bias of shape {tuple(bias.shape)} does not fit {B} windows of {S} tokens; use the one that "
            "pad_to_windows gave for this map."
        )
