"""Hugging Face classifiers: their own logits and preprocessing, or a sentence where that cannot be had."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketvit.errors import BadInput
from pocketvit.models import EagerRunner, create
from pocketvit.training import train_checkpoint


@pytest.fixture
def huggingface(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        id2label={0: "cat", 1: "dog", 2: "cow"},
        label2id={"cat": 0, "dog": 1, "cow": 2},
    )
    torch.manual_seed(0)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "hf")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}, resample=3).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def test_a_huggingface_vit_gives_its_own_logits_and_preprocessing(huggingface: Path) -> None:
    import transformers
    from PIL import Image

    from pocketvit.data import preprocess

    model = create(f"hf:{huggingface}")
    assert (model.spec.labels, model.classes, model.trained) == (("cat", "dog", "cow"), 3, True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8))
    processor = transformers.ViTImageProcessor.from_pretrained(huggingface)
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    reference = transformers.ViTForImageClassification.from_pretrained(huggingface).eval()
    with torch.no_grad():
        expected = reference(pixel_values=pixels).logits.numpy()
    ours = EagerRunner(model)(preprocess(model.spec)(picture)[None].astype(np.float32) / 255)
    # torchvision and PIL round a resized pixel differently by at most one level in 255, before a network of order 1
    assert np.abs(ours - expected).max() < 0.02, f"largest difference {np.abs(ours - expected).max():.4f}"


def test_a_huggingface_model_with_a_missing_head_is_refused(huggingface: Path) -> None:
    path = huggingface / "model.safetensors"
    weights = {k: v for k, v in load_file(path).items() if not k.startswith("classifier")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"missing keys: classifier\.bias"):
        create(f"hf:{huggingface}")


class Bomb:
    """Unpickling this creates a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


def test_a_huggingface_pickle_is_refused(huggingface: Path, tmp_path: Path) -> None:
    (huggingface / "model.safetensors").unlink()
    torch.save({"a": Bomb(tmp_path / "ran")}, huggingface / "pytorch_model.bin")
    with pytest.raises(BadInput, match="safetensors"):
        create(f"hf:{huggingface}")
    assert not (tmp_path / "ran").exists()


def test_a_huggingface_directory_named_without_its_prefix_is_explained(huggingface: Path) -> None:
    with pytest.raises(BadInput, match=f"use hf:{huggingface}"):
        create(str(huggingface))


def test_a_huggingface_model_cannot_be_trained(huggingface: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="is not of a timm architecture, so it can be exported but not trained"):
        train_checkpoint(f"hf:{huggingface}", "digits", tmp_path / "out", settings=["drop_path=0"])
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def change(huggingface: Path, **settings: object) -> None:
    path = huggingface / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"resample": 9}, "resizes in an unknown way: resample 9."),
        ({"size": {"longest_edge": 32}}, "does not say what size it makes images: {'longest_edge': 32}."),
        ({"image_mean": None, "image_processor_type": "MobileViTImageProcessor", "do_normalize": True}, "image_mean"),
        ({"do_rescale": False}, "prepares images in a way that is not understood here: its ViTImageProcessor"),
        ({"rescale_factor": 1 / 127.5}, "not understood here"),
        ({"do_resize": False}, "not understood here"),
        ({"image_processor_type": "EfficientNetImageProcessor"}, "not understood here: its EfficientNet"),
        ({"image_processor_type": "EfficientNetImageProcessor", "rescale_offset": True}, "not understood here"),
        ({"image_processor_type": "MobileViTImageProcessor", "do_flip_channel_order": True}, "not understood here"),
    ],
    ids=str,
)
def test_preprocessing_that_is_not_understood_is_refused(huggingface: Path, settings: dict, words: str) -> None:
    change(huggingface, **settings)
    with pytest.raises(BadInput, match=re.escape(words)):
        create(f"hf:{huggingface}")


@pytest.mark.parametrize(
    ("settings", "crop_mode", "crop_pct", "interpolation"),
    [
        ({"resample": 4}, "squash", 1.0, "box"),
        ({"resample": 5}, "squash", 1.0, "hamming"),
        ({"do_normalize": False}, "squash", 1.0, "bicubic"),
        (
            {"size": {"shortest_edge": 32}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"},
            "center",
            0.875,
            "bicubic",
        ),
        (
            {
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
                "image_processor_type": "CLIPImageProcessor",
            },
            "center",
            0.8,
            "bicubic",
        ),
    ],
    ids=str,
)
def test_preprocessing_is_translated(
    huggingface: Path, settings: dict, crop_mode: str, crop_pct: float, interpolation: str
) -> None:
    change(huggingface, **settings)
    spec = create(f"hf:{huggingface}").spec
    assert (spec.size, spec.crop_mode, spec.crop_pct) == ((3, 32, 32), crop_mode, crop_pct)
    assert spec.interpolation == interpolation
