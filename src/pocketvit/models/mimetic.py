"""Attention weights to start from that look like trained ones (arXiv 2305.09828): a ViT learns from less."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any

import torch
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed
from torch import Tensor

from ..errors import BadInput

_NOISE, _IDENTITY = 0.7, 0.7  # of the product of queries and keys, section 3.2
_VALUE_NOISE, _VALUE_IDENTITY = 0.4, -0.4  # of that of values and projection
_POSITION = 0.5  # amplitude: about as far from 0 as the embedded patches of an image


@torch.no_grad()
def mimetic(model: Any) -> Any:
    """Start a timm VisionTransformer, in place, from weights of attention that mimic trained ones; return it.

    Tokens look at those like themselves (queries times keys are near the identity), at first at those close by:
    positions start as two-dimensional sines and cosines. Values times projection are near minus the identity. Raises
    BadInput for a model without positions of its patches.
    """
    if model.pos_embed is None:
        raise BadInput("weight_init='mimetic' starts from positions; leave pos_embed as it is.")
    rows, columns = model.patch_embed.grid_size
    sines = build_sincos2d_pos_embed([rows, columns], dim=model.embed_dim, temperature=100.0)
    model.pos_embed[:, -rows * columns :] = _POSITION * sines  # those of the tokens, if any, stand before
    for block in model.blocks:
        attention = block.attn
        width, heads = model.embed_dim, attention.num_heads
        pairs = [_factors(width, _NOISE, _IDENTITY, width // heads) for _ in range(heads)]
        values, projection = _factors(width, _VALUE_NOISE, _VALUE_IDENTITY, width)
        queries, keys = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        attention.qkv.weight.copy_(torch.cat([queries, keys, values]))
        attention.proj.weight.copy_(projection.T)
    return model


def _factors(width: int, noise: float, identity: float, rank: int) -> tuple[Tensor, Tensor]:
    """A and B (rank, width) with A^T B the best approximation of noise * Gaussian + identity * I."""
    wanted = noise * torch.randn(width, width) / width**0.5 + identity * torch.eye(width)
    left, strengths, right = torch.linalg.svd(wanted)
    roots = strengths[:rank].sqrt()[:, None]
    return roots * left.T[:rank], roots * right[:rank]
