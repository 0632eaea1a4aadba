"""MixFormer B0 to B6: features mixed across windows and dimensions (arXiv 2204.02557, CVPR 2022; not the tracker).

Configurations are those of the paper and of the authors' release in PaddleClas, which came without weights. Weights
in their layout would need their position tables turned round: theirs run by query minus key, ours by key minus query.

Axes: B images, H and W rows and columns, C channels.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, ConvNormAct, calculate_drop_path_rates, to_2tuple, trunc_normal_
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from .mixformer_blocks import MixingBlock, to_channels_first, to_channels_last

# All variants widen to this many channels before the average: small models gain most.
_HEAD_WIDTH = 1280


def _pad_to_multiple(x_BCHW: Tensor, of: int) -> Tensor:
    """Zeros below and to the right, until both sides are multiples of `of`."""
    H, W = x_BCHW.shape[-2:]
    below, right = -H % of, -W % of
    return F.pad(x_BCHW, (0, right, 0, below)) if below or right else x_BCHW


class ConvStem(nn.Module):
    """Image (B, 3, H, W) to patches of 4x4 pixels, (B, H/4, W/4, C), rounded up: three 3x3 convolutions, then 2x2."""

    def __init__(self, in_chans: int, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNormAct(in_chans, half, 3, stride=2, bias=True, act_layer=nn.GELU)
        self.conv2 = ConvNormAct(half, half, 3, bias=True, act_layer=nn.GELU)
        self.conv3 = ConvNormAct(half, half, 3, bias=True, act_layer=nn.GELU)
        self.proj = nn.Conv2d(half, dim, 2, stride=2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, H/4, W/4, C)."""
        x_BCHW = self.conv3(self.conv2(self.conv1(_pad_to_multiple(x_BCHW, 4))))
        return self.norm(to_channels_last(self.proj(x_BCHW)))


class Downsample(nn.Module):
    """Halve the sides, rounded up, and change the width: batch norm, then a 2x2 convolution.

    The authors refuse maps with an odd side. Here zeros continue the normalised map, as Swin's patch merging does.
    """

    def __init__(self, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(dim_in)
        self.conv = nn.Conv2d(dim_in, dim_out, 2, stride=2)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, C')."""
        return to_channels_last(self.conv(_pad_to_multiple(self.norm(to_channels_first(x_BHWC)), 2)))


class Stage(nn.Module):
    """Mixing blocks of one width, after a downsampling in every stage but the first."""

    def __init__(self, downsample: nn.Module, blocks: list[MixingBlock]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.Sequential(*blocks)
        self.grad_checkpointing = False

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to (B, H/2, W/2, C'), or to the same shape in the first stage."""
        x_BHWC = self.downsample(x_BHWC)
        return checkpoint_seq(self.blocks, x_BHWC) if self.grad_checkpointing else self.blocks(x_BHWC)


class MixFormer(nn.Module):
    """Stem, four stages of widths C, 2C, 4C, 8C, widening to 1280, average, classifier.

    embed_dim: C. depths, num_heads: per stage. window_size: of the attention, in positions of the map; a smaller one
    suits images below 224 pixels, where windows of 7 are mostly padding. Takes images of any size.
    """

    def __init__(
        self,
        embed_dim: int,
        depths: tuple[int, ...],
        num_heads: tuple[int, ...],
        window_size: int | tuple[int, int] = 7,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        window = to_2tuple(window_size)
        widths = [embed_dim * 2**i for i in range(len(depths))]
        rates: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        self.num_classes = num_classes
        self.stem = ConvStem(in_chans, embed_dim)
        self.stages = nn.Sequential(
            *(
                Stage(
                    Downsample(widths[i - 1], width) if i else nn.Identity(),
                    [MixingBlock(width, num_heads[i], window, rate) for rate in rates[i]],
                )
                for i, width in enumerate(widths)
            )
        )
        self.feature_info = [
            {"num_chs": width, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, width in enumerate(widths)
        ]
        self.norm: nn.Module = nn.LayerNorm(widths[-1])
        self.widen: nn.Module = nn.Sequential(nn.Linear(widths[-1], _HEAD_WIDTH), nn.GELU())
        self.num_features = self.head_hidden_size = _HEAD_WIDTH
        self.head = ClassifierHead(_HEAD_WIDTH, num_classes, pool_type=global_pool, drop_rate=drop_rate)
        self.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Position tables, as in the authors' training."""
        return {name for name, _ in self.named_parameters() if name.endswith(".relative.table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Groups of parameters from the image to the classifier, for a learning rate per layer."""
        blocks = [(r"^stages\.(\d+)\.downsample", (0,)), (r"^stages\.(\d+)\.blocks\.(\d+)", None)]
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)" if coarse else [*blocks, (r"^norm|^widen", (99999,))],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the stages' activations again in the backward pass rather than keep them."""
        for module in self.modules():
            if isinstance(module, Stage):
                module.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; none where num_classes is 0, no pooling where global_pool is ''."""
        self.num_classes = num_classes
        self.head.reset(num_classes, pool_type=global_pool)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The stages' outputs in NCHW, and what forward_features returns; arguments as in timm's own models."""
        assert output_fmt == "NCHW", "MixFormer's features come as NCHW."
        last = len(self.stages) - 1
        wanted, furthest = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for i, stage in enumerate(list(self.stages)[: furthest + 1 if stop_early else None]):
            x = stage(x)
            if i in wanted:
                intermediates.append(to_channels_first(self.norm(x) if norm and i == last else x))
        return intermediates if intermediates_only else (self._widened(x), intermediates)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the wanted stages do not need; returns their indices."""
        wanted, furthest = feature_take_indices(len(self.stages), indices)
        cut = furthest < len(self.stages) - 1
        self.stages = nn.Sequential(*list(self.stages)[: furthest + 1])
        if cut or prune_norm:
            self.norm = nn.Identity()
        if cut or prune_head:
            self.widen = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[furthest]["num_chs"]
            self.reset_classifier(0, "")
        return wanted

    def _widened(self, x_BHWC: Tensor) -> Tensor:
        return to_channels_first(self.widen(self.norm(x_BHWC)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to (B, 1280, H/32, W/32)."""
        return self._widened(self.stages(self.stem(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features to logits, or to the average before the classifier."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to logits (B, classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    """As the authors': linear layers by a truncated normal, convolutions by PaddlePaddle's default (He's)."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=math.sqrt(2 / (math.prod(module.kernel_size) * module.in_channels)))
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _cfg() -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "fixed_input_size": False,
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "first_conv": "stem.conv1.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({f"mixformer_b{i}": _cfg() for i in range(7)})


def _mixformer(name: str, pretrained: bool, architecture: dict[str, Any], kwargs: dict[str, Any]) -> MixFormer:
    features = {"out_indices": (0, 1, 2, 3), "feature_cls": "getter"}
    return build_model_with_cfg(MixFormer, name, pretrained, feature_cfg=features, **{**architecture, **kwargs})


@register_model
def mixformer_b0(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B0: 5 M parameters, 0.4 G multiply-accumulates, published top-1 76.5."""
    arch = {"embed_dim": 24, "depths": (1, 2, 6, 6), "num_heads": (3, 6, 12, 24)}
    return _mixformer("mixformer_b0", pretrained, arch, kwargs)


@register_model
def mixformer_b1(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B1: 8 M parameters, 0.7 G multiply-accumulates, published top-1 78.9."""
    arch = {"embed_dim": 32, "depths": (1, 2, 6, 6), "num_heads": (2, 4, 8, 16)}
    return _mixformer("mixformer_b1", pretrained, arch, kwargs)


@register_model
def mixformer_b2(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B2: 10 M parameters, 0.9 G multiply-accumulates, published top-1 80.0."""
    arch = {"embed_dim": 32, "depths": (2, 2, 8, 8), "num_heads": (2, 4, 8, 16), "drop_path_rate": 0.05}
    return _mixformer("mixformer_b2", pretrained, arch, kwargs)


@register_model
def mixformer_b3(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B3: 17 M parameters, 1.9 G multiply-accumulates, published top-1 81.7."""
    arch = {"embed_dim": 48, "depths": (2, 2, 8, 6), "num_heads": (3, 6, 12, 24), "drop_path_rate": 0.1}
    return _mixformer("mixformer_b3", pretrained, arch, kwargs)


@register_model
def mixformer_b4(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B4: 35 M parameters, 3.6 G multiply-accumulates, published top-1 83.0."""
    arch = {"embed_dim": 64, "depths": (2, 2, 8, 8), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.2}
    return _mixformer("mixformer_b4", pretrained, arch, kwargs)


@register_model
def mixformer_b5(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B5: 62 M parameters, 6.8 G multiply-accumulates, published top-1 83.5."""
    arch = {"embed_dim": 96, "depths": (1, 2, 8, 6), "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.3}
    return _mixformer("mixformer_b5", pretrained, arch, kwargs)


@register_model
def mixformer_b6(pretrained: bool = False, **kwargs: Any) -> MixFormer:
    """MixFormer-B6: 119 M parameters, 12.7 G multiply-accumulates, published top-1 83.8."""
    arch = {"embed_dim": 96, "depths": (2, 4, 16, 12), "num_heads": (6, 12, 24, 48), "drop_path_rate": 0.5}
    return _mixformer("mixformer_b6", pretrained, arch, kwargs)
