from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketvit.errors import BadInput
from pocketvit.models import EagerRunner, Model, create, deployable, save, weights_sha256
from pocketvit.models.resolve import list_models
from pocketvit.registry import close_matches

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    return create("test_vit", num_classes=10, img_size=32, labels=LABELS)


@pytest.fixture
def checkpoint(model: Model, tmp_path: Path) -> Path:
    save(model, tmp_path / "vit")
    return tmp_path / "vit"


def test_an_untrained_model_says_so(model: Model) -> None:
    assert model.display_name == "test_vit (UNTRAINED)"
    assert "UNTRAINED" in EagerRunner(model).name


def test_saved_and_loaded_is_the_same_model_bit_for_bit(model: Model, checkpoint: Path) -> None:
    again = create(str(checkpoint))
    image = np.random.default_rng(0).random((2, 3, 32, 32), dtype=np.float32)
    assert (EagerRunner(again)(image) == EagerRunner(model)(image)).all()
    assert weights_sha256(again.module) == weights_sha256(model.module)
    assert again.spec == model.spec
    assert again.spec.labels == LABELS
    assert not again.trained, "random weights do not become trained by being saved"


def test_timm_loads_our_checkpoint(checkpoint: Path, model: Model) -> None:
    import timm

    loaded = timm.create_model(f"local-dir:{checkpoint}", pretrained=True)
    assert weights_sha256(loaded) == weights_sha256(model.module)


def test_a_weights_file_gives_the_number_of_classes(checkpoint: Path, model: Model) -> None:
    found = create(f"test_vit@{checkpoint / 'model.safetensors'}", img_size=32)
    assert found.classes == 10
    assert found.trained
    assert weights_sha256(found.module) == weights_sha256(model.module)


def test_deployable_normalises_inside_and_leaves_the_model_alone(model: Model) -> None:
    before = weights_sha256(model.module)
    image = torch.rand(1, 3, 32, 32)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.spec.mean, model.spec.std))
    with torch.no_grad():
        expected = model.module.eval()((image - mean) / std)
        assert torch.equal(deployable(model)(image), expected)
        for parameter in deployable(model).parameters():
            parameter.zero_()
    assert weights_sha256(model.module) == before


def test_a_distilled_model_averages_its_heads() -> None:
    model = create("pocket_deit_distilled_patch4_32", num_classes=10)
    model.module.set_distilled_training(True)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        main, distilled = model.module.train()((image - 0.5) / 0.5)
        averaged = deployable(model)(image)
    # the two paths differ in nothing but dropout, which these models do not have
    assert torch.allclose(averaged, (main + distilled) / 2, atol=1e-5), (averaged, main, distilled)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("deit_tiny_patch16_223", "no model called 'deit_tiny_patch16_223'. Did you mean deit_tiny_patch16_224"),
        ("test_vit.nothing", "no weights called 'test_vit.nothing'. Did you mean test_vit.r160_in1k"),
        ("no/such/dir", "no checkpoint directory no/such/dir"),
        ("test_vit@no.safetensors", "no weights file no.safetensors"),
        ("tst_vit@no.safetensors", "no model called 'tst_vit'"),
    ],
)
def test_unknown_names(name: str, words: str) -> None:
    with pytest.raises(BadInput, match=words.replace(".", r"\.")):
        create(name)


def test_a_model_argument_that_does_not_exist_is_a_sentence() -> None:
    with pytest.raises(BadInput, match="test_vit cannot be built with img_sise=32"):
        create("test_vit", img_sise=32)


def test_missing_extra_and_misshapen_weights_are_named(checkpoint: Path) -> None:
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    cases = {
        "lacks norm.bias": {k: v for k, v in weights.items() if k != "norm.bias"},
        "has unknown surprise": weights | {"surprise": torch.zeros(1)},
        "does not fit: norm.bias is": weights | {"norm.bias": torch.zeros(3)},
    }
    for words, changed in cases.items():
        save_file(changed, path)
        with pytest.raises(BadInput, match=words):
            create(str(checkpoint))


class Bomb:
    """Unpickling this creates a file: proof that code ran."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path: Path, name: str) -> None:
    torch.save({"a": Bomb(tmp_path / "ran")}, tmp_path / name)
    with pytest.raises(BadInput, match="is a pickle, which can run code"):
        create(f"test_vit@{tmp_path / name}")
    assert not (tmp_path / "ran").exists()


def test_a_directory_whose_weights_are_a_pickle_is_refused(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    torch.save({}, checkpoint / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin, a pickle"):
        create(str(checkpoint))


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"\xff" * 64])
def test_a_damaged_weights_file_is_refused(checkpoint: Path, damage) -> None:
    path = checkpoint / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BadInput, match="not a readable safetensors file"):
        create(str(checkpoint))


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not valid JSON"), ("[]", "does not hold a JSON object"), ("{}", "names no timm architecture")],
)
def test_a_damaged_config_is_refused(checkpoint: Path, text: str, words: str) -> None:
    (checkpoint / "config.json").write_text(text)
    with pytest.raises(BadInput, match=words):
        create(str(checkpoint))


def test_a_checkpoint_does_not_overwrite_something_else(model: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(BadInput, match="holds something that is not a checkpoint"):
        save(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_pretrained_without_network_fails_at_once_and_not_to_random_weights(monkeypatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nothing listens on the discard port
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="not in the local cache, and the Hugging Face Hub cannot be reached"):
        create("test_vit", pretrained=True, cache_dir=str(tmp_path))
    assert not constants.HF_HUB_OFFLINE


def test_labels_must_match_the_classes() -> None:
    with pytest.raises(BadInput, match="2 labels were given for test_vit, which has 10 classes"):
        create("test_vit", num_classes=10, labels=("a", "b"))


def test_imagenet_heads_are_named() -> None:
    assert create("test_vit").spec.labels[281].startswith("tabby")


def test_models_can_be_listed_ours_first() -> None:
    found = list_models("*deit*")
    assert found[0]["ours"]
    assert {"name": "deit_tiny_patch16_224", "ours": False, "pretrained": True} in found
    assert close_matches("deit_tinny", [m["name"] for m in found])


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


def test_a_huggingface_pickle_is_refused(huggingface: Path, tmp_path: Path) -> None:
    (huggingface / "model.safetensors").unlink()
    torch.save({"a": Bomb(tmp_path / "ran")}, huggingface / "pytorch_model.bin")
    with pytest.raises(BadInput, match="safetensors"):
        create(f"hf:{huggingface}")
    assert not (tmp_path / "ran").exists()


def test_a_huggingface_directory_named_without_its_prefix_is_explained(huggingface: Path) -> None:
    with pytest.raises(BadInput, match=f"use hf:{huggingface}"):
        create(str(huggingface))


def test_config_values_are_json(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architecture"] == "test_vit"
    assert config["label_names"] == list(LABELS)
    shutil.rmtree(checkpoint)
