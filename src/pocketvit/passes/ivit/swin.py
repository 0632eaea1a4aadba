"""A timm SwinTransformer as operations of a form: shifted windows, relative position biases, patch merging."""

from __future__ import annotations

from ... import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any, TypeVar

from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from ...layers.integer import Site
from .deit import LOGITS, attend, embed_patches, mlp
from .form import Form, Part

X = TypeVar("X")


def walk_swin(form: Form[X], model: Any, pixels: X, mean: Tensor, std: Tensor) -> X:
    """Logits of pixels about MIDDLE, (B, C, H, W). Maps are (B, H, W, C)."""
    stream = Site(name="layers.0", bits=16)
    embed = model.patch_embed
    plain = isinstance(embed.norm, nn.Identity)
    x = embed_patches(form, embed, pixels, mean, std, stream if plain else Site(name="patch_embed", bits=16))
    if not plain:
        x = form.norm("patch_embed.norm", x, embed.norm, stream)
    rows, columns = embed.grid_size
    x = form.move(x, lambda t: t.reshape(-1, rows, columns, t.shape[-1]))
    for i, stage in enumerate(model.layers):
        name = f"layers.{i}"
        if isinstance(stage.downsample, PatchMerging):
            stream = Site(name=name, bits=16)
            x = _merge(form, f"{name}.downsample", x, stage.downsample, stream)
        for j, block in enumerate(stage.blocks):
            x = _block(form, f"{name}.blocks.{j}", x, block, stream)
    x = form.norm("norm", x, model.norm, Site(name="norm", bits=16))
    x = form.move(x, lambda t: t.reshape(-1, t.shape[1] * t.shape[2], t.shape[3]))
    x = form.mean("head", x, 1, Site(name="pooled"))
    head = model.head.fc
    return form.linear("head.fc", x, [Part(weight=head.weight, bias=head.bias, to=LOGITS)])[0]


def _merge(form: Form[X], name: str, x: X, merging: Any, to: Site) -> X:
    """Two by two neighbours become one token of four times the channels, then of twice."""

    def together(t: Any) -> Any:
        _, H, W, C = t.shape
        pairs = t.reshape(-1, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)
        return pairs.reshape(-1, H // 2, W // 2, 4 * C)

    x = form.norm(f"{name}.norm", form.move(x, together), merging.norm, Site(name=f"{name}.norm"))
    return form.linear(f"{name}.reduction", x, [Part(weight=merging.reduction.weight, bias=None, to=to)])[0]


def _block(form: Form[X], name: str, x: X, block: Any, stream: Site) -> X:
    (H, W), (h, w), (down, right) = block.input_resolution, block.window_size, block.shift_size

    def windows(t: Any) -> Any:
        t = t.roll((-down, -right), (1, 2)) if down or right else t
        t = t.reshape(-1, H // h, h, W // w, w, t.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        return t.reshape(-1, h * w, t.shape[-1])

    def maps(t: Any) -> Any:
        t = t.reshape(-1, H // h, W // w, h, w, t.shape[-1]).permute(0, 1, 3, 2, 4, 5)
        t = t.reshape(-1, H, W, t.shape[-1])
        return t.roll((down, right), (1, 2)) if down or right else t

    y = form.norm(f"{name}.norm1", x, block.norm1, Site(name=f"{name}.norm1"))
    bias = block.attn._get_rel_pos_bias()[0]
    if block.attn_mask is not None:
        bias = bias + block.attn_mask[:, None]
    y = form.move(y, windows)
    y = attend(form, f"{name}.attn", y, block.attn, block.attn.num_heads, bias, nn.Identity(), stream)
    x = form.add(x, form.move(y, maps), stream, block.drop_path1)
    y = form.norm(f"{name}.norm2", x, block.norm2, Site(name=f"{name}.norm2"))
    y = mlp(form, f"{name}.mlp", y, block.mlp, nn.Identity(), stream)
    return form.add(x, y, stream, block.drop_path2)
