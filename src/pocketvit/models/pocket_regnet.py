"""A RegNetY for 32x32 images, the kind of teacher DeiT learns from (arXiv 2012.12877, section 5.1)."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any

from timm.models import RegNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.regnet import RegNetCfg

from .small_images import small_images

default_cfgs = generate_default_cfgs(
    {"pocket_regnety_32": small_images(32, first_conv="stem.conv", classifier="head.fc", pool=4, fixed=False)}
)

# Stages 24, 48, 96, 192 wide and 1, 2, 4, 1 deep. Output stride 8: the last two dilate, so a 4x4 map remains.
_ARCHITECTURE = RegNetCfg(depth=8, w0=24, wa=16.0, wm=2.0, group_size=8, se_ratio=0.25, stem_width=24)


@register_model
def pocket_regnety_32(pretrained: bool = False, **kwargs: Any) -> RegNet:
    """RegNetY for 32x32 images, 0.24 M parameters."""
    return build_model_with_cfg(
        RegNet, "pocket_regnety_32", pretrained, model_cfg=_ARCHITECTURE, **{"output_stride": 8, **kwargs}
    )
