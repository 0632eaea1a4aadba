from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketvit.errors import BadInput
from pocketvit.models import EagerRunner, Model, create, deployable, save, weights_sha256

LABELS = tuple("abcdefghij")


@pytest.fixture(scope="module")
def model() -> Model:
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


def test_config_values_are_json(checkpoint: Path) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["architecture"] == "test_vit"
    assert config["label_names"] == list(LABELS)
    shutil.rmtree(checkpoint)


def test_img_size_is_the_input_size_of_a_model_that_takes_any(tmp_path: Path) -> None:
    flexible = create("edgenext_xx_small", num_classes=10, img_size=(64, 96))
    assert flexible.spec.size == (3, 64, 96)
    save(flexible, tmp_path / "checkpoint")
    assert create(str(tmp_path / "checkpoint")).spec == flexible.spec
    assert create(str(tmp_path / "checkpoint"), img_size=128).spec.size == (3, 128, 128)
    with pytest.raises(BadInput, match="a height and a width"):
        create("edgenext_xx_small", img_size=(64, 96, 3))
    assert create("poolformer_s12", img_size=64).spec.size == (3, 64, 64)


def test_features_are_no_classifier() -> None:
    with pytest.raises(BadInput, match="no classifier"):
        create("test_vit", features_only=True)


SMALL = {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 2}


def test_random_weights_follow_from_the_name_and_the_seed_alone() -> None:
    hashes = []
    for seed in (0, 0, 1):
        torch.rand(3)
        state = torch.get_rng_state()
        hashes.append(weights_sha256(create("pocket_deit_patch4_32", seed=seed, **SMALL).module))
        assert torch.equal(torch.get_rng_state(), state), "creating a model drew from the caller's random numbers"
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.parametrize("name", ["pocket_deit_patch4_32", "pocket_deit_distilled_patch4_32"])
def test_a_checkpoint_gets_a_head_for_other_classes(name: str, tmp_path: Path) -> None:
    start = dataclasses.replace(create(name, num_classes=10, labels=LABELS, seed=5, **SMALL), trained=True)
    save(start, tmp_path / "ten")
    weights = load_file(tmp_path / "ten" / "model.safetensors")
    heads = {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
    path = f"{name}@{tmp_path / 'ten' / 'model.safetensors'}"
    for given, arguments in ((str(tmp_path / "ten"), {}), (path, SMALL)):
        found = create(given, num_classes=3, **arguments)
        assert (found.classes, found.trained, found.spec.labels) == (3, False, ())
        tensors = found.module.state_dict()
        assert all(torch.equal(tensors[n], weights[n]) for n in weights.keys() - heads)
        assert {tensors[n].shape[0] for n in weights.keys() & heads} == {3}
        assert create(given, num_classes=10, **arguments).trained
        assert found.body == create(given, num_classes=4, **arguments).body, "the body depends on the head"
    save(found, tmp_path / "three")
    assert create(str(tmp_path / "three")).spec.labels == ()
    damaged = {k: v for k, v in weights.items() if k != "norm.bias"}
    save_file(damaged, tmp_path / "ten" / "model.safetensors")
    with pytest.raises(BadInput, match=r"lacks norm\.bias"):
        create(str(tmp_path / "ten"), num_classes=3)


def test_a_head_that_nobody_asked_to_replace_must_fit(checkpoint: Path) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    few = weights | {"head.weight": weights["head.weight"][:4].clone(), "head.bias": weights["head.bias"][:4].clone()}
    save_file(few, checkpoint / "model.safetensors")
    with pytest.raises(BadInput, match=r"does not fit: head\.bias is"):
        create(str(checkpoint))


@pytest.mark.parametrize(
    ("name", "arguments", "size"),
    [
        ("deit_tiny_patch16_224", {"img_size": 128, "depth": 1}, (3, 128, 128)),
        ("vit_tiny_patch16_224", {"img_size": [32, 64], "depth": 1}, (3, 32, 64)),
        ("test_vit", {"img_size": 32}, (3, 32, 32)),
        ("pocket_deit_patch4_32", {**SMALL, "img_size": 64}, (3, 64, 64)),
        ("pocket_regnety_32", {}, (3, 32, 32)),
    ],
)
def test_the_input_size_follows_the_model(name: str, arguments: dict, size: tuple, tmp_path: Path) -> None:
    made = create(name, num_classes=2, **arguments)
    save(made, tmp_path / "saved")
    for model in (made, create(str(tmp_path / "saved"))):
        assert model.spec.size == size
        assert EagerRunner(model)(np.zeros((1, *size), np.float32)).shape == (1, 2)


def test_checkpoints_are_named_after_their_directories(checkpoint: Path, tmp_path: Path, monkeypatch) -> None:
    """An '@' in a directory's name does not make it a weights file."""
    shutil.copytree(checkpoint, tmp_path / "vit@v2")
    assert [create(str(tmp_path / name)).name for name in ("vit", "vit@v2")] == ["vit", "vit@v2"]
    monkeypatch.chdir(tmp_path / "vit@v2")
    assert create(".").name == "vit@v2"


def test_only_timm_architectures_are_saved(model: Model, tmp_path: Path) -> None:
    module = torch.nn.Flatten()
    module.pretrained_cfg = {"mean": (0.5,), "std": (0.5,)}  # training puts these on any teacher
    with pytest.raises(BadInput, match="test_vit is not a timm architecture"):
        save(dataclasses.replace(model, module=module), tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_running_a_model_leaves_the_number_of_threads_alone(model: Model) -> None:
    before = torch.get_num_threads()
    inside = []
    runner = EagerRunner(model, threads=before + 1)
    runner._module.register_forward_hook(lambda *_: inside.append(torch.get_num_threads()))
    runner(np.zeros((1, 3, 32, 32), np.float32))
    assert (inside, torch.get_num_threads()) == ([before + 1], before)
