"""Image classifiers from Hugging Face transformers (ViTForImageClassification and its kin), as our models."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import torchvision_repair  # noqa: F401 - before timm

# isort: split
import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor, nn

from ..errors import BadInput
from ..hub import from_hub
from ..types import InputSpec
from .model import Model

# PIL's resampling codes as transformers stores them
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}


class Logits(nn.Module):
    """A transformers classifier that returns its logits (N, classes) and nothing else."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        """Logits (N, classes) of normalised images (N, C, H, W)."""
        return self.model(pixel_values=image).logits


def create_huggingface(name: str) -> Model:
    """Load `hf:org/name` or `hf:DIRECTORY` with transformers; only safetensors weights, no code from the hub.

    Raises BadInput when the extra is missing, there is no network, or weights are missing or left over.
    """
    if importlib.util.find_spec("transformers") is None:
        raise BadInput(f"{name} needs transformers: pip install 'pocketvit[hf]'.")
    from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageClassification

    source = name.removeprefix("hf:")
    with _from_directory(name) if Path(source).is_dir() else from_hub(name):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        try:
            model, found = AutoModelForImageClassification.from_pretrained(
                source, config=config, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except ValueError as e:
            raise BadInput(f"{name} is not an image classifier: {str(e).splitlines()[0]}") from e
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            keys = sorted(map(str, found[kind]))
            raise BadInput(
                f"The weights of {name} have {kind.replace('_', ' ')}: {keys[0]} ({len(keys)} in all); "
                "it is not a finished classifier."
            )
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    spec = _spec(name, config, processor.to_dict(), labels)
    _check_spec(name, spec, processor)
    return Model(name=name, module=Logits(model.eval()), spec=spec, trained=True, classes=len(labels))


@contextmanager
def _from_directory(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        first = str(e).splitlines()[0]
        raise BadInput(f"{name} cannot be loaded: {first} Weights must be safetensors; a pickle is not read.") from e


def _spec(name: str, config: Any, processor: dict[str, Any], labels: tuple[str, ...]) -> InputSpec:
    """Translate an image processor's settings to timm's words: an exact resize is crop_mode 'squash'."""
    size = processor.get("size") or {}
    crop = processor.get("crop_size") if processor.get("do_center_crop") else None
    if "height" in size:
        height, width = size["height"], size["width"]
        crop_mode, crop_pct = "squash", 1.0
        if crop:
            crop_pct = crop["height"] / height
            height, width = crop["height"], crop["width"]
    elif "shortest_edge" in size:
        edge = size["shortest_edge"]
        height, width = (crop["height"], crop["width"]) if crop else (edge, edge)
        crop_mode, crop_pct = "center", height / edge
        if processor.get("crop_pct") and not crop:  # ConvNeXT's: cropped below 384 pixels, squashed from there on
            crop_mode, crop_pct = ("center", processor["crop_pct"]) if edge < 384 else ("squash", 1.0)
    else:
        raise BadInput(f"The image processor of {name} does not say what size it makes images: {size or 'no size'}.")
    resample = processor.get("resample")
    if resample not in _RESAMPLE:
        raise BadInput(f"The image processor of {name} resizes in an unknown way: resample {resample}.")
    normalised = processor.get("do_normalize", True)
    mean = processor.get("image_mean") if normalised else (0.0, 0.0, 0.0)
    std = processor.get("image_std") if normalised else (1.0, 1.0, 1.0)
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        raise BadInput(f"The image processor of {name} normalises without an image_mean and an image_std.")
    return InputSpec(
        size=(getattr(config, "num_channels", 3), height, width),
        mean=tuple(mean),
        std=tuple(std),
        interpolation=_RESAMPLE[resample],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        labels=labels,
    )


def _check_spec(name: str, spec: InputSpec, processor: Any) -> None:
    """Raise BadInput unless the processor itself prepares an image as `spec` says.

    Processors scale, flip, pad and crop by settings of their own; an image tells whether any of them was missed.
    Both resample it alike: transformers' own code lacks some of the filters.
    """
    across = np.linspace(0, 255, 3 * 64, dtype=np.uint8)[None].repeat(2 * 64, axis=0)
    down = np.linspace(0, 255, 2 * 64, dtype=np.uint8)[:, None].repeat(3 * 64, axis=1)
    image = Image.fromarray(np.stack([across, down, 255 - across], axis=2))
    transform = create_transform(
        input_size=spec.size,
        interpolation="bicubic",
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    ours = transform(image)
    try:
        theirs = processor(image, resample=Image.Resampling.BICUBIC, return_tensors="pt")["pixel_values"][0]
    except (TypeError, ValueError) as e:
        raise BadInput(f"The image processor of {name} cannot prepare an image: {e}") from e
    # where to round is each library's own choice: two levels in 255 of a pixel, and one pixel of this slope
    allowed = 2 + 256 / min(spec.size[1:])
    scale = 255 * torch.tensor(spec.std).view(-1, 1, 1)
    differs = float(((ours - theirs) * scale).abs().max()) if ours.shape == theirs.shape else float("inf")
    if not differs <= allowed:
        raise BadInput(
            f"{name} prepares images in a way that is not understood here: its {type(processor).__name__} and the "
            f"settings read from it differ by {differs:.0f} of 255 levels."
        )
