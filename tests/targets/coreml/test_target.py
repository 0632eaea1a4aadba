"""What pocketvit's own Core ML packages hold besides their operations, and what an edited one is told."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.types import Precision


def _edited(artifact, path, edit):
    """A copy of a package whose description `edit` changed; its seal is left as it was."""
    from coremltools.proto import Model_pb2

    shutil.copytree(artifact.path, path)
    file = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model.FromString(file.read_bytes())
    edit(spec)
    file.write_bytes(spec.SerializeToString())
    return replace(artifact, path=path)


def _first(spec, kind):
    operations = spec.mlProgram.functions["main"].block_specializations["CoreML6"].operations
    return next(op for op in operations if op.type == kind)


def _shadow(spec):
    """An operation that makes the program's input again, out of itself."""
    block = spec.mlProgram.functions["main"].block_specializations["CoreML6"]
    again = type(block.operations[0])(type="identity")
    again.inputs["x"].arguments.add(name="image")
    again.outputs.add(name="image").type.CopyFrom(spec.mlProgram.functions["main"].inputs[0].type)
    operations = [again, *block.operations]
    del block.operations[:]
    block.operations.extend(operations)


EDITS = {
    "renamed": (lambda spec: setattr(spec.description.input[0], "name", "x"), r"maps \['x', 'logits'\]"),
    "retyped": (
        lambda spec: setattr(spec.description.output[0].type.multiArrayType, "dataType", 65552),
        "its logits as float32",
    ),
    "emptied": (
        lambda spec: spec.mlProgram.functions["main"].block_specializations["CoreML6"].ClearField("operations"),
        "'logits' is made by no operation",
    ),
    "other": (lambda spec: spec.neuralNetwork.SetInParent(), "holds a neuralNetwork, not an ML program"),
    "newer": (lambda spec: setattr(spec, "specificationVersion", 12), "specification version 12; pocketvit knows"),
    "future": (
        lambda spec: setattr(spec.mlProgram.functions["main"], "opset", "CoreML11"),
        "operations of 'CoreML11'; known are CoreML5",
    ),
    "unknown": (
        lambda spec: setattr(_first(spec, "gelu"), "type", "gelo"),
        r"operation \d+, 'gelo' \(gelu\): pocketvit's interpreter does not know this operation. Did you mean gelu",
    ),
    "parameter": (
        lambda spec: _first(spec, "gelu").inputs["modes"].CopyFrom(_first(spec, "gelu").inputs["mode"]),
        "has a parameter 'modes' that this operation is not known to take",
    ),
    "shadowed": (
        lambda spec: _shadow(spec),
        r"'identity' \(image\): 'image' is made twice",
    ),
    "twice": (
        lambda spec: (
            _first(spec, "layer_norm")
            .attributes["axes"]
            .CopyFrom(next(iter(_first(spec, "const").attributes.values())))
        ),
        "it is given axes twice",
    ),
    "endless name": (
        lambda spec: setattr(_first(spec, "gelu"), "type", "g" * 5_000_000),
        "has a name of more than 1000 characters",
    ),
    "labels": (lambda spec: setattr(spec.description.metadata, "author", "someone"), "edited after pocketvit wrote"),
    "unsealed": (lambda spec: spec.description.metadata.userDefined.pop("pocketvit.sha256"), "no digest"),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_package_is_refused_with_what_is_wrong(edit, exported, tmp_path):
    change, why = EDITS[edit]
    edited = _edited(exported("coreml", Precision.FP32), tmp_path / "m.mlpackage", change)
    with pytest.raises(BadInput, match=why) as refused:
        TARGETS.get("coreml").load(edited, 1)
    assert "m.mlpackage" in str(refused.value)
    assert refused.value.args[0].count(str(edited.path)) == 1, refused.value


def test_one_flipped_bit_of_a_weight_breaks_the_seal(exported, tmp_path):
    artifact = exported("coreml", Precision.FP16)
    path = tmp_path / "m.mlpackage"
    shutil.copytree(artifact.path, path)
    weights = path / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadInput, match="damaged or edited after pocketvit wrote it"):
        TARGETS.get("coreml").load(replace(artifact, path=path), 1)


@pytest.mark.parametrize("way", ["manifest", "link", "weights"])
def test_nothing_outside_a_package_is_opened(way, exported, tmp_path):
    artifact = exported("coreml", Precision.FP32)
    path = tmp_path / "m.mlpackage"
    shutil.copytree(artifact.path, path)
    inside = path / "Data" / "com.apple.CoreML"
    if way == "manifest":
        manifest = path / "Manifest.json"
        shutil.copytree(inside, tmp_path / "outside")
        text = manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../outside/model.mlmodel")
        manifest.write_text(text)
    elif way == "link":
        shutil.move(inside, tmp_path / "outside")
        inside.symlink_to(tmp_path / "outside")
    else:
        shutil.move(inside / "weights", tmp_path / "outside")
        (inside / "weights").symlink_to(tmp_path / "outside")
    with pytest.raises(BadInput, match="outside"):
        TARGETS.get("coreml").load(replace(artifact, path=path), 1)


def test_other_kinds_of_model_and_no_package_at_all(tmp_path):
    (tmp_path / "one.mlpackage").write_bytes(b"x")
    (tmp_path / "two.mlpackage").mkdir()
    for name, why in (("one", "is a single file"), ("two", "has no Manifest.json"), ("three", "There is no")):
        with pytest.raises(BadInput, match=why):
            read_artifact(tmp_path / f"{name}.mlpackage")


def test_xcode_finds_a_description(exported):
    import coremltools as ct

    path = exported("coreml", Precision.FP16).path
    about = ct.models.MLModel(str(path), skip_model_load=True).get_spec().description
    assert "UNTRAINED" in about.metadata.shortDescription
    assert about.metadata.author == "pocketvit"
    assert "normalisation is inside" in about.input[0].shortDescription
    assert "softmax" in about.output[0].shortDescription
