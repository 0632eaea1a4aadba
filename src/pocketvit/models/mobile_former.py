"""Mobile-Former: MobileNet and a transformer of a few global tokens side by side (arXiv 2108.05895, CVPR 2022).

Axes: B batch, C channels, H W rows and columns, T tokens, D token width.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ConvNormAct, get_device_dtype
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models._manipulate import checkpoint
from torch import Tensor, nn

from ..errors import BadInput
from .mobile_former_blocks import LiteBottleneck, MobileFormerBlock, MobileFormerHead, init_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class MobileFormerConfig:
    """The widths of one variant; Table 1 of the paper shows that of 294 M multiply-adds.

    stem: channels of the first convolution and of the lite bottleneck after it, which multiplies by `lite_expansion`
    in between and has stride `lite_stride`. stages: (channels, expansion) of every Mobile-Former block at strides 4,
    8, 16 and 32; the first of a stage downsamples unless the stem is already there. tokens, token_dim: number and
    width of the global tokens. hidden: width of the classifier's hidden layer. groups: of all pointwise convolutions.
    """

    stem: tuple[int, int]
    lite_expansion: int = 2
    lite_stride: int = 1
    stages: tuple[tuple[tuple[int, int], ...], ...]
    tokens: int = 6
    token_dim: int = 192
    hidden: int
    groups: int = 1


class MobileFormer(nn.Module):
    """Images (B, 3, H, W) to logits (B, num_classes); H and W of any size.

    forward_features returns both branches, the map (B, C, H/32, W/32) and the tokens (B, T, D), and forward_head takes
    both. global_pool is "avg", or "" for the map itself (without a classifier). Raises BadInput for another.
    """

    def __init__(
        self,
        cfg: MobileFormerConfig,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        _check_pooling(global_pool, num_classes)
        self.num_classes = num_classes
        self.global_pool = global_pool
        self.grad_checkpointing = False
        self.tokens = nn.Parameter(torch.empty(1, cfg.tokens, cfg.token_dim))
        self.stem = nn.Sequential(
            ConvNormAct(in_chans, cfg.stem[0], 3, stride=2, act_layer=nn.ReLU6),
            LiteBottleneck(*cfg.stem, cfg.lite_expansion, cfg.lite_stride, cfg.groups),
        )
        self.stages = nn.ModuleList()
        self.feature_info: list[dict[str, Any]] = []
        channels, stride = cfg.stem[1], 2 * cfg.lite_stride
        shared = {"token_dim": cfg.token_dim, "groups": cfg.groups}
        # the lite bottleneck is counted in the rule of stochastic depth, and never dropped
        built, depth = 1, 1 + sum(map(len, cfg.stages))
        for index, stage in enumerate(cfg.stages):
            blocks = nn.ModuleList()
            for outputs, expansion in stage:
                down = stride < 4 << index
                stride, built = stride * (1 + down), built + 1
                drop = drop_path_rate * built / depth
                blocks.append(MobileFormerBlock(channels, outputs, expansion, down=down, drop_path=drop, **shared))
                channels = outputs
            self.stages.append(blocks)
            self.feature_info.append({"num_chs": channels, "reduction": stride, "module": f"stages.{index}"})
        self.num_features = channels
        self.head_hidden_size = cfg.hidden
        self.head: nn.Module = MobileFormerHead(
            channels, cfg.hidden, num_classes, drop_rate=drop_rate, drop_path=drop_path_rate, **shared
        )
        nn.init.normal_(self.tokens)
        self.apply(init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are positions rather than weights."""
        return {"tokens"}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that sort parameters into layers, for layer-wise learning rates."""
        return {"stem": r"^stem|^tokens", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade a second forward pass of every block for memory while training."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.get_submodule("fc")

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new last layer of `num_classes` (0: none) in place."""
        global_pool = self.global_pool if global_pool is None else global_pool
        _check_pooling(global_pool, num_classes)
        self.num_classes, self.global_pool = num_classes, global_pool
        if num_classes > 0:
            self.head.fc = nn.Linear(self.head_hidden_size, num_classes, **get_device_dtype(self))
            init_weights(self.head.fc)
        else:
            self.head.fc = nn.Identity()

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[tuple[Tensor, Tensor], list[Tensor]]:
        """Return the maps after the stages `indices` asks for, with forward_features's answer before them or alone.

        `norm` changes nothing: every map ends in a sum of normed ones.
        """
        if output_fmt != "NCHW":
            raise BadInput(f"Mobile-Former gives its maps as NCHW, not {output_fmt}.")
        take, last = feature_take_indices(len(self.stages), indices)
        states = self._states(x, last + 1 if stop_early else len(self.stages))
        maps = [x_BCHW for index, (x_BCHW, _) in enumerate(states) if index in take]
        return maps if intermediates_only else (states[-1], maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what is not needed for the maps `indices` asks for; return their indices."""
        take, last = feature_take_indices(len(self.stages), indices)
        if prune_head or last + 1 < len(self.stages):
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.num_classes, self.global_pool, self.head = 0, "", nn.Identity()
        self.stages = self.stages[: last + 1]
        return take

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The map (B, C, H/32, W/32) and the tokens (B, T, D) after the last stage."""
        return self._states(x, len(self.stages))[-1]

    def _states(self, x: Tensor, stages: int) -> list[tuple[Tensor, Tensor]]:
        """The map and the tokens after each of the first `stages`."""
        # repeat, not expand: a view of a parameter would ask for gradients even where they are off
        x_BCHW, t_BTD = self.stem(x), self.tokens.repeat(len(x), 1, 1)
        states = []
        for stage in self.stages[:stages]:
            for block in stage.children():
                run = partial(checkpoint, block) if self.grad_checkpointing and self.training else block
                x_BCHW, t_BTD = run(x_BCHW, t_BTD)
            states.append((x_BCHW, t_BTD))
        return states

    def forward_head(self, x: tuple[Tensor, Tensor], pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of what forward_features returned."""
        return self.head(*x, pre_logits=pre_logits) if self.global_pool else x[0]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _check_pooling(global_pool: str, num_classes: int) -> None:
    if global_pool not in ("avg", ""):
        raise BadInput(f'Mobile-Former pools with "avg" or not at all (""), not {global_pool!r}.')
    if not global_pool and num_classes:
        raise BadInput('Without pooling there is no classifier: give num_classes=0 with global_pool="".')


# in the two smallest the lite bottleneck downsamples, so their first stage has no block for that
_SMALLEST = MobileFormerConfig(
    stem=(8, 12),
    lite_expansion=3,
    lite_stride=2,
    stages=(((12, 3),), ((24, 6), (24, 3)), ((48, 6), (48, 4), (64, 6)), ((96, 6), (96, 6))),
    tokens=3,
    token_dim=128,
    hidden=1024,
)
_CONFIGS = {
    "mobile_former_26m": replace(_SMALLEST, groups=4),
    "mobile_former_52m": _SMALLEST,
    "mobile_former_96m": MobileFormerConfig(
        stem=(12, 12),
        stages=(((16, 6),), ((32, 6), (32, 3)), ((64, 6), (64, 4), (88, 6)), ((128, 6), (128, 6))),
        tokens=4,
        token_dim=128,
        hidden=1280,
    ),
    "mobile_former_151m": MobileFormerConfig(
        stem=(12, 12),
        stages=(((16, 6), (16, 3)), ((32, 6), (32, 3)), ((64, 6), (64, 4), (88, 6), (88, 6)), ((128, 6),) * 3),
        hidden=1280,
    ),
    "mobile_former_214m": MobileFormerConfig(
        stem=(12, 12),
        stages=(((20, 6), (20, 3)), ((40, 6), (40, 4)), ((80, 6), (80, 4), (112, 6), (112, 6)), ((160, 6),) * 3),
        hidden=1600,
    ),
    "mobile_former_294m": MobileFormerConfig(
        stem=(16, 16),
        stages=(((24, 6), (24, 4)), ((48, 6), (48, 4)), ((96, 6), (96, 4), (128, 6), (128, 6)), ((192, 6),) * 3),
        hidden=1920,
    ),
    "mobile_former_508m": MobileFormerConfig(
        stem=(24, 24),
        stages=(((40, 6), (40, 3)), ((72, 6), (72, 3)), ((128, 6), (128, 4), (176, 6), (176, 6)), ((240, 6),) * 3),
        hidden=1920,
    ),
}

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "fixed_input_size": False,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bilinear",
    "crop_pct": 0.875,
    "first_conv": "stem.0.conv",
    "classifier": "head.fc",
    "license": "apache-2.0",
}

default_cfgs = generate_default_cfgs(dict.fromkeys(_CONFIGS, _CFG))


def _create(variant: str, pretrained: bool, **kwargs: Any) -> MobileFormer:
    return build_model_with_cfg(
        MobileFormer,
        variant,
        pretrained,
        model_cfg=_CONFIGS[variant],
        feature_cfg={"out_indices": (0, 1, 2, 3), "feature_cls": "getter"},
        **kwargs,
    )


@register_model
def mobile_former_26m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 26 M multiply-adds at 224 pixels, 3.2 M parameters; grouped pointwise convolutions."""
    return _create("mobile_former_26m", pretrained, **kwargs)


@register_model
def mobile_former_52m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 52 M multiply-adds at 224 pixels, 3.5 M parameters."""
    return _create("mobile_former_52m", pretrained, **kwargs)


@register_model
def mobile_former_96m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 96 M multiply-adds at 224 pixels, 4.6 M parameters."""
    return _create("mobile_former_96m", pretrained, **kwargs)


@register_model
def mobile_former_151m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 151 M multiply-adds at 224 pixels, 7.6 M parameters."""
    return _create("mobile_former_151m", pretrained, **kwargs)


@register_model
def mobile_former_214m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 214 M multiply-adds at 224 pixels, 9.4 M parameters."""
    return _create("mobile_former_214m", pretrained, **kwargs)


@register_model
def mobile_former_294m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 294 M multiply-adds at 224 pixels, 11.4 M parameters."""
    return _create("mobile_former_294m", pretrained, **kwargs)


@register_model
def mobile_former_508m(pretrained: bool = False, **kwargs: Any) -> MobileFormer:
    """Mobile-Former of 508 M multiply-adds at 224 pixels, 14.0 M parameters."""
    return _create("mobile_former_508m", pretrained, **kwargs)
