"""A windowed MOAT for small images (arXiv 2210.01820): attention in windows of 3x3 tokens on maps of 6x6."""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from .moat import Moat
from .small_images import small_images

default_cfgs = generate_default_cfgs(
    {"pocket_moat_48": small_images(48, first_conv="stem.0", classifier="head.fc", pool=6, fixed=True)}
)

# maps of 24x24 (the stem's), 12x12, then 6x6: the last two stages keep their resolution
_ARCHITECTURE = {
    "stem_size": 16,
    "depths": (1, 1, 2, 1),
    "widths": (32, 48, 96, 128),
    "img_size": 48,
    "output_stride": 8,
    "attention": "local",
    "window_size": (3, 3),
    "table_size": (3, 3),
}


@register_model
def pocket_moat_48(pretrained: bool = False, **kwargs: Any) -> Moat:
    """MOAT in windows for 48x48 images, 0.5 M parameters."""
    features = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    return build_model_with_cfg(
        Moat, "pocket_moat_48", pretrained, feature_cfg=features, **{**_ARCHITECTURE, **kwargs}
    )
