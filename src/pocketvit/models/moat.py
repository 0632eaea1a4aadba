"""MOAT and tiny-MOAT: blocks that alternate mobile convolution and attention (arXiv 2210.01820).

Axes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import LayerNorm2d, NormMlpClassifierHead, create_conv2d
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from ..errors import BadInput
from ..layers import Position
from .moat_blocks import BATCH_NORM, LAYER_NORM_EPS, MoatBlock, MobileConvolution, Size
from .moat_options import (
    FIRST_ATTENTION_STAGE,
    TABLE_SIZE,
    attention_windows,
    check_stages,
    halved,
    image_size,
    position_named,
)


class Moat(nn.Module):
    """MOAT: a convolutional stem, two stages of mobile convolutions, two of MOAT blocks, a linear classifier.

    img_size: height and width of the input, which relative tables are resized to; inputs of other sizes are taken too,
    and resize them at each call. attention: "global", or "local" in windows of `window_size` tokens, one for each of
    the two attention stages, an int or (height, width) each (14 and 7 if left out); maps that do not divide are padded
    with tokens that nobody attends to, and cropped. global_last makes the last block of both stages global all the
    same. position: a `layers.Position`. table_size: side of the window, in tokens, that the relative tables of each
    stage are stored for. output_stride: 32, 16 or 8; the last stages then keep their resolution. pool_size: of the
    shortcut's pooling, 2 as for classification or 3 as for dense prediction. split_heads: one softmax for each head,
    which the Neural Engine prefers.

    Takes (B, in_chans, H, W). Raises BadInput for an option that contradicts another, and in `forward` for an input of
    another size than img_size where the positions are absolute.
    """

    def __init__(
        self,
        *,
        stem_size: int,
        depths: Sequence[int],
        widths: Sequence[int],
        img_size: int | Size = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        attention: str = "global",
        window_size: Sequence[int | Sequence[int]] | None = None,
        global_last: bool = False,
        position: str = Position.RELATIVE,
        table_size: Sequence[int] = TABLE_SIZE,
        output_stride: int = 32,
        pool_size: int = 2,
        split_heads: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.img_size = image_size(img_size, "img_size")
        self.position = position_named(position)
        self.grad_checkpointing = False
        windows = attention_windows(attention, window_size, global_last)
        check_stages(depths, widths, table_size)
        if pool_size not in (2, 3):
            raise BadInput(f"pool_size is 2 or 3 in MOAT, not {pool_size}.")
        if output_stride not in (8, 16, 32):
            raise BadInput(f"output_stride is 8, 16 or 32 in MOAT, not {output_stride}.")

        self.stem = nn.Sequential(
            create_conv2d(in_chans, stem_size, 3, stride=2, padding="same", bias=True),
            BATCH_NORM(stem_size),
            nn.GELU(),
            create_conv2d(stem_size, stem_size, 3, padding="same", bias=True),
        )
        grid = halved(self.img_size)
        self.feature_info: list[dict[str, Any]] = []
        self.stages = nn.Sequential()
        in_chs, reduction, done = stem_size, 2, 0
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            stage_stride = 2 if reduction < output_stride else 1
            reduction *= stage_stride
            grid = halved(grid) if stage_stride == 2 else grid
            blocks: list[nn.Module] = []
            for index in range(depth):
                shared: dict[str, Any] = {
                    "stride": stage_stride if index == 0 else 1,
                    "pool_size": pool_size,
                    "drop_path": drop_path_rate * (done + index) / sum(depths),
                }
                if stage < FIRST_ATTENTION_STAGE:
                    blocks.append(MobileConvolution(in_chs, width, squeeze_excite=True, **shared))
                else:
                    last = index == depth - 1 and global_last
                    blocks.append(
                        MoatBlock(
                            in_chs,
                            width,
                            grid=grid,
                            window=None if last else windows[stage - FIRST_ATTENTION_STAGE],
                            table_size=table_size[stage - FIRST_ATTENTION_STAGE],
                            position=self.position,
                            split_heads=split_heads,
                            **shared,
                        )
                    )
                in_chs = width
            done += depth
            self.stages.append(nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": width, "reduction": reduction, "module": f"stages.{stage}"})

        self.num_features = widths[-1]
        self.head = NormMlpClassifierHead(
            self.num_features,
            num_classes,
            pool_type=global_pool,
            drop_rate=drop_rate,
            norm_layer=partial(LayerNorm2d, eps=LAYER_NORM_EPS),
        )
        self.head_hidden_size = self.head.num_features
        self.apply(_init_weights)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Name the position tables, which weight decay would pull towards none."""
        return {name for name, _ in self.named_parameters() if name.endswith("table")}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups from the input to the head, for layer-wise learning rates."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None)]}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the linear layer that gives the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, reset_other: bool = False) -> None:
        """Replace the classifier by a new one with `num_classes` outputs; none for 0."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, reset_other=reset_other, in_features=self.num_features)

    def forward_features(self, x_BCHW: Tensor) -> Tensor:
        """Feature map (B, C, H / output_stride, W / output_stride) of images."""
        x_BCHW = self._embed(x_BCHW)
        for stage in self.stages:
            x_BCHW = self._run(stage, x_BCHW)
        return x_BCHW

    def forward_head(self, x_BCHW: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, num_classes) of a feature map; the pooled and normalised features where pre_logits."""
        return self.head(x_BCHW, pre_logits=pre_logits)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, num_classes) of normalised images."""
        return self.forward_head(self.forward_features(x_BCHW))

    def forward_intermediates(
        self,
        x_BCHW: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Feature maps after the stages named by `indices`, as every timm model gives them.

        norm is accepted and has no effect: MOAT normalises after pooling only.
        """
        if output_fmt != "NCHW":
            raise BadInput(f"MOAT gives its features as NCHW, not {output_fmt}.")
        taken, last = feature_take_indices(len(self.stages), indices)
        x_BCHW = self._embed(x_BCHW)
        found = []
        for index, stage in enumerate(self.stages.children()):
            if stop_early and index > last:
                break
            x_BCHW = self._run(stage, x_BCHW)
            if index in taken:
                found.append(x_BCHW)
        return found if intermediates_only else (x_BCHW, found)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the stages after the last one named by `indices`, and the head."""
        taken, last = feature_take_indices(len(self.stages), indices)
        if last < len(self.stages) - 1:
            self.stages = nn.Sequential(*list(self.stages)[: last + 1])
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            prune_head = True
        if prune_head:
            self.reset_classifier(0, "", reset_other=True)
        return taken

    def _embed(self, x_BCHW: Tensor) -> Tensor:
        size = (x_BCHW.shape[-2], x_BCHW.shape[-1])
        if size != self.img_size and self.position is Position.ABSOLUTE:
            raise BadInput(
                f"This MOAT has a position for each token of {self.img_size[0]} x {self.img_size[1]} inputs, so it "
                f"cannot take {size[0]} x {size[1]}: build it with that img_size and train it."
            )
        return self.stem(x_BCHW)

    def _run(self, stage: nn.Module, x_BCHW: Tensor) -> Tensor:
        if self.grad_checkpointing and self.training:
            return checkpoint_seq(stage, x_BCHW)
        return stage(x_BCHW)


def _init_weights(module: nn.Module) -> None:
    """Normal with a deviation of 0.02 and no bias, as the authors start."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg(size: int, half: bool = False) -> dict[str, Any]:
    """half: normalised to [-1, 1]; the other checkpoints use ImageNet's statistics."""
    mean_std = ((0.5,) * 3, (0.5,) * 3) if half else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (math.ceil(size / 32),) * 2,
        "fixed_input_size": True,
        "mean": mean_std[0],
        "std": mean_std[1],
        "interpolation": "bicubic",
        "crop_pct": 0.875 if size < 384 else 1.0,
        "first_conv": "stem.0",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs(
    {
        "moat_0": _cfg(224),
        "moat_1": _cfg(224),
        "moat_2": _cfg(384, half=True),
        "moat_3": _cfg(512, half=True),
        "moat_4": _cfg(512, half=True),
        "tiny_moat_0": _cfg(256),
        "tiny_moat_1": _cfg(256),
        "tiny_moat_2": _cfg(256),
        "tiny_moat_3": _cfg(256),
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """Width of the stem, and blocks and widths of the four stages."""

    stem_size: int
    depths: tuple[int, ...]
    widths: tuple[int, ...]


def _variant(stem_size: int, depths: tuple[int, ...], width: int) -> Variant:
    return Variant(stem_size=stem_size, depths=depths, widths=(width, 2 * width, 4 * width, 8 * width))


# Tables 1 and 9 of the paper
VARIANTS = {
    "moat_0": _variant(64, (2, 3, 7, 2), 96),
    "moat_1": _variant(64, (2, 6, 14, 2), 96),
    "moat_2": _variant(128, (2, 6, 14, 2), 128),
    "moat_3": _variant(160, (2, 12, 28, 2), 160),
    "moat_4": _variant(256, (2, 12, 28, 2), 256),
    "tiny_moat_0": _variant(32, (2, 3, 7, 2), 32),
    "tiny_moat_1": _variant(40, (2, 3, 7, 2), 40),
    "tiny_moat_2": _variant(56, (2, 3, 7, 2), 56),
    "tiny_moat_3": _variant(80, (2, 3, 7, 2), 80),
}


def _create(name: str, pretrained: bool, kwargs: dict[str, Any]) -> Moat:
    variant = VARIANTS[name]
    arguments = {
        "stem_size": variant.stem_size,
        "depths": variant.depths,
        "widths": variant.widths,
        "img_size": default_cfgs[name].default.input_size[1],
    }
    features = {"out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)), "feature_cls": "getter"}
    return build_model_with_cfg(Moat, name, pretrained, feature_cfg=features, **{**arguments, **kwargs})


@register_model
def moat_0(pretrained: bool = False, **kwargs: Any) -> Moat:
    """MOAT-0, 27.8 M parameters, for 224 px."""
    return _create("moat_0", pretrained, kwargs)


@register_model
def moat_1(pretrained: bool = False, **kwargs: Any) -> Moat:
    """MOAT-1, 41.6 M parameters, for 224 px."""
    return _create("moat_1", pretrained, kwargs)


@register_model
def moat_2(pretrained: bool = False, **kwargs: Any) -> Moat:
    """MOAT-2, 73.4 M parameters, for 384 px."""
    return _create("moat_2", pretrained, kwargs)


@register_model
def moat_3(pretrained: bool = False, **kwargs: Any) -> Moat:
    """MOAT-3, 190.0 M parameters, for 512 px."""
    return _create("moat_3", pretrained, kwargs)


@register_model
def moat_4(pretrained: bool = False, **kwargs: Any) -> Moat:
    """MOAT-4, 483.2 M parameters, for 512 px."""
    return _create("moat_4", pretrained, kwargs)


@register_model
def tiny_moat_0(pretrained: bool = False, **kwargs: Any) -> Moat:
    """Tiny-MOAT-0, 3.4 M parameters, for 256 px."""
    return _create("tiny_moat_0", pretrained, kwargs)


@register_model
def tiny_moat_1(pretrained: bool = False, **kwargs: Any) -> Moat:
    """Tiny-MOAT-1, 5.1 M parameters, for 256 px."""
    return _create("tiny_moat_1", pretrained, kwargs)


@register_model
def tiny_moat_2(pretrained: bool = False, **kwargs: Any) -> Moat:
    """Tiny-MOAT-2, 9.8 M parameters, for 256 px."""
    return _create("tiny_moat_2", pretrained, kwargs)


@register_model
def tiny_moat_3(pretrained: bool = False, **kwargs: Any) -> Moat:
    """Tiny-MOAT-3, 19.5 M parameters, for 256 px."""
    return _create("tiny_moat_3", pretrained, kwargs)
