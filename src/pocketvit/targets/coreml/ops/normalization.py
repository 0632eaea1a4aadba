"""Normalization layers. Variances are those of the population; epsilon stands under the root."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ....errors import BadInput
from . import Ints, handles


@handles("batch_norm")
def batch_norm(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """`gamma` (x - mean) / sqrt(variance + epsilon) + beta, each (C), for each channel of x (N, C, ...)."""
    return F.batch_norm(x, mean, variance, gamma, beta, training=False, eps=epsilon)


@handles("instance_norm")
def instance_norm(x: Tensor, gamma: Tensor | None = None, beta: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each image of x (N, C, ...) to mean 0 and variance 1, then gamma (C) and beta (C)."""
    # as many groups as channels; unlike torch's instance_norm this takes a single pixel
    return torch.group_norm(x, x.shape[1], gamma, beta, epsilon)


@handles("layer_norm")
def layer_norm(
    x: Tensor,
    axes: Ints | None = None,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    epsilon: float = 1e-5,
) -> Tensor:
    """`x` to mean 0 and variance 1 over `axes`, all by default, then gamma and beta, shaped as x along those axes."""
    rank = x.ndim
    if axes is None:
        axes = tuple(range(rank))
    over = tuple(sorted({axis + rank if axis < 0 else axis for axis in axes}))
    if not over or len(over) != len(axes) or over[0] < 0 or over[-1] >= rank:
        raise BadInput(f"its axes {list(axes)} are not different axes of a tensor of rank {rank}")
    last = tuple(range(rank - len(over), rank))
    if over == last:
        return F.layer_norm(x, x.shape[last[0] :], gamma, beta, epsilon)
    moved = x.movedim(over, last)
    return F.layer_norm(moved, moved.shape[last[0] :], gamma, beta, epsilon).movedim(last, over)


@handles("l2_norm")
def l2_norm(x: Tensor, epsilon: float = 1e-6) -> Tensor:
    """`x` over the root of the sum of squares of its last three axes plus epsilon."""
    if x.ndim < 3:
        raise BadInput(f"it takes tensors of rank 3 or more, not {x.ndim}")
    return x / (x.square().sum((-3, -2, -1), keepdim=True) + epsilon).sqrt()


@handles("local_response_norm")
def local_response_norm(x: Tensor, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Tensor:
    """`x` over (k + alpha / size times the sum of squares of `size` neighbouring channels) ** beta.

    x is (N, C, ...). Channels beyond the ends count as zeros. The text does not say where an even window lies: here
    one channel more before than after, as coremltools tests it. (Another of its tests expects of rank 3 that every
    element stands alone, against the text; the text decides.)
    """
    return F.local_response_norm(x, size, alpha, beta, k)
