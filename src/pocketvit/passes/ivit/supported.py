"""Which models have an integer form; anything else is refused by the name of the module that has none."""

from __future__ import annotations

from ... import torchvision_repair  # noqa: F401 - before timm

# isort: split
from collections.abc import Sequence
from typing import Any

from timm.layers import GELU, Attention, ClassifierHead, DropPath, LayerScale, Mlp, PatchEmbed
from timm.models import SwinTransformer, VisionTransformer, VisionTransformerDistilled
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, SwinTransformerStage, WindowAttention
from timm.models.vision_transformer import Block
from torch import nn

from ...errors import BadInput

MODELS = (VisionTransformer, VisionTransformerDistilled, SwinTransformer)
_CONTAINERS = (nn.Sequential, SwinTransformerStage)
_PLAIN = (
    nn.Linear,
    nn.Conv2d,
    nn.Identity,
    nn.Dropout,
    nn.Softmax,
    nn.Flatten,
    DropPath,
    LayerScale,
    Mlp,
    PatchMerging,
)
_PARTS = (PatchEmbed, Block, SwinTransformerBlock, Attention, WindowAttention, ClassifierHead)


def check_model(module: nn.Module, name: str) -> None:
    """Raise BadInput, naming the first module that has no integer form."""
    if type(module) not in MODELS:
        kinds = ", ".join(kind.__name__ for kind in MODELS)
        raise BadInput(f"{name} is a {type(module).__name__}; an integer form exists for timm's {kinds}.")
    for path, part in module.named_modules():
        if path.startswith("head.global_pool"):  # judged by its name, with the model
            continue
        if why := _why_not(module, path, part):
            raise BadInput(f"{name} has no integer form: {path or type(part).__name__} {why}.")


def check_trainable(module: nn.Module, name: str) -> None:
    """Raise BadInput, naming a dropout, which the training of integers does without."""
    for path, part in module.named_modules():
        if isinstance(part, nn.Dropout) and part.p > 0:
            raise BadInput(f"{name} cannot be trained in integers with dropout ({path}); create it with rates of 0.")


def _why_not(model: nn.Module, path: str, part: nn.Module) -> str | None:
    if part is model:
        return _model(part)
    if isinstance(part, nn.LayerNorm):
        return None if part.weight is not None and part.bias is not None else "has no weight and bias"
    if isinstance(part, nn.GELU | GELU):
        tanh = getattr(part, "approximate", "none") != "none"
        return "is the tanh form of GELU, which ShiftGELU does not stand for" if tanh else None
    if type(part) not in (*_CONTAINERS, *_PLAIN, *_PARTS):
        return f"is a {type(part).__name__}, which no integer operation stands for"
    if isinstance(part, PatchEmbed):
        return _patches(part)
    if isinstance(part, Mlp):
        return None if isinstance(part.fc1, nn.Linear) else "is made of convolutions"
    if isinstance(part, Attention):
        return "has a gate" if part.gate is not None else _identities(part, ("q_norm", "k_norm", "norm"))
    if isinstance(part, SwinTransformerBlock):
        return _window_block(part)
    if isinstance(part, SwinTransformerStage) and any(side % 2 for side in part.input_resolution):
        return "merges a map with an odd side" if isinstance(part.downsample, PatchMerging) else None
    return None


def _model(model: nn.Module) -> str | None:
    if isinstance(model, SwinTransformer):
        if not model.num_classes:
            return "has no classifier"
        pool = model.head.global_pool.pool_type
        return None if pool == "avg" else f"pools by {pool!r}"
    assert isinstance(model, VisionTransformer)
    if not model.num_classes:
        return "has no classifier"
    if model.attn_pool is not None or model.global_pool not in ("token", "avg"):
        return f"pools by {model.global_pool!r}"
    if model.dynamic_img_size:
        return "takes images of any size; create it for one (dynamic_img_size=False)"
    norms = [isinstance(norm, nn.LayerNorm) for norm in (model.norm, model.fc_norm)]
    if sum(norms) != 1:
        return f"has {sum(norms)} norms before its head in place of one"
    if not isinstance(model.patch_drop, nn.Identity):
        return "drops patches"
    return None


def _patches(embed: PatchEmbed) -> str | None:
    if embed.img_size is None or embed.dynamic_img_pad:
        return "pads images of any size"
    if any(side % patch for side, patch in zip(embed.img_size, embed.patch_size, strict=True)):
        return "leaves out the edges of images that are no whole number of patches"
    return None


def _window_block(block: Any) -> str | None:
    if block.dynamic_mask:
        return "makes its mask for images of any size; create the model with strict_img_size=True"
    if any(side % window for side, window in zip(block.input_resolution, block.window_size, strict=True)):
        return (
            f"cuts a map of {block.input_resolution[0]}x{block.input_resolution[1]} into windows of "
            f"{block.window_size[0]}x{block.window_size[1]}, which needs padding"
        )
    return None


def _identities(part: nn.Module, names: Sequence[str]) -> str | None:
    return next((f"has {n}" for n in names if not isinstance(getattr(part, n), nn.Identity)), None)
