"""Core ML packages of others at the command line: eval and classify read them, verify says why it cannot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pocketvit.targets.coreml.interpreter import Interpreter


def test_classify_prints_the_probabilities_of_the_package(cli, packages: Path, tmp_path: Path) -> None:
    from pocketvit.artifacts import load
    from pocketvit.data import open_data, preprocess

    picture, _ = open_data("digits", "val")[0]
    picture.save(tmp_path / "a.png")
    path = packages / "same.mlpackage"
    pixels = preprocess(load(path).spec)(picture)[None].astype(np.float32)
    expected = Interpreter(path, "fp16-fp32acc").predict({"x": pixels})["classLabel_probs"]
    found = cli("classify", "a.png", "--model", path, "--top", 10, "--json").json["images"][0]["classes"]
    assert {c["name"]: c["probability"] for c in found} == pytest.approx(expected, abs=1e-7)
    best = max(expected, key=lambda label: expected[label])
    assert f"{best} {expected[best]:.1%}" in cli("classify", "a.png", "--model", path).out
    # an array of probabilities is recognised, and told how images are normalised
    given = ("--mean", "0,0,0", "--std", "1,1,1")
    same = cli("classify", "a.png", "--model", packages / "array.mlpackage", *given, "--json").json
    assert same["images"][0]["classes"][0]["probability"] == pytest.approx(expected[best], abs=2e-3)  # fp16


def test_classes_in_another_order_are_matched_by_name(cli, packages: Path) -> None:
    same, other = (
        cli("eval", packages / f"{name}.mlpackage", "--data", "digits", "--split", "val", "--json").json
        for name in ("same", "other")
    )
    assert other["accuracy"] == same["accuracy"]
    assert (same["classes_matched_by"], same["note"]) == ("name", None)
    assert (other["classes_matched_by"], other["note"]) == ("name", "classes matched by name")
    text = cli("eval", packages / "other.mlpackage", "--data", "digits", "--split", "val").out
    assert "interpreted; classes matched by name" in " ".join(text.split())


def test_classes_without_names_are_said_to_be_matched_by_position(cli, packages: Path) -> None:
    given = ("--mean", "0,0,0", "--std", "1,1,1")
    command = ("eval", packages / "array.mlpackage", "--data", "digits", "--split", "val", *given, "--json")
    found = cli(*command).json
    assert found["note"] == "classes matched by position (the model has no names for them)"
    assert (found["classes_matched_by"], found["class_names_match"]) == ("position", False)


def test_an_image_input_takes_no_normalisation(cli, packages: Path) -> None:
    given = ("--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2")
    path = packages / "same.mlpackage"
    found = cli("eval", path, "--data", "digits", *given, "--json", code=2).json
    assert found["error"] == f"{path} takes an image and has its own mean and std inside; leave them out."


def test_verify_of_anothers_package_points_to_eval(cli, packages: Path) -> None:
    path = packages / "same.mlpackage"
    found = cli("verify", path, "--against", "test_vit", "--json", code=2).json
    assert found["error"] == (
        f"{path} was not made by pocketvit, so there is nothing to hold it against; `pocketvit eval` scores it."
    )


def test_a_single_mlmodel_file_is_told_how_to_become_a_package(cli, tmp_path: Path) -> None:
    (tmp_path / "nn.mlmodel").write_bytes(b"\x08\x01")
    found = cli("eval", "nn.mlmodel", "--data", "digits", "--json", code=2).json
    assert 'is a single file; convert it to an ML program (.mlpackage) with convert_to="mlprogram".' in found["error"]


@pytest.mark.parametrize("arithmetic", ["fp32", "fp16-fp32acc", "fp16"])
def test_eval_interprets_in_the_arithmetic_asked_for(cli, packages: Path, arithmetic: str) -> None:
    command = ("eval", packages / "other.mlpackage", "--data", "digits", "--split", "val", "--arithmetic", arithmetic)
    found = cli(*command, "--json").json
    assert (f"in {arithmetic} arithmetic" in found["name"]) == (arithmetic != "fp16-fp32acc")
    assert found["classes_matched_by"] == "name"


def test_an_arithmetic_is_one_of_three_and_for_packages_only(cli, packages: Path) -> None:
    path = packages / "same.mlpackage"
    found = cli("eval", path, "--data", "digits", "--arithmetic", "fp61", "--json", code=2).json
    assert "There is no arithmetic 'fp61'; use fp32, fp16-fp32acc, fp16." in found["error"]
    found = cli("eval", "test_vit", "--data", "digits", "--arithmetic", "fp16", "--json", code=2).json
    assert "test_vit" in found["error"]
    assert "computes as its own runtime does" in found["error"]
