"""Windows of a feature map, cut and joined with tensors of rank 5 at most, channels last.

B batch, H and W the map, C channels; h and w one window, N = B x (windows per image), row by row within an image.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from ..errors import BadInput

# Added to the score of a key that is padding. Its exponential is zero in every float type, and fp16 still holds the
# sum of it and any score up to 35,000.
PADDED = -3e4


def window_partition(x_BHWC: Tensor, window: tuple[int, int]) -> Tensor:
    """Cut (B, H, W, C) into windows (N, h, w, C).

    Core ML takes no tensor of rank 6, so height is split first, into the batch, and width next: one transpose of rank
    5 in all. Channels stay last, where the Neural Engine pads a row to 32 values: a window's side there would be
    padded instead. The result may share the map's memory. Raises BadInput for a map that is no whole number of
    windows.
    """
    B, H, W, C = x_BHWC.shape
    h, w = window
    rows, columns = _windows((H, W), window)
    x = x_BHWC.reshape(B * rows, h, W, C)
    x = x.reshape(B * rows, h, columns, w, C)
    return x.transpose(1, 2).reshape(B * rows * columns, h, w, C)


def window_reverse(x_NhwC: Tensor, window: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Join windows (N, h, w, C) to maps (B, H, W, C) of `size` (H, W); the exact inverse of window_partition.

    Raises BadInput where the windows do not make up whole maps of that size.
    """
    N, h, w, C = x_NhwC.shape
    H, W = size
    rows, columns = _windows(size, window)
    if (h, w) != tuple(window) or N % (rows * columns):
        raise BadInput(
            f"{N} windows of {h}x{w} do not make maps of {H}x{W} out of {window[0]}x{window[1]} windows; give "
            "window_reverse the window and the size that window_partition had."
        )
    x = x_NhwC.reshape(-1, columns, h, w, C).transpose(1, 2)
    x = x.reshape(-1, h, W, C)
    return x.reshape(-1, H, W, C)


def pad_to_windows(x_BHWC: Tensor, window: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
    """Pad a map with zeros, below and to the right, to whole windows; say which keys are padding.

    Returns the map (B, H', W', C) and what to add to attention scores, (windows per image, 1, h w): 0 at real keys,
    PADDED at padding; None where nothing was padded. Attention over the windows with that bias equals attention over
    the real tokens alone, and every window has some. Crop with [:, :H, :W] after window_reverse of (H', W').
    """
    _, H, W, _ = x_BHWC.shape
    h, w = checked(window)
    below, right = -H % h, -W % w
    if not below and not right:
        return x_BHWC, None
    edges = (0, 0, 0, right, 0, below)
    keys = F.pad(x_BHWC.new_zeros(1, H, W, 1), edges, value=PADDED)
    return F.pad(x_BHWC, edges), window_partition(keys, window).reshape(-1, 1, h * w)


def _windows(size: tuple[int, int], window: tuple[int, int]) -> tuple[int, int]:
    """How many windows a map has below and beside one another."""
    (H, W), (h, w) = size, checked(window)
    if H % h or W % w:
        larger = f"{math.ceil(H / h) * h}x{math.ceil(W / w) * w}"
        raise BadInput(
            f"A map of {H}x{W} is no whole number of {h}x{w} windows; pad it to {larger} with pad_to_windows first."
        )
    return H // h, W // w


def checked(window: tuple[int, int]) -> tuple[int, int]:
    """Return the window; raises BadInput for one with nothing in it."""
    h, w = window
    if h < 1 or w < 1:
        raise BadInput(f"A window has 1 or more rows and columns, not {h}x{w}.")
    return h, w
