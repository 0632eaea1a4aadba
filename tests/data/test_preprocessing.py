"""What reaches the model is what timm would have fed it, to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvit import torchvision_repair  # noqa: F401
from pocketvit.data import batches, check_classes, open_data, preprocess, sample
from pocketvit.errors import BadInput
from pocketvit.types import InputSpec

# as pretrained: sizes, interpolations, means and crops all differ
TIMM_MODELS = [
    "deit_tiny_patch16_224.fb_in1k",
    "levit_128s.fb_dist_in1k",
    "mobilevit_xxs.cvnets_in1k",
    "edgenext_xx_small.in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "vit_base_patch16_siglip_224.webli",
    "convnext_tiny.fb_in22k",
    "beit_base_patch16_384.in22k_ft_in22k_in1k",
    "tiny_vit_21m_512.dist_in22k_ft_in1k",
]
ODD = [
    InputSpec(size=(3, 96, 160), crop_mode="center", crop_pct=0.9, interpolation="bilinear"),
    InputSpec(size=(3, 160, 96), crop_mode="squash", crop_pct=1.0),
    InputSpec(size=(3, 64, 64), crop_mode="border", crop_pct=0.95, mean=(0.2, 0.5, 0.8), std=(0.5, 0.5, 0.5)),
    InputSpec(size=(3, 48, 80), crop_mode="border", crop_pct=0.8, interpolation="lanczos"),
    InputSpec(size=(3, 33, 33), interpolation="nearest"),
]


def assert_same_as_timm(spec: InputSpec, images: list[Image.Image]) -> None:
    from timm.data import create_transform

    theirs = create_transform(
        input_size=spec.size,
        is_training=False,
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
        crop_mode=spec.crop_mode,
    )
    ours = preprocess(spec)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (spec.mean, spec.std))
    for image in images:
        pixels = ours(image)
        assert (pixels.dtype, pixels.shape) == (np.uint8, spec.size)
        normalised = (pixels.astype(np.float32) / np.float32(255) - mean) / std
        expected = theirs(image).numpy()
        error = np.abs(normalised - expected).max()
        assert error == 0, f"{spec}: off by {error} on an image of {image.size}"


@pytest.fixture(scope="module")
def shapes(crops: list[Image.Image]) -> list[Image.Image]:
    """Wide, tall, square, smaller than the model's input, grey in content."""
    large = crops[15]
    return [large.crop((0, 0, 400, 211)), large.crop((0, 0, 123, 400)), crops[0], crops[30].resize((20, 17))]


@pytest.mark.parametrize("name", TIMM_MODELS)
def test_equals_timm_for_its_pretrained_models(name: str, shapes: list[Image.Image]) -> None:
    from timm.models import get_pretrained_cfg

    cfg = get_pretrained_cfg(name)
    spec = InputSpec(
        size=cfg.input_size,
        mean=cfg.mean,
        std=cfg.std,
        interpolation=cfg.interpolation,
        crop_pct=cfg.crop_pct,
        crop_mode=cfg.crop_mode,
    )
    assert_same_as_timm(spec, shapes)


@pytest.mark.parametrize("spec", ODD, ids=lambda spec: f"{spec.crop_mode}-{spec.size[1]}x{spec.size[2]}")
def test_equals_timm_for_odd_sizes_and_crops(spec: InputSpec, shapes: list[Image.Image]) -> None:
    assert_same_as_timm(spec, shapes)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (InputSpec(size=(1, 28, 28)), "only RGB"),
        (InputSpec(size=(3, 0, 28)), r"\(3, 0, 28\)"),
        (InputSpec(crop_pct=0.0), "crop_pct is 0"),
        (InputSpec(crop_mode="centre"), "'centre'.*Did you mean center"),
        (InputSpec(interpolation="bicubik"), "'bicubik'.*Did you mean bicubic"),
    ],
)
def test_spec_that_timm_would_misread_is_refused(spec: InputSpec, match: str) -> None:
    with pytest.raises(BadInput, match=match):
        preprocess(spec)


SMALL = InputSpec(size=(3, 32, 32), crop_pct=1.0)


def test_batches_hold_every_image_once_in_order() -> None:
    data = open_data("digits", "test")
    found = list(batches(data, SMALL, 50))
    assert [len(images) for images, _ in found] == [50] * 7 + [10]
    assert np.concatenate([targets for _, targets in found]).tolist() == data.targets.tolist()
    images = np.concatenate([images for images, _ in found])
    assert (images.dtype, images.shape) == (np.float32, (360, 3, 32, 32))
    for i in (0, 123, 359):
        expected = np.asarray(data[i][0]).transpose(2, 0, 1) / np.float32(255)
        np.testing.assert_array_equal(images[i], expected)


def test_limit_takes_from_the_classes_in_turn(pets: Path) -> None:
    data = open_data(f"folder:{pets}")  # sorted by class: the first nine are all dogs
    targets = np.concatenate([targets for _, targets in batches(data, SMALL, 4, limit=9)])
    assert np.bincount(targets).tolist() == [3, 3, 3]
    assert sum(len(t) for _, t in batches(data, SMALL, 100, limit=1000)) == 40


def test_sample_is_balanced_seeded_and_in_unit_range() -> None:
    data = open_data("digits", "train")
    chosen = data.take(40)
    assert np.bincount(chosen.targets).tolist() == [4] * 10
    assert len(set(chosen.rows)) == 40
    first, again, other = (sample(data, SMALL, 40, seed=seed) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((40, 3, 32, 32), np.float32)
    assert (first.min(), first.max()) == (0, 1), "the digits go from black to white"
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert chosen.digest() == data.take(40).digest() != data.take(40, seed=1).digest()
    assert len(sample(open_data("photos"), SMALL, 100)) == 32


def test_less_than_one_image_is_refused() -> None:
    data = open_data("photos")
    with pytest.raises(BadInput, match="0 images"):
        sample(data, SMALL, 0)
    with pytest.raises(BadInput, match="batch of 0"):
        batches(data, SMALL, 0)


def test_check_classes_names_both_numbers() -> None:
    data = open_data("digits", "test")
    check_classes(10, data)
    with pytest.raises(BadInput, match=r"1000 classes but digits \(test\) has 10"):
        check_classes(1000, data)
