"""Plain ViTs and MetaFormers whose attention is AFT, Hyena, linear attention or pooling.

The ViTs have the size of ViT-tiny/16 (192 channels, 12 blocks), the MetaFormers that of PoolFormer-S12. Tokens are
averaged at the end; there is no class token, since a mixer needs to know where each token lies. As in the papers,
position embeddings are left out where the mixer itself knows the positions by its convolutions.
"""

from __future__ import annotations

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import GroupNorm1, to_2tuple
from timm.models import MetaFormer, VisionTransformer, build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..errors import BadInput
from ..layers.mixers import AFTConv, AFTFull, AFTLocal, AFTSimple, Form, Hyena, LinearAttention, Pooling, TokenMixer

# what builds a mixer: called with the number of channels, the grid and proj_drop
_Mixer = Callable[..., TokenMixer]
_Size = int | tuple[int, int]

_CFG = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": None,
    "fixed_input_size": True,
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "interpolation": "bicubic",
    "crop_pct": 0.9,
    "license": "apache-2.0",
}
_VIT_CFG = {**_CFG, "first_conv": "patch_embed.proj", "classifier": "head"}
_METAFORMER_CFG = {**_CFG, "pool_size": (7, 7), "first_conv": "stem.conv", "classifier": "head.fc"}

default_cfgs = generate_default_cfgs(
    {
        "vit_tiny_aft_full": _VIT_CFG,
        "vit_tiny_aft_simple": _VIT_CFG,
        "vit_tiny_aft_local": _VIT_CFG,
        "vit_tiny_aft_conv": _VIT_CFG,
        "vit_tiny_hyena": _VIT_CFG,
        "vit_tiny_hyena_order3": _VIT_CFG,
        "vit_tiny_linear_attention": _VIT_CFG,
        "vit_tiny_pooling": _VIT_CFG,
        "metaformer_s12_aft_conv": _METAFORMER_CFG,
        "metaformer_s12_linear_attention": _METAFORMER_CFG,
    }
)


class MixerBlock(Block):
    """timm's pre-norm ViT block with a token mixer where its attention was."""

    def __init__(self, *, mixer: _Mixer, proj_drop: float = 0.0, **block: Any) -> None:
        super().__init__(proj_drop=proj_drop, **{**block, "attn_layer": nn.Identity})
        self.attn = mixer(block["dim"], proj_drop=proj_drop).to(block["device"], block["dtype"])


class MixerViT(VisionTransformer):
    """timm's VisionTransformer around token mixers; `mixer` is called with (dim, grid=, proj_drop=) for each block.

    Raises BadInput for arguments that only attention or tokens outside the grid would give a meaning.
    """

    def __init__(self, *, mixer: _Mixer, img_size: _Size = 224, patch_size: _Size = 16, **vit: Any) -> None:
        _refuse(
            vit,
            "num_heads qkv_bias qk_norm scale_attn_norm attn_drop_rate attn_layer block_fn fix_init".split()
            + "class_token reg_tokens dynamic_img_size dynamic_img_pad patch_drop_rate".split(),
        )
        sides = zip(to_2tuple(img_size), to_2tuple(patch_size), strict=True)
        grid = tuple(image // patch for image, patch in sides)
        settings: dict[str, Any] = {"global_pool": "avg", **vit, "class_token": False}
        settings["block_fn"] = partial(MixerBlock, mixer=partial(mixer, grid=grid))
        super().__init__(img_size=img_size, patch_size=patch_size, **settings)

    def no_weight_decay(self) -> set[str]:
        """timm's, and what the mixers name."""
        return super().no_weight_decay() | _no_weight_decay(self)


class MapMixer(nn.Module):
    """A token mixer for maps x_BCHW, as timm's MetaFormer calls it; `grids` gives the map's size by its channels."""

    def __init__(
        self,
        dim: int,
        *,
        mixer: _Mixer,
        grids: Mapping[int, tuple[int, int]],
        proj_drop: float = 0.0,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.mixer = mixer(dim, grid=grids[dim], proj_drop=proj_drop).to(device, dtype)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The mixed map; raises BadInput for another size than that it was built for."""
        if x_BCHW.shape[2:] != self.mixer.grid:
            raise BadInput(
                f"A map of {tuple(x_BCHW.shape[2:])} came where {self.mixer.grid} was expected; build the model with "
                "img_size set to this image size."
            )
        return self.mixer.to_map(self.mixer(self.mixer.to_tokens(x_BCHW)))


class MixerMetaFormer(MetaFormer):
    """timm's MetaFormer with one kind of token mixer in all stages, for images of one size."""

    def __init__(
        self, *, mixer: _Mixer, img_size: _Size = 224, dims: tuple[int, ...] = (64, 128, 320, 512), **metaformer: Any
    ) -> None:
        _refuse(metaformer, ["token_mixers"])
        if len(set(dims)) < len(dims):
            raise BadInput(f"The stages must differ in width to tell their grids apart, and dims is {dims}.")
        height, width = ((side - 3) // 4 + 1 for side in to_2tuple(img_size))  # the stem: 7x7, stride 4, padding 2
        grids = {}
        for dim in dims:
            grids[dim] = (height, width)
            height, width = (height + 1) // 2, (width + 1) // 2  # between stages: 3x3, stride 2, padding 1
        super().__init__(dims=dims, token_mixers=MapMixer, mixer=mixer, grids=grids, **metaformer)

    def _init_weights(self, m: nn.Module) -> None:
        """timm's, and what a mixer's part wants otherwise (a ViT asks for it by itself)."""
        super()._init_weights(m)
        init_weights = getattr(m, "init_weights", None)
        if init_weights is not None:
            init_weights()

    def no_weight_decay(self) -> set[str]:
        """What the mixers name."""
        return _no_weight_decay(self)


def _refuse(given: dict[str, Any], names: list[str]) -> None:
    meaningless = sorted(given.keys() & set(names))
    if meaningless:
        raise BadInput(f"{', '.join(meaningless)} cannot be set where token mixers take the place of attention.")


def _no_weight_decay(model: nn.Module) -> set[str]:
    mixers = [(name, part) for name, part in model.named_modules() if isinstance(part, TokenMixer)]
    return {f"{name}.{parameter}" for name, mixer in mixers for parameter in mixer.no_weight_decay()}


def _vit(variant: str, pretrained: bool, mixer: _Mixer, kwargs: dict[str, Any], pos_embed: str = "learn") -> MixerViT:
    arguments = {"embed_dim": 192, "depth": 12, "pos_embed": pos_embed, "mixer": mixer, **kwargs}
    features = {"out_indices": arguments.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(MixerViT, variant, pretrained, feature_cfg=features, **arguments)


def _metaformer(variant: str, pretrained: bool, mixer: _Mixer, kwargs: dict[str, Any]) -> MixerMetaFormer:
    arguments = {
        "depths": (2, 2, 6, 2),
        "dims": (64, 128, 320, 512),
        "downsample_norm": None,
        "mlp_act": nn.GELU,
        "mlp_bias": True,
        "norm_layers": GroupNorm1,
        "layer_scale_init_values": 1e-5,
        "res_scale_init_values": None,
        "use_mlp_head": False,
        "mixer": mixer,
        **kwargs,
    }
    features = {"out_indices": arguments.pop("out_indices", (0, 1, 2, 3)), "flatten_sequential": True}
    return build_model_with_cfg(MixerMetaFormer, variant, pretrained, feature_cfg=features, **arguments)


@register_model
def vit_tiny_aft_full(pretrained: bool = False, rank: int | None = 128, **kwargs: Any) -> MixerViT:
    """AFT-full tiny of arXiv 2105.14103, table 7 (there with a class token)."""
    return _vit("vit_tiny_aft_full", pretrained, partial(AFTFull, rank=rank), kwargs)


@register_model
def vit_tiny_aft_simple(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    """AFT-simple: one weighted mean per channel for all tokens."""
    return _vit("vit_tiny_aft_simple", pretrained, AFTSimple, kwargs)


@register_model
def vit_tiny_aft_local(pretrained: bool = False, window: int = 6, rank: int | None = 128, **kwargs: Any) -> MixerViT:
    """AFT-local, with the 11x11 neighbourhood of the paper's AFT-conv."""
    return _vit("vit_tiny_aft_local", pretrained, partial(AFTLocal, window=window, rank=rank), kwargs)


@register_model
def vit_tiny_aft_conv(pretrained: bool = False, heads: int = 32, kernel: int = 11, **kwargs: Any) -> MixerViT:
    """AFT-conv tiny of arXiv 2105.14103, table 7: 73.9% with 32 heads, 74.8% with 192."""
    return _vit("vit_tiny_aft_conv", pretrained, partial(AFTConv, heads=heads, kernel=kernel), kwargs, "none")


@register_model
def vit_tiny_hyena(pretrained: bool = False, form: Form | str = Form.FFT, **kwargs: Any) -> MixerViT:
    """Hyena of order 2 (arXiv 2302.10866, section 4.5), two-dimensional and not causal."""
    return _vit("vit_tiny_hyena", pretrained, partial(Hyena, order=2, form=form), kwargs, "none")


@register_model
def vit_tiny_hyena_order3(pretrained: bool = False, form: Form | str = Form.FFT, **kwargs: Any) -> MixerViT:
    """Hyena of order 3: two long convolutions in each block."""
    return _vit("vit_tiny_hyena_order3", pretrained, partial(Hyena, order=3, form=form), kwargs, "none")


@register_model
def vit_tiny_linear_attention(pretrained: bool = False, head_dim: int = 64, **kwargs: Any) -> MixerViT:
    """Linear attention (arXiv 2006.16236) with ViT-tiny's three heads."""
    return _vit("vit_tiny_linear_attention", pretrained, partial(LinearAttention, head_dim=head_dim), kwargs)


@register_model
def vit_tiny_pooling(pretrained: bool = False, **kwargs: Any) -> MixerViT:
    """PoolFormer's pooling (arXiv 2111.11418) in a ViT of one resolution."""
    return _vit("vit_tiny_pooling", pretrained, Pooling, kwargs, "none")


@register_model
def metaformer_s12_aft_conv(
    pretrained: bool = False, heads: int = 32, kernel: int = 11, **kwargs: Any
) -> MixerMetaFormer:
    """PoolFormer-S12 (arXiv 2111.11418) with AFT-conv in place of pooling."""
    return _metaformer("metaformer_s12_aft_conv", pretrained, partial(AFTConv, heads=heads, kernel=kernel), kwargs)


@register_model
def metaformer_s12_linear_attention(pretrained: bool = False, head_dim: int = 32, **kwargs: Any) -> MixerMetaFormer:
    """PoolFormer-S12 (arXiv 2111.11418) with linear attention in place of pooling."""
    return _metaformer(
        "metaformer_s12_linear_attention", pretrained, partial(LinearAttention, head_dim=head_dim), kwargs
    )
