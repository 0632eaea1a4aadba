"""A MobileViT for 32x32 images: mobile convolutions, then attention between patches (arXiv 2110.02178)."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any

from timm.models import ByobNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.byobnet import ByoBlockCfg, ByoModelCfg

from .small_images import small_images

default_cfgs = generate_default_cfgs(
    {"pocket_mobilevit_32": small_images(32, first_conv="stem.conv", classifier="head.fc", pool=4, fixed=False)}
)


def _convolutions(depth: int, width: int, stride: int) -> ByoBlockCfg:
    """Inverted residuals: twice as wide inside, depthwise, linear at the end."""
    inside = {"bottle_in": True, "linear_out": True}
    return ByoBlockCfg(type="bottle", d=depth, c=width, s=stride, gs=1, br=2.0, block_kwargs=inside)


def _attention(width: int, dim: int) -> ByoBlockCfg:
    """Two transformer layers of `dim` channels between patches of 2x2 positions."""
    inside = {"transformer_dim": dim, "transformer_depth": 2, "patch_size": 2}
    return ByoBlockCfg(type="mobilevit", d=1, c=width, s=1, block_kwargs=inside)


# maps of 16x16, 16x16, 8x8 and 4x4 positions
_ARCHITECTURE = ByoModelCfg(
    blocks=(
        _convolutions(1, 16, 1),
        _convolutions(2, 32, 1),
        (_convolutions(1, 64, 2), _attention(64, 80)),
        (_convolutions(1, 96, 2), _attention(96, 112)),
    ),
    stem_chs=16,
    stem_type="3x3",
    stem_pool="",
    downsample="",
    act_layer="silu",
    num_features=320,
)


@register_model
def pocket_mobilevit_32(pretrained: bool = False, **kwargs: Any) -> ByobNet:
    """MobileViT for 32x32 images, 0.8 M parameters."""
    return build_model_with_cfg(
        ByobNet,
        "pocket_mobilevit_32",
        pretrained,
        model_cfg=_ARCHITECTURE,
        feature_cfg={"flatten_sequential": True},
        **kwargs,
    )
