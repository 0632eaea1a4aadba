"""Position embeddings for attention over a window: what a token knows of where it is.

B batch, S = h w tokens of a window, row by row, C channels, H and W a map.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BadInput
from .folding import Foldable
from .windows import checked


class Position(StrEnum):
    """How attention learns where its tokens are."""

    NONE = "none"
    ABSOLUTE = "absolute"  # a table (1, S, C) added to the input
    RELATIVE = "relative"  # a table per head, indexed by the distance from query to key, added to the scores
    SINGLE_HEAD = "relative_single_head"  # the same with one table for all heads: 1 / heads of the size
    LEPE = "lepe"  # a depthwise convolution of the values, added to what attention gives
    LEPE_FUSED = "lepe_fused"  # a depthwise convolution of the input, added to it before the projections


class RelativePositionBias(Foldable):
    """Bias of each query-key pair by their distance (Swin, arXiv 2103.14030, section 3.2; MOAT, arXiv 2210.01820).

    The table is (heads, 2 base_h - 1, 2 base_w - 1), with 1 for heads in `single_head`. base: window the table is
    for, where that is not `window`: the table is resized bilinearly, half-pixel centres, on its way.
    """

    folded: Tensor | None
    distance_y: Tensor
    distance_x: Tensor
    resize_y: Tensor | None
    resize_x: Tensor | None

    def __init__(
        self,
        window: tuple[int, int],
        heads: int,
        *,
        single_head: bool = False,
        base: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.window = checked(window)
        sides = [2 * side - 1 for side in checked(base or window)]
        self.table = nn.Parameter(torch.empty(1 if single_head else heads, *sides))
        nn.init.trunc_normal_(self.table, std=0.02)
        self.register_buffer("folded", None)
        for axis, side, stored in zip("yx", window, sides, strict=True):
            self.register_buffer(f"distance_{axis}", _distances(side), persistent=False)
            self.register_buffer(f"resize_{axis}", _linear_resize(stored, 2 * side - 1), persistent=False)

    def forward(self, window: tuple[int, int] | None = None) -> Tensor:
        """(heads or 1, S, S): entry [n, i, j] is table[n, y_j - y_i + h - 1, x_j - x_i + w - 1].

        window: another than the module was made for, which the table is resized to at each call. Raises BadInput for
        one once the bias is folded.
        """
        if window is None or window == self.window:
            if self.folded is not None:
                return self.folded
            return self._bias(self.window, self.distance_y, self.distance_x, self.resize_y, self.resize_x)
        if self.folded is not None:
            raise BadInput(f"This position bias was folded for windows of {self.window}; {window} comes too late.")
        (h, w), (_, rows, columns) = window, self.table.shape
        distances = [_distances(side).to(self.table.device) for side in window]
        resizes = [_linear_resize(rows, 2 * h - 1), _linear_resize(columns, 2 * w - 1)]
        return self._bias(window, *distances, *(r if r is None else r.to(self.table) for r in resizes))

    def _bias(
        self,
        window: tuple[int, int],
        distance_y: Tensor,
        distance_x: Tensor,
        resize_y: Tensor | None,
        resize_x: Tensor | None,
    ) -> Tensor:
        h, w = window
        table: Tensor = self.table
        # Two products with constants, and no resize operation: with the table constant too, all of this folds away.
        if resize_y is not None:
            table = resize_y @ table
        if resize_x is not None:
            table = table @ resize_x.T
        # Rows first, then columns: rank 5 at most, and no index as large as the bias itself.
        bias = table.index_select(1, distance_y).index_select(2, distance_x)
        return bias.reshape(-1, h, h, w, w).transpose(2, 3).reshape(-1, h * w, h * w)

    @property
    def is_folded(self) -> bool:
        """True once the bias is a constant."""
        return self.folded is not None

    def fuse(self) -> Self:
        """Keep the finished bias as a constant in place of the table."""
        if self.folded is None:
            self.folded = self().detach()
            del self.table, self.resize_y, self.resize_x, self.distance_y, self.distance_x
        return self


class AbsolutePosition(nn.Module):
    """A learned vector for each token, added to it (ViT, arXiv 2010.11929, section 3.1)."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, tokens, dim))
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, x_BSC: Tensor) -> Tensor:
        """(B, S, C) to the same shape. Raises BadInput for another number of tokens than the table's."""
        if x_BSC.shape[1] != self.table.shape[1]:
            raise BadInput(f"The position table is for {self.table.shape[1]} tokens, not {x_BSC.shape[1]}.")
        return x_BSC + self.table


class LocallyEnhancedPosition(nn.Conv2d):
    """LePE: a depthwise 3x3 convolution with zeros around (CSWin, arXiv 2107.00652, equations 5 and 6).

    9 dim parameters, whatever the number of tokens: no bias, as in the paper's count. Maps (B, C, H, W), channels
    first, to the same shape.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, kernel_size=3, padding=1, groups=dim, bias=False)


def _distances(side: int) -> Tensor:
    """Row of the table, or column, for each query and key along one axis, (side * side,)."""
    place = torch.arange(side)
    return (place[None, :] - place[:, None] + side - 1).flatten()


def _linear_resize(stored: int, wanted: int) -> Tensor | None:
    """Matrix (wanted, stored) that resizes a vector linearly, half-pixel centres, without antialiasing.

    None where there is nothing to resize.
    """
    if stored == wanted:
        return None
    units = torch.eye(stored)[None]
    return F.interpolate(units, size=wanted, mode="linear", align_corners=False)[0].T.contiguous()
