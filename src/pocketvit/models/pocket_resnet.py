"""A ResNet for 32x32 images, the convolutional teacher of the packaged DeiT (arXiv 1512.03385, section 4.2)."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any

from timm.models import ResNet, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock
from torch import nn

from .small_images import small_images

default_cfgs = generate_default_cfgs(
    {"pocket_resnet_32": small_images(32, first_conv="conv1.0", classifier="fc", pool=4, fixed=False)}
)

_ARCHITECTURE = {
    "block": BasicBlock,
    "layers": (1, 1, 1, 1),
    "channels": (24, 48, 96, 192),
    "stem_type": "deep",
    "stem_width": 12,
}


class _SmallImageResNet(ResNet):
    """A ResNet whose stem keeps the resolution, for images that have little of it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        stem: Any = self.conv1
        stem[0].stride = (1, 1)
        self.maxpool = nn.Sequential()  # no step: the identity
        stages: list[dict[str, Any]] = self.feature_info
        for stage in stages:
            stage["reduction"] = max(1, stage["reduction"] // 4)


@register_model
def pocket_resnet_32(pretrained: bool = False, **kwargs: Any) -> ResNet:
    """ResNet for 32x32 images: four blocks, 0.7 M parameters."""
    return build_model_with_cfg(_SmallImageResNet, "pocket_resnet_32", pretrained, **{**_ARCHITECTURE, **kwargs})
