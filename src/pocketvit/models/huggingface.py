"""Image classifiers from Hugging Face transformers (ViTForImageClassification and its kin), as our models."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .. import torchvision_repair  # noqa: F401
from ..errors import BadInput
from ..hub import from_hub
from ..types import InputSpec
from .model import Model

# PIL's resampling codes as transformers stores them
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


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
        processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False).to_dict()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if found[kind]:
            keys = sorted(map(str, found[kind]))
            raise BadInput(
                f"The weights of {name} have {kind.replace('_', ' ')}: {keys[0]} ({len(keys)} in all); "
                "it is not a finished classifier."
            )
    labels = tuple(str(config.id2label[i]) for i in range(config.num_labels))
    return Model(
        name=name,
        module=Logits(model.eval()),
        spec=_spec(config, processor, labels),
        trained=True,
        classes=len(labels),
    )


@contextmanager
def _from_directory(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        first = str(e).splitlines()[0]
        raise BadInput(f"{name} cannot be loaded: {first} Weights must be safetensors; a pickle is not read.") from e


def _spec(config: Any, processor: dict[str, Any], labels: tuple[str, ...]) -> InputSpec:
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
    else:
        height = width = config.image_size
        crop_mode, crop_pct = "squash", 1.0
    normalised = processor.get("do_normalize", True)
    return InputSpec(
        size=(getattr(config, "num_channels", 3), height, width),
        mean=tuple(processor["image_mean"]) if normalised else (0.0, 0.0, 0.0),
        std=tuple(processor["image_std"]) if normalised else (1.0, 1.0, 1.0),
        interpolation=_RESAMPLE[int(processor.get("resample", 2))],
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        labels=labels,
    )
