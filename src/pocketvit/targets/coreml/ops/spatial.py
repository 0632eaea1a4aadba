"""Moving pixels between axes: blocks to channels or batch and back, windows, crops. Nothing is computed."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from . import Ints, handles
from .padding import explicit, pairs


@handles("depth_to_space")
def depth_to_space(x: Tensor, block_size: int) -> Tensor:
    """(n, C, H, W) to (n, C / b^2, H b, W b); the place in the block is the slower part of the channel.

    pixel_shuffle has it the other way round.
    """
    n, c, h, w = _rank_four(x)
    _divides(block_size * block_size, c)
    split = x.reshape(n, block_size, block_size, c // block_size**2, h, w)
    return split.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * block_size, w * block_size)


@handles("space_to_depth")
def space_to_depth(x: Tensor, block_size: int) -> Tensor:
    """(n, C, H, W) to (n, C b^2, H / b, W / b): the inverse of depth_to_space."""
    n, c, h, w = _rank_four(x)
    _divides(block_size, h, w)
    split = x.reshape(n, c, h // block_size, block_size, w // block_size, block_size)
    return split.permute(0, 3, 5, 1, 2, 4).reshape(n, -1, h // block_size, w // block_size)


@handles("pixel_shuffle")
def pixel_shuffle(x: Tensor, upscale_factor: int) -> Tensor:
    """(n, C f^2, H, W) to (n, C, H f, W f); the place in the block is the faster part of the channel."""
    _rank_four(x)
    return F.pixel_shuffle(x, upscale_factor)


@handles("pixel_unshuffle")
def pixel_unshuffle(x: Tensor, downscale_factor: int) -> Tensor:
    """(n, C, H, W) to (n, C f^2, H / f, W / f): the inverse of pixel_shuffle."""
    _rank_four(x)
    return F.pixel_unshuffle(x, downscale_factor)


@handles("space_to_batch")
def space_to_batch(x: Tensor, block_shape: Ints, paddings: Ints) -> Tensor:
    """Pad with zeros, then move each place in a block (bh, bw) to the batch, of which it is the slower part."""
    bh, bw = _two(block_shape)
    pads = pairs(paddings)
    _rank_four(x)
    if len(pads) != 2:
        raise BadInput(f"its paddings are {list(paddings)} instead of two pairs")
    padded = explicit(x, pads)
    n, c, h, w = padded.shape
    _divides(bh, h)
    _divides(bw, w)
    split = padded.reshape(n, c, h // bh, bh, w // bw, bw)
    return split.permute(3, 5, 0, 1, 2, 4).reshape(-1, c, h // bh, w // bw)


@handles("batch_to_space")
def batch_to_space(x: Tensor, block_shape: Ints, crops: Ints) -> Tensor:
    """Move places in a block (bh, bw) from the batch to the image, then crop: the inverse of space_to_batch."""
    bh, bw = _two(block_shape)
    n, c, h, w = _rank_four(x)
    _divides(bh * bw, n)
    if len(crops) != 4:
        raise BadInput(f"its crops are {list(crops)} instead of two pairs")
    split = x.reshape(bh, bw, n // (bh * bw), c, h, w)
    return crop(split.permute(2, 3, 4, 0, 5, 1).reshape(-1, c, h * bh, w * bw), crops[:2], crops[2:])


@handles("crop")
def crop(x: Tensor, crop_height: Ints, crop_width: Ints) -> Tensor:
    """Cut so many rows from top and bottom, so many columns from left and right, of the last two axes."""
    for axis, amounts in ((-2, crop_height), (-1, crop_width)):
        if len(amounts) != 2 or min(amounts) < 0 or sum(amounts) > x.shape[axis]:
            raise BadInput(f"it cuts {list(amounts)} from the ends of {x.shape[axis]} elements")
        x = x.narrow(axis, amounts[0], x.shape[axis] - sum(amounts))
    return x


@handles("sliding_windows")
def sliding_windows(x: Tensor, axis: int, size: int, stride: int = 1) -> Tensor:
    """All windows of `size` elements along an axis: (..., windows, size, ...).

    There are (length - size) // stride + 1 of them; the text in MIL misses the brackets, its shapes have them.
    """
    axis = axis if axis >= 0 else axis + x.ndim
    return x.unfold(axis, size, stride).movedim(-1, axis + 1)


def _rank_four(x: Tensor) -> tuple[int, int, int, int]:
    if x.ndim != 4:
        raise BadInput(f"it takes a tensor with 4 axes, not {x.ndim}")
    n, c, h, w = x.shape
    return n, c, h, w


def _two(block_shape: Ints) -> tuple[int, int]:
    if len(block_shape) != 2 or min(block_shape) < 1:
        raise BadInput(f"its block_shape is {list(block_shape)} instead of two numbers from 1")
    return block_shape[0], block_shape[1]


def _divides(block: int, *sizes: int) -> None:
    if block < 1 or any(size % block for size in sizes):
        raise BadInput(f"blocks of {block} do not divide {', '.join(map(str, sizes))}")
