"""Files that are missing, empty, cut off, scrambled, someone else's or lying."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.types import Artifact, InputSpec, Precision, Quantized

SINGLE_FILES = [name for name in TARGETS if name != "coreml"]  # a package is a directory


def _copy(artifact: Artifact, directory: Path) -> Artifact:
    for part in TARGETS.get(artifact.target).files(artifact.path):
        if part.is_dir():
            shutil.copytree(part, directory / part.name)
        else:
            shutil.copy(part, directory / part.name)
    return replace(artifact, path=directory / artifact.path.name)


def _content(artifact: Artifact) -> list[Path]:
    parts = TARGETS.get(artifact.target).files(artifact.path)
    return [f for part in parts for f in (sorted(part.rglob("*")) if part.is_dir() else [part]) if f.is_file()]


def _open(artifact: Artifact) -> None:
    """Read and load as a user does."""
    TARGETS.get(artifact.target).load(read_artifact(artifact.path), 1)


@pytest.mark.parametrize("name", list(TARGETS))
def test_missing_files_are_named(name, exported, tmp_path):
    artifact = exported(name, Precision.FP32)
    with pytest.raises(BadInput, match=r"There is no .*absent"):
        read_artifact(artifact.path.with_stem("absent"))
    for part in TARGETS.get(name).files(artifact.path):
        directory = tmp_path / part.suffix
        directory.mkdir()
        copy = _copy(artifact, directory)
        (directory / part.name).rename(directory / "elsewhere")
        with pytest.raises(BadInput, match=f"There is no .*{part.name}"):
            read_artifact(copy.path)


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("damage", ["empty", "scrambled"])
def test_files_of_nothing_or_of_noise_are_refused_by_name(name, damage, exported, tmp_path):
    artifact = _copy(exported(name, Precision.FP32), tmp_path)
    target = TARGETS.get(name)
    for file in _content(artifact):
        size = 0 if damage == "empty" else file.stat().st_size
        file.write_bytes(bytes((i * 197 + 31) % 251 for i in range(min(size, 50_000))))
    with pytest.raises(BadInput) as refused:
        target.read(artifact.path)
    assert str(tmp_path) in str(refused.value)
    with pytest.raises(BadInput) as refused:
        target.load(artifact, 1)
    assert str(tmp_path) in str(refused.value)


@pytest.mark.parametrize("name", list(TARGETS))
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.9, 0.999])
def test_files_cut_off_anywhere_are_refused_by_name(name, kept, exported, tmp_path):
    source = exported(name, Precision.FP32)
    for i in range(len(_content(source))):
        directory = tmp_path / str(i)
        directory.mkdir()
        artifact = _copy(source, directory)
        file = _content(artifact)[i]
        size = file.stat().st_size  # more than the last byte, which may be a line's end that means nothing
        file.write_bytes(file.read_bytes()[: min(int(size * kept), size - 2)])
        with pytest.raises(BadInput) as refused:
            _open(artifact)
        assert str(directory) in str(refused.value)


def test_names_no_target_writes_are_refused_with_those_they_do(tmp_path):
    for name in ("model.zip", "model", "model.onx"):
        with pytest.raises(BadInput, match=r"\.onnx"):
            read_artifact(tmp_path / name)


def test_a_renamed_file_of_another_format_is_refused(exported, tmp_path):
    for source in SINGLE_FILES:
        for suffix in {TARGETS.get(name).suffix for name in SINGLE_FILES} - {TARGETS.get(source).suffix}:
            path = tmp_path / f"{source}{suffix}"
            shutil.copy(exported(source, Precision.FP32).path, path)
            shutil.copy(exported(source, Precision.FP32).path, path.with_suffix(".bin"))
            with pytest.raises(BadInput, match=source):
                read_artifact(path)


def test_files_of_other_tools_are_recognised(vit, images, tmp_path):
    import torch
    from torch import nn

    path = tmp_path / "other.pt2"
    torch.export.save(torch.export.export(nn.Flatten(), (torch.zeros(1, 3),)), path)
    with pytest.raises(BadInput, match="carries no 'pocketvit' metadata"):
        read_artifact(path)

    import onnx

    graph = onnx.helper.make_graph([], "empty", [], [])
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "other.onnx"))
    with pytest.raises(BadInput, match="carries no 'pocketvit' metadata"):
        read_artifact(tmp_path / "other.onnx")


def test_onnx_weights_in_other_files_are_never_opened(exported, tmp_path):
    import onnx

    artifact = _copy(exported("onnx", Precision.FP32), tmp_path)
    model = onnx.load(str(artifact.path))
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    size = len(weight.raw_data)
    (tmp_path.parent / "outside.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", "../outside.bin"), ("offset", "0"), ("length", str(size))):
        weight.external_data.add(key=key, value=value)
    artifact.path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match="keeps weights in other files"):
        TARGETS.get("onnx").load(artifact, 1)


@pytest.mark.parametrize("name", list(TARGETS))
def test_metadata_that_does_not_fit_the_network_is_refused(name, exported):
    artifact = exported(name, Precision.FP32)
    wider = replace(artifact, spec=replace(artifact.spec, size=(3, 32, 48)))
    with pytest.raises(BadInput, match=r"metadata says \(1, 3, 32, 48\)"):
        TARGETS.get(name).load(wider, 1)
    with pytest.raises(BadInput, match=r"metadata says .* \(1, 11\)"):
        TARGETS.get(name).load(replace(artifact, classes=11), 1)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ({"spec": InputSpec(size=(3, 10**6, 10**6))}, "claims images of size"),
        ({"spec": InputSpec(size=(0, 32, 32))}, "claims images of size"),
        ({"spec": InputSpec(size=(3, 32))}, "claims images of size"),  # type: ignore[arg-type]
        ({"spec": InputSpec(size=("3", 32, 32))}, "claims images of size"),  # type: ignore[arg-type]
        ({"classes": 0}, "claims 0 classes"),
        ({"classes": 2_000_000}, "claims 2000000 classes"),
        ({"spec": InputSpec(size=(3, 32, 32), labels=("one",))}, "names 1 labels"),
        ({"target": "openvino"}, "which a onnx file cannot be"),
        ({"precision": Precision.BF16}, "which a onnx file cannot be"),
        ({"quantized": Quantized(layers=3, of=2)}, "claims 3/2 quantized layers"),
    ],
)
def test_absurd_claims_are_refused(lie, why, exported, tmp_path):
    import onnx

    artifact = _copy(exported("onnx", Precision.FP32), tmp_path)
    model = onnx.load(str(artifact.path))
    model.metadata_props[0].value = replace(artifact, **lie).to_json()
    artifact.path.write_bytes(model.SerializeToString())
    with pytest.raises(BadInput, match=why):
        read_artifact(artifact.path)


def test_golden_logits_must_be_finite_and_one_row_per_image(exported, tmp_path, draft):
    wanted = draft(tmp_path / "m.onnx", "onnx", Precision.FP32)
    for logits in ((), ((1.0,) * 9,), ((float("nan"),) * 10,)):
        with pytest.raises(BadInput, match="golden"):
            TARGETS.get("onnx").export(None, replace(wanted, golden=replace(wanted.golden, logits=logits)))
    assert list(tmp_path.iterdir()) == []
