"""A timm VisionTransformer, with or without a distillation token, as operations of a form."""

from __future__ import annotations

from ... import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any, TypeVar

import torch
from timm.layers import LayerScale
from torch import Tensor, nn

from ...layers.integer import Site, pad
from .form import Form, Part

X = TypeVar("X")

LOGITS = Site(name="logits", bits=16)
MIDDLE = 128 / 255  # what the byte 128, where 8-bit integers have their zero, stands for


def walk_deit(form: Form[X], model: Any, pixels: X, mean: Tensor, std: Tensor) -> X | tuple[X, X]:
    """Logits of pixels about MIDDLE, (B, C, H, W); a pair for a distilled model that is being trained so."""
    stream = Site(name="blocks", bits=16)
    embedded = stream if isinstance(model.norm_pre, nn.Identity) else Site(name="norm_pre", bits=16)
    x = embed_patches(form, model.patch_embed, pixels, mean, std, embedded)
    prefix = model.num_prefix_tokens
    if prefix:
        x = form.move(x, lambda t: pad(t, 0, 0, prefix, 0))
    x = form.add_constant(x, _tokens(model), embedded)
    if embedded is not stream:
        x = form.norm("norm_pre", x, model.norm_pre, stream)
    for i, block in enumerate(model.blocks):
        name, heads = f"blocks.{i}", block.attn.num_heads
        y = form.norm(f"{name}.norm1", x, block.norm1, Site(name=f"{name}.norm1"))
        y = attend(form, f"{name}.attn", y, block.attn, heads, None, block.ls1, stream)
        x = form.add(x, y, stream, block.drop_path1)
        y = form.norm(f"{name}.norm2", x, block.norm2, Site(name=f"{name}.norm2"))
        y = mlp(form, f"{name}.mlp", y, block.mlp, block.ls2, stream)
        x = form.add(x, y, stream, block.drop_path2)
    return _head(form, model, x)


def embed_patches(form: Form[X], embed: Any, pixels: X, mean: Tensor, std: Tensor, to: Site) -> X:
    """Patches (B, N, C): each patch is a row, and the normalisation of the image a part of the weights."""
    (p, q), (rows, columns), channels = embed.patch_size, embed.grid_size, embed.proj.in_channels
    x = form.move(
        pixels,
        lambda t: (
            t.reshape(-1, channels, rows, p, columns, q)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(-1, rows * columns, channels * p * q)
        ),
    )
    weight = embed.proj.weight / std.reshape(-1, 1, 1)
    bias = (weight * (MIDDLE - mean.reshape(-1, 1, 1))).sum((1, 2, 3))
    if embed.proj.bias is not None:
        bias = bias + embed.proj.bias
    return form.linear("patch_embed.proj", x, [Part(weight=weight.flatten(1), bias=bias, to=to)])[0]


def attend(
    form: Form[X], name: str, x: X, attn: Any, heads: int, bias: Tensor | None, scale: nn.Module, to: Site
) -> X:
    """Attention of (B, N, C) with `qkv` and `proj`; scale: the LayerScale behind it, folded in, or an Identity."""
    weights = attn.qkv.weight.chunk(3)
    biases = (None,) * 3 if attn.qkv.bias is None else attn.qkv.bias.chunk(3)
    parts = [
        Part(weight=w, bias=b, to=Site(name=f"{name}.{part}"))
        for part, w, b in zip("qkv", weights, biases, strict=True)
    ]

    def split(t: Any) -> Any:
        return t.reshape(-1, t.shape[1], heads, t.shape[2] // heads).permute(0, 2, 1, 3)

    q, k, v = (form.move(part, split) for part in form.linear(f"{name}.qkv", x, parts))
    y = form.attention(name, q, k, v, attn.scale, bias)
    y = form.move(y, lambda t: t.permute(0, 2, 1, 3).reshape(-1, t.shape[2], heads * t.shape[3]))
    return form.linear(f"{name}.proj", y, [_scaled(attn.proj, scale, to)])[0]


def mlp(form: Form[X], name: str, x: X, layers: Any, scale: nn.Module, to: Site) -> X:
    """Linear, GELU, linear."""
    inner = Part(weight=layers.fc1.weight, bias=layers.fc1.bias, to=Site(name=f"{name}.fc1", bits=16, power=True))
    x = form.gelu(name, form.linear(f"{name}.fc1", x, [inner])[0], Site(name=f"{name}.act"))
    return form.linear(f"{name}.fc2", x, [_scaled(layers.fc2, scale, to)])[0]


def _scaled(layer: nn.Linear, scale: nn.Module, to: Site) -> Part:
    if not isinstance(scale, LayerScale):
        return Part(weight=layer.weight, bias=layer.bias, to=to)
    bias = None if layer.bias is None else layer.bias * scale.gamma
    return Part(weight=layer.weight * scale.gamma[:, None], bias=bias, to=to)


def _tokens(model: Any) -> Tensor:
    """What is added to the patches, behind zeros in place of the tokens before them: tokens and positions."""
    tokens = [getattr(model, name, None) for name in ("cls_token", "dist_token", "reg_token")]
    found = [token for token in tokens if token is not None]
    count = model.num_prefix_tokens
    patches = model.patch_embed.num_patches
    positions = model.pos_embed
    if positions is None:
        positions = model.patch_embed.proj.weight.new_zeros(1, patches, model.embed_dim)
    if positions.shape[1] == patches:  # the tokens have none
        return torch.cat([*found, positions], 1)
    return torch.cat([torch.cat(found, 1) + positions[:, :count], positions[:, count:]], 1) if found else positions


def _head(form: Form[X], model: Any, x: X) -> X | tuple[X, X]:
    width, normed = model.embed_dim, Site(name="norm")
    dist = getattr(model, "head_dist", None)
    if model.global_pool == "avg":
        skip = 0 if model.pool_include_prefix else model.num_prefix_tokens
        x = form.move(x, lambda t: t.narrow(1, skip, t.shape[1] - skip))
        if isinstance(model.norm, nn.LayerNorm):
            x = form.mean("norm", form.norm("norm", x, model.norm, Site(name="tokens", bits=16)), 1, normed)
        if isinstance(model.fc_norm, nn.LayerNorm):
            x = form.norm("fc_norm", form.mean("fc_norm", x, 1, Site(name="pooled", bits=16)), model.fc_norm, normed)
    else:  # only the tokens that have a head are normalised
        x = form.move(x, lambda t: t.narrow(1, 0, 1 if dist is None else 2))
        norm = model.norm if isinstance(model.norm, nn.LayerNorm) else model.fc_norm
        x = form.norm("norm", x, norm, normed)
        if dist is not None and model.training and model.distilled_training:
            return _logits(form, "head", x, 0, model.head), _logits(form, "head_dist", x, 1, dist)
        x = form.move(x, lambda t: t.reshape(-1, t.shape[1] * width))
    if dist is None:
        return form.linear("head", x, [Part(weight=model.head.weight, bias=model.head.bias, to=LOGITS)])[0]
    # the mean of two heads is one layer over both tokens: their sums meet in one int32 accumulator
    weight = torch.cat([model.head.weight, dist.weight], 1) / 2
    return form.linear("head+head_dist", x, [Part(weight=weight, bias=(model.head.bias + dist.bias) / 2, to=LOGITS)])[
        0
    ]


def _logits(form: Form[X], name: str, x: X, token: int, head: nn.Linear) -> X:
    """Those of one token of (B, N, C), by its own head."""
    x = form.move(x, lambda t: t.narrow(1, token, 1).reshape(-1, t.shape[2]))
    return form.linear(name, x, [Part(weight=head.weight, bias=head.bias, to=LOGITS)])[0]
