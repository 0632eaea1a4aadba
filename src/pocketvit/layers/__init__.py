"""Building blocks of vision transformers, in forms that export well; for our models and for anybody's own."""

from __future__ import annotations

from .attention import Attention, Projection, separate_qkv
from .channels import aligned, pad_channels
from .positions import AbsolutePosition, LocallyEnhancedPosition, Position, RelativePositionBias
from .windows import pad_to_windows, window_partition, window_reverse

__all__ = [
    "AbsolutePosition",
    "Attention",
    "LocallyEnhancedPosition",
    "Position",
    "Projection",
    "RelativePositionBias",
    "aligned",
    "pad_channels",
    "pad_to_windows",
    "separate_qkv",
    "window_partition",
    "window_reverse",
]
