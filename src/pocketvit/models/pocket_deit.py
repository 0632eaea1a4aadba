"""DeiT students for 32x32 images, with and without the distillation token (arXiv 2012.12877, section 4)."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any

from timm.models import (
    VisionTransformer,
    VisionTransformerDistilled,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
)

from .mimetic import mimetic
from .small_images import small_images

_CFG = small_images(32, first_conv="patch_embed.proj", classifier="head", pool=None, fixed=True)

default_cfgs = generate_default_cfgs(
    {
        "pocket_deit_patch4_32": _CFG,
        "pocket_deit_distilled_patch4_32": {**_CFG, "classifier": ("head", "head_dist")},
    }
)

# 64 patches of 4x4 pixels; 0.8 M parameters
_ARCHITECTURE = {"img_size": 32, "patch_size": 4, "embed_dim": 128, "depth": 4, "num_heads": 4}


@register_model
def pocket_deit_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """DeiT for 32x32 images: 4 blocks of width 128 and 4 heads; weight_init="mimetic" for a better start."""
    return _build(VisionTransformer, "pocket_deit_patch4_32", pretrained, kwargs)


@register_model
def pocket_deit_distilled_patch4_32(pretrained: bool = False, **kwargs: Any) -> VisionTransformerDistilled:
    """As pocket_deit_patch4_32, with a distillation token and its own head."""
    return _build(VisionTransformerDistilled, "pocket_deit_distilled_patch4_32", pretrained, kwargs)


def _build(kind: type[VisionTransformer], name: str, pretrained: bool, given: dict[str, Any]) -> Any:
    start = given.pop("weight_init", "")
    rest = {} if start == "mimetic" else {"weight_init": start}
    model = build_model_with_cfg(kind, name, pretrained, **{**_ARCHITECTURE, **given, **rest})
    return mimetic(model) if start == "mimetic" else model
