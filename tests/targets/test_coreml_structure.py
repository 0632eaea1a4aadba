"""The structural check of Core ML packages finds what a converter can get wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from pocketvit.errors import BadInput, CheckFailed
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.types import Precision, Quantized


@pytest.fixture
def structure():
    check = TARGETS.get("coreml").structure
    assert check is not None
    return check


@pytest.fixture(scope="session")
def elements(vit) -> int:
    return sum(tensor.numel() for tensor in vit.state_dict().values())


@pytest.mark.parametrize(
    ("precision", "stored"), [(Precision.FP32, "FLOAT32"), (Precision.FP16, "FLOAT16"), (Precision.W8, "INT8")]
)
def test_a_good_package_is_described(precision, stored, structure, elements, exported):
    sentence = structure(read_artifact(exported("coreml", precision).path), elements)
    assert "float32 1x3x32x32 to 1x10" in sentence
    assert f"for the model's {elements}" in sentence
    assert stored in sentence
    assert ("6/6 layers quantized" in sentence) == (precision is Precision.W8)


def test_missing_or_surplus_weights_fail_with_the_number(structure, elements, exported):
    artifact = exported("coreml", Precision.FP32)
    for wrong in (elements // 2, elements * 2):
        with pytest.raises(CheckFailed, match=rf"times the model's {wrong}; expected 0\.9 to 1\.5"):
            structure(artifact, wrong)


def test_another_number_format_than_promised_fails(structure, elements, exported):
    for precision, claimed in ((Precision.FP32, Precision.FP16), (Precision.FP16, Precision.W8)):
        with pytest.raises(CheckFailed, match="stores 0% of its weights as"):
            structure(replace(exported("coreml", precision), precision=claimed), elements)


def test_another_count_of_quantized_layers_fails(structure, elements, exported):
    artifact = replace(exported("coreml", Precision.W8), quantized=Quantized(layers=5, of=6))
    with pytest.raises(CheckFailed, match="says 5/6 layers are quantized, but 6/6 are"):
        structure(artifact, elements)


def test_another_interface_fails(structure, elements, exported):
    artifact = exported("coreml", Precision.FP32)
    with pytest.raises(BadInput, match=r"metadata says \(1, 3, 64, 64\)"):
        structure(replace(artifact, spec=replace(artifact.spec, size=(3, 64, 64))), elements)


def test_an_edited_package_fails(structure, elements, exported, tmp_path):
    import coremltools as ct

    artifact = exported("coreml", Precision.FP32)
    edits = {
        "renamed": lambda spec: setattr(spec.description.input[0], "name", "x"),
        "retyped": lambda spec: setattr(spec.description.output[0].type.multiArrayType, "dataType", 65552),
        "emptied": lambda spec: (
            spec.mlProgram.functions["main"].block_specializations["CoreML6"].ClearField("operations")
        ),
        "other": lambda spec: spec.neuralNetwork.SetInParent(),
    }
    for name, edit in edits.items():
        path = tmp_path / f"{name}.mlpackage"
        shutil.copytree(artifact.path, path)
        file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
        spec = ct.utils.load_spec(str(file))
        edit(spec)
        file.write_bytes(spec.SerializeToString())
        with pytest.raises(CheckFailed, match=name):
            structure(replace(artifact, path=path), elements)


def test_xcode_finds_a_description(exported):
    import coremltools as ct

    path = exported("coreml", Precision.FP16).path
    about = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert "UNTRAINED" in about.metadata.shortDescription
    assert about.metadata.author == "pocketvit"
    assert "normalisation is inside" in about.input[0].shortDescription
    assert "softmax" in about.output[0].shortDescription
