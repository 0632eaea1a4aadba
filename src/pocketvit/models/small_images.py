"""What our models for small images have in common: ten classes, pixels in [-1, 1], no margin cropped away."""

from __future__ import annotations

from typing import Any


def small_images(size: int, *, first_conv: str, classifier: str, pool: int | None, fixed: bool) -> dict[str, Any]:
    """Timm's pretrained_cfg for images of `size` pixels; pool: side of the last map; fixed: takes no other size."""
    return {
        "num_classes": 10,
        "input_size": (3, size, size),
        "pool_size": None if pool is None else (pool, pool),
        "fixed_input_size": fixed,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
    }
