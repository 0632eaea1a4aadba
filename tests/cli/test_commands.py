"""The commands on real work: a trained checkpoint becomes files that are proven, scored, timed and used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

FILES = {"onnx:fp32": "vit_fp32.onnx", "openvino:w8a8": "vit_w8a8.xml", "coreml:fp16": "vit_fp16.mlpackage"}


@pytest.fixture(scope="session")
def exported(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the checkpoint for three targets, exported as the command does."""
    from pocketvit.artifacts import export, proof_images
    from pocketvit.models import create

    out = tmp_path_factory.mktemp("exported")
    model = create(str(checkpoint))
    images = proof_images(model.spec, "digits")
    for text, name in FILES.items():
        target, _, precision = text.partition(":")
        export(model, target, out / name, precision, images=images)
    return out


def test_export_reports_what_it_made(cli, checkpoint: Path, tmp_path: Path) -> None:
    found = cli("export", checkpoint, "--to", "onnx", "--to", "onnx:w8a8-dynamic", "--data", "digits", "--json").json
    for entry, precision in zip(found["files"], ("fp32", "w8a8-dynamic"), strict=True):
        path = tmp_path / "exported" / f"vit_{precision}.onnx"
        assert entry["file"] == f"exported/vit_{precision}.onnx"
        assert entry["size_bytes"] == path.stat().st_size
        assert entry["ok"], entry
    assert found["files"][1]["quantized"]["layers"] > 0
    assert {p.name for p in (tmp_path / "exported").iterdir()} == {"vit_fp32.onnx", "vit_w8a8-dynamic.onnx"}


def test_a_file_of_something_else_is_not_overwritten(cli, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.onnx").write_text("precious")
    found = cli("export", checkpoint, "--to", "onnx", "-o", "mine.onnx", code=2)
    assert "was not made by pocketvit" in found.err
    assert (tmp_path / "mine.onnx").read_text() == "precious"


def test_an_export_below_its_floor_fails_with_the_number_and_leaves_nothing(
    cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketvit import types

    monkeypatch.setitem(types._FLOOR_DB, types.Precision.FP32, 500.0)
    found = cli("export", checkpoint, "--to", "onnx", "--data", "digits", "--json", code=1).json
    assert "below the 500 dB floor of fp32" in found["files"][0]["check"]
    assert not list((tmp_path / "exported").iterdir())


@pytest.mark.parametrize("text", ["onnx:fp32", "openvino:w8a8"])
def test_verify_passes_for_the_model_a_file_was_made_from(cli, checkpoint: Path, exported: Path, text: str) -> None:
    found = cli("verify", exported / FILES[text], "--against", checkpoint, "--data", "digits", "--json").json
    assert found["ok"], found
    assert found["agreement"]["images"] == 64
    assert found["agreement"]["sqnr_db"] >= found["floor_db"], found
    assert found["golden"]["images"] == 4


def test_verify_proves_a_core_ml_package_without_a_mac(cli, checkpoint: Path, exported: Path) -> None:
    found = cli("verify", exported / FILES["coreml:fp16"], "--against", checkpoint, "--data", "digits", "--json").json
    assert found["agreement"]["evidence"] == found["golden"]["evidence"] == "interpreted"
    assert found["agreement"]["sqnr_db"] >= found["floor_db"], found
    assert "its fp32 twin follows the model" in found["proof"]
    assert "the file is its twin" in found["proof"]
    text = cli("verify", exported / FILES["coreml:fp16"], "--against", checkpoint, "--data", "digits").out
    assert "interpreted" in text
    assert "the file is its twin" in " ".join(text.split())


def test_verify_fails_for_other_weights(cli, exported: Path, tmp_path: Path) -> None:
    from pocketvit.models import create, save

    save(create("pocket_deit_patch4_32", num_classes=10), tmp_path / "other")
    found = cli(
        "verify", exported / FILES["onnx:fp32"], "--against", "other", "--data", "digits", "--json", code=1
    ).json
    assert "made from other weights" in found["failures"][0]
    assert "below the 80 dB floor" in found["failures"][1]


def test_verify_notices_a_file_changed_after_export(cli, checkpoint: Path, exported: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import numpy_helper

    model = onnx.load(exported / FILES["onnx:fp32"])
    tensor = max(model.graph.initializer, key=lambda t: np.prod(t.dims))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, tmp_path / "changed.onnx")
    found = cli("verify", "changed.onnx", "--against", checkpoint, "--data", "digits", "--json", code=1).json
    assert len(found["failures"]) == 2, "both the model and the golden vectors must notice"


def test_eval_measures_the_file_itself_on_every_image(cli, checkpoint: Path, exported: Path) -> None:
    model = cli("eval", checkpoint, "--data", "digits", "--json").json
    file = cli("eval", exported / FILES["onnx:fp32"], "--data", "digits", "--json").json
    assert file["accuracy"] == model["accuracy"]
    assert file["accuracy"]["images"] == 360
    assert file["accuracy"]["evidence"] == "measured"


def test_eval_of_a_core_ml_package_is_of_the_file_and_says_how_it_is_known(cli, checkpoint, exported: Path) -> None:
    model = cli("eval", checkpoint, "--data", "digits", "--json").json["accuracy"]
    found = cli("eval", exported / FILES["coreml:fp16"], "--data", "digits", "--json").json["accuracy"]
    assert (found["images"], found["evidence"]) == (360, "interpreted")
    assert abs(found["top1"] - model["top1"]) <= 0.01, (found, model)


def test_our_own_package_can_be_interpreted_in_other_arithmetic_and_an_onnx_file_not(cli, exported: Path) -> None:
    command = ("--data", "digits", "--split", "val", "--arithmetic", "fp32", "--json")
    found = cli("eval", exported / FILES["coreml:fp16"], *command).json
    assert found["name"] == "coreml:fp16 vit, in fp32 arithmetic"
    refused = cli("eval", exported / FILES["onnx:fp32"], *command, code=2).json["error"]
    assert refused.startswith("onnx:fp32 vit computes as its own runtime does")


def test_a_package_that_is_interpreted_is_not_timed(cli, checkpoint: Path, exported: Path) -> None:
    found = cli("bench", checkpoint, exported / FILES["coreml:fp16"], code=2)
    assert "is interpreted on this machine" in " ".join(found.err.split())


@pytest.mark.parametrize(("mean", "std"), [("0.5", "0.5"), ("a,b,c", "1,1,1"), ("0,0,0", "1,0,1")])
def test_a_normalisation_is_three_numbers_each(cli, exported: Path, mean: str, std: str) -> None:
    found = cli("eval", exported / FILES["coreml:fp16"], "--data", "digits", "--mean", mean, "--std", std, code=2)
    assert "three numbers" in " ".join(found.err.split())


@pytest.mark.parametrize(("given", "missing"), [("--mean", "--std"), ("--std", "--mean")])
def test_half_a_normalisation_names_the_other_half(cli, exported: Path, given: str, missing: str) -> None:
    found = cli("eval", exported / FILES["coreml:fp16"], "--data", "digits", given, "1,1,1", "--json", code=2)
    assert found.json["error"] == f"{given} needs {missing}."


def test_a_file_with_a_normalisation_of_its_own_takes_no_other(cli, exported: Path) -> None:
    given = ("--mean", "0,0,0", "--std", "1,1,1")
    found = cli("eval", exported / FILES["coreml:fp16"], "--data", "digits", *given, code=2)
    assert "carries its own mean and std" in " ".join(found.err.split())
    found = cli("eval", "test_vit", "--data", "digits", *given, "--json", code=2)
    assert found.json["error"] == "test_vit is a model with its own mean and std; leave them out."


def test_bench_interleaves_and_profiles(cli, checkpoint: Path, exported: Path) -> None:
    sources = [checkpoint, exported / FILES["onnx:fp32"], exported / FILES["openvino:w8a8"]]
    found = cli("bench", *sources, "--rounds", 3, "--profile", "--json").json
    assert [c["latency"]["runs"] for c in found["candidates"]] == [3, 3, 3]
    for candidate in found["candidates"]:
        assert candidate["profile"][0]["ms"] >= candidate["profile"][-1]["ms"] >= 0
    assert found["environment"]["threads"] == "2"


def test_classify_names_digits_with_a_model_and_with_its_file(cli, checkpoint: Path, exported: Path, tmp_path) -> None:
    from pocketvit.data import open_data

    test = open_data("digits", "test")
    names = []
    for i in range(8):
        picture, target = test[i]
        picture.save(tmp_path / f"{i}.png")
        names.append(test.labels[target])
    paths = [f"{i}.png" for i in range(8)]
    answers = [
        cli("classify", *paths, "--model", source, "--json").json["images"]
        for source in (checkpoint, exported / FILES["onnx:fp32"])
    ]
    top = [[image["classes"][0]["name"] for image in answer] for answer in answers]
    assert top[0] == top[1]
    right = sum(a == b for a, b in zip(top[0], names, strict=True))
    assert right >= 4, f"{right} of 8 digits named; chance is 0.8"
    assert sum(c["probability"] for c in answers[0][0]["classes"]) <= 1 + 1e-6


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "I;16", "P"])
def test_classify_takes_images_of_every_kind(cli, exported: Path, tmp_path: Path, mode: str) -> None:
    grey = Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (48, 1)))
    picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture.save(path)
    found = cli("classify", path, "--model", exported / FILES["onnx:fp32"], "--json").json
    assert len(found["images"][0]["classes"]) == 5


def test_an_untrained_model_says_so_everywhere(cli, exported: Path) -> None:
    assert "UNTRAINED" in cli("info", "test_vit").out
    assert "UNTRAINED" in cli("bench", "test_vit", "--rounds", 1, "--warmup", 0).out
    assert "UNTRAINED" in cli("export", "test_vit", "--to", "onnx").out
    assert "UNTRAINED" in cli("verify", "exported/test_vit_fp32.onnx", "--against", "test_vit").out
    assert "UNTRAINED" not in cli("bench", exported / FILES["onnx:fp32"], "--rounds", 1).out


def test_a_degenerate_model_is_refused_not_judged(cli, tmp_path: Path) -> None:
    import torch

    from pocketvit.models import create, save

    model = create("pocket_deit_patch4_32", num_classes=10)
    with torch.no_grad():
        for parameter in model.module.head.parameters():
            parameter.zero_()
    save(model, tmp_path / "dead")
    found = cli("export", "dead", "--to", "onnx", "--json", code=1).json
    assert "logits are all zero" in json.dumps(found)


def test_output_for_people_is_short_and_noise_goes_to_a_log(cli, checkpoint: Path, exported: Path) -> None:
    outputs = {
        "info": cli("info", checkpoint),
        "models": cli("models", "*vit*"),
        "export": cli("export", checkpoint, "--to", "openvino", "--data", "digits"),
        "eval": cli("eval", exported / FILES["onnx:fp32"], "--data", "digits"),
        "bench": cli("bench", exported / FILES["onnx:fp32"], "--rounds", 2),
        "verify": cli("verify", exported / FILES["onnx:fp32"], "--against", checkpoint, "--data", "digits"),
    }
    for name, found in outputs.items():
        lines = found.out.splitlines() + found.err.splitlines()
        assert len(lines) <= 14, f"{name} prints {len(lines)} lines"
        assert all("Warning" not in line for line in lines), f"{name} lets warnings through"


def test_train_writes_a_checkpoint_that_scores_what_it_said(cli, tmp_path: Path) -> None:
    small = "--arg patch_size=8 --arg depth=1 --arg embed_dim=48 --arg num_heads=2".split()
    plain = "epochs=1 warmup_epochs=0 batch_size=64 repeated_aug=1 lr=0.01 mixup=0 cutmix=0".split()
    settings = [part for setting in plain for part in ("--set", setting)]
    command = ["train", "pocket_deit_patch4_32", "--data", "digits", "--out", "vit", *small, *settings, "--json"]
    found = cli(*command).json
    assert found["test_images"] == 360
    assert len(found["history"]) == 1
    assert cli("eval", "vit", "--data", "digits", "--json").json["accuracy"]["top1"] == found["test_top1"]
    assert "UNTRAINED" not in cli("info", "vit").out
    assert {p.name for p in tmp_path.iterdir()} == {"vit", "cache"}


def test_training_does_not_write_over_something_else(cli, tmp_path: Path) -> None:
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "thesis.tex").write_text("precious")
    found = cli("train", "pocket_deit_patch4_32", "--data", "digits", "--out", "vit", code=2)
    assert "holds something that is not a checkpoint" in found.err


def test_unreadable_images_are_skipped_and_counted_or_refused(cli, checkpoint: Path, tmp_path: Path) -> None:
    from pocketvit.data import open_data

    digits = open_data("digits", "test")
    for i in range(120):
        picture, target = digits[i]
        (tmp_path / "data" / digits.labels[target]).mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "data" / digits.labels[target] / f"{i}.png")
    whole = (tmp_path / "data" / "0").iterdir().__next__().read_bytes()
    for i in range(9):  # enough that every split has some
        (tmp_path / "data" / "0" / f"cut{i}.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "data" / "1" / "notes.png").write_text("not an image")
    found = cli("eval", checkpoint, "--data", "folder:data", "--split", "all", "--json").json
    assert (found["accuracy"]["images"], found["accuracy"]["skipped"]) == (120, 10)
    assert found["class_names_match"]
    for command in (["eval", checkpoint, "--split", "all"], ["export", checkpoint, "--to", "onnx"]):
        refused = cli(*command, "--data", "folder:data", "--strict", "--json", code=2).json["error"]
        assert "cut" in refused or "notes.png" in refused
    assert not (tmp_path / "exported").exists()


def test_classes_with_other_names_are_pointed_out(cli, checkpoint: Path, tmp_path: Path) -> None:
    from pocketvit.data import open_data

    digits = open_data("digits", "test")
    for i in range(60):
        picture, target = digits[i]
        (tmp_path / "data" / f"class{target}").mkdir(parents=True, exist_ok=True)
        picture.save(tmp_path / "data" / f"class{target}" / f"{i}.png")
    found = cli("eval", checkpoint, "--data", "folder:data", "--split", "all")
    said = "classes matched by position ('0' in the model is 'class0' in the data)"
    assert f"measured; {said}" in " ".join(found.out.split())
    document = cli("eval", checkpoint, "--data", "folder:data", "--split", "all", "--json").json
    assert (document["classes_matched_by"], document["note"]) == ("position", said)
