"""What every target promises, for every precision it makes."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from pocketvit.errors import BadInput, CheckFailed
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.types import Artifact, Evidence, Precision

CLASSES = 10
MADE = [(name, precision) for name in TARGETS for precision in TARGETS.get(name).precisions]


def _total_bytes(artifact: Artifact) -> int:
    parts = TARGETS.get(artifact.target).files(artifact.path)
    inside = [f for part in parts for f in (part.rglob("*") if part.is_dir() else [part])]
    return sum(file.stat().st_size for file in inside if file.is_file())


def test_the_five_formats_are_there_and_each_makes_fp32_and_something_8_bit():
    assert set(TARGETS) >= {"onnx", "openvino", "executorch", "coreml", "torch_export"}
    for name in TARGETS:
        target = TARGETS.get(name)
        assert target.name == name
        assert Precision.FP32 in target.precisions
        assert any(precision.is_quantized for precision in target.precisions), name
        assert target.prove or not target.interpreted, f"{name} is interpreted here and nothing proves it"


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_a_fresh_read_from_disk_follows_the_model(name, precision, exported, vit, images, sqnr_db, logits_of):
    runner = TARGETS.get(name).load(read_artifact(exported(name, precision).path), 2)
    found = sqnr_db(logits_of(vit, images[:8]), runner(images[:8]))
    print(f"{name}:{precision} {found:.1f} dB")
    assert found >= precision.floor_db, f"{name}:{precision} is {found:.1f} dB, floor {precision.floor_db}"


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_loaded_twice_it_gives_the_same_bits(name, precision, exported, images):
    artifact = exported(name, precision)
    first = TARGETS.get(name).load(artifact, 2)(images[:3])
    second = TARGETS.get(name).load(artifact, 2)(images[:3])
    assert first.dtype == np.float32
    assert first.shape == (3, CLASSES)
    assert np.array_equal(first, second), f"differs by up to {np.abs(first - second).max()}"


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_what_a_file_says_about_itself_survives(name, precision, exported, draft):
    written = exported(name, precision)
    read = read_artifact(written.path)
    assert read == written
    asked = draft(written.path, name, precision)
    assert (read.model, read.spec, read.golden) == (asked.model, asked.spec, asked.golden)
    assert set(TARGETS.get(name).packages) <= set(read.made_with)


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_quantized_layers_are_counted_and_the_file_shrinks(name, precision, exported):
    artifact = exported(name, precision)
    smaller = _total_bytes(artifact) / _total_bytes(exported(name, Precision.FP32))
    if not precision.is_quantized:
        assert artifact.quantized is None
        assert smaller <= 1.0 if precision is Precision.FP32 else smaller < 0.75, f"{smaller:.2f} of the fp32 file"
        return
    # one block: patch convolution, qkv, projection, two of the MLP, head
    convolution_stays_float = (name, precision) == ("onnx", Precision.W8A8_DYNAMIC)
    assert (artifact.quantized.layers, artifact.quantized.of) == (5 if convolution_stays_float else 6, 6)
    assert len(artifact.quantized.kept) == artifact.quantized.of - artifact.quantized.layers
    # 8 bits instead of 32, plus the graph and the metadata, which weigh more in a model this small
    assert smaller < 0.75, f"{name}:{precision} is {smaller:.2f} of the fp32 file"


@pytest.mark.parametrize("name", list(TARGETS))
def test_threads_are_what_was_asked_also_side_by_side(name, exported, images):
    artifact = exported(name, Precision.FP32)
    one, two = TARGETS.get(name).load(artifact, 1), TARGETS.get(name).load(artifact, 2)
    assert (one.threads, two.threads) == (1, 2)
    for _ in range(3):  # interleaved, as a benchmark does
        difference = np.abs(one(images[:2]) - two(images[:2])).max()
        assert difference < 1e-4, f"one and two threads differ by {difference}"


@pytest.mark.parametrize("name", list(TARGETS))
def test_images_of_the_wrong_kind_are_refused(name, exported, images):
    runner = TARGETS.get(name).load(exported(name, Precision.FP32), 1)
    with pytest.raises(BadInput, match=r"\(3, 32, 32\)"):
        runner(images[:, :, :16])
    with pytest.raises(BadInput, match="float64"):
        runner(images.astype(np.float64))
    assert runner(images[:0]).shape == (0, CLASSES)


@pytest.mark.parametrize("name", list(TARGETS))
def test_profiles_name_operations_and_add_up(name, exported, images):
    runner = TARGETS.get(name).load(exported(name, Precision.FP32), 1)
    times = runner.profile(images, 5)
    if name not in ("onnx", "openvino"):
        assert times is None
        return
    assert times is not None
    assert [time.ms for time in times] == sorted((time.ms for time in times), reverse=True)
    assert all(time.ms >= 0 and time.calls >= 1 for time in times), times
    assert sum(time.ms for time in times) > 0
    heavy = {time.op for time in times}
    assert heavy & {"Gemm", "MatMul", "FusedMatMul", "FullyConnected"}, heavy
    with pytest.raises(BadInput, match="at least one run"):
        runner.profile(images, 0)


@pytest.mark.parametrize(("name", "precision"), MADE)
def test_nothing_of_the_machine_that_exported_is_left_in_the_file(name, precision, exported):
    artifact = exported(name, precision)
    parts = TARGETS.get(name).files(artifact.path)
    for file in (f for part in parts for f in (part.rglob("*") if part.is_dir() else [part]) if f.is_file()):
        for trace in (b"site-packages", b"stack_trace", b"partial", bytes(artifact.path.parent)):
            found = re.search(re.escape(trace), file.read_bytes())
            assert found is None, f"{file.name} contains {trace!r}"


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_precision_it_does_not_make_is_refused_by_name(name, vit, tmp_path, draft):
    target = TARGETS.get(name)
    for precision in set(Precision) - set(target.precisions):
        with pytest.raises(BadInput, match=f"{name} does not make {precision}; it makes fp32"):
            target.export(vit, draft(tmp_path / f"m{target.suffix}", name, precision), None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [n for n in TARGETS if Precision.W8A8 in TARGETS.get(n).precisions])
def test_static_ranges_need_images_of_the_right_size(name, vit, images, tmp_path, draft):
    target = TARGETS.get(name)
    wanted = draft(tmp_path / f"m{target.suffix}", name, Precision.W8A8)
    for calibration in (None, images[:0]):
        with pytest.raises(BadInput, match="needs images to calibrate on"):
            target.export(vit, wanted, calibration)
    with pytest.raises(BadInput, match=r"\(3, 16, 32\)"):
        target.export(vit, wanted, images[:, :, :16])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(TARGETS))
def test_destinations_that_cannot_be_are_refused(name, vit, tmp_path, draft):
    target = TARGETS.get(name)
    taken = tmp_path / f"taken{target.suffix}"
    taken.write_text("mine")
    for path, why in (
        (tmp_path / "m.zip", f"should end in {target.suffix}"),
        (tmp_path / "nowhere" / f"m{target.suffix}", "no directory"),
        (taken, "already exists"),
    ):
        with pytest.raises(BadInput, match=why):
            target.export(vit, draft(path, name, Precision.FP32), None)
    assert taken.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [taken]


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_model_that_cannot_be_converted_is_one_sentence_and_leaves_nothing(name, tmp_path, draft):
    import torch

    class Branches(torch.nn.Module):
        """The path taken depends on the pixels, which no exported graph can hold."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image.mean((2, 3)) if image.sum() > 0 else image.amax((2, 3))

    target = TARGETS.get(name)
    with pytest.raises(CheckFailed, match="could not be exported") as raised:
        target.export(Branches(), draft(tmp_path / f"m{target.suffix}", name, Precision.FP32), None)
    assert "\n" not in str(raised.value).replace(draft(tmp_path, name, Precision.FP32).model, "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "precision"),
    [("onnx", Precision.W8A8_DYNAMIC), ("onnx", Precision.W8A8), ("torch_export", Precision.W8A8_DYNAMIC)],
)
def test_a_model_with_nothing_to_quantize_fails_with_the_count(name, precision, images, tmp_path, draft):
    import torch

    class Weightless(torch.nn.Module):
        """Averages colours: no layer has weights."""

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return torch.relu(image).mean((2, 3)).repeat(1, 4)[:, :CLASSES]

    target = TARGETS.get(name)
    with pytest.raises(CheckFailed, match="0/0 layers"):
        target.export(Weightless(), draft(tmp_path / f"m{target.suffix}", name, precision), images)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(TARGETS))
def test_only_what_a_runtime_ran_is_called_measured(name, exported):
    target = TARGETS.get(name)
    runner = target.load(exported(name, Precision.FP32), 2)
    assert runner.evidence is (Evidence.INTERPRETED if target.interpreted else Evidence.MEASURED)
    assert target.interpreted == (name == "coreml")


def test_the_embedded_json_is_one_line(exported):
    artifact = exported("onnx", Precision.FP32)
    text = TARGETS.get("onnx").read(artifact.path)
    assert "\n" not in text
    assert json.loads(text)["model"] == artifact.model
