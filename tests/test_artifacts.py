"""Exports that must not start, or that fail on the way: what is there stays, and the reason is one sentence."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from pocketvit import artifacts, files
from pocketvit.artifacts import ProofImages, check_export, export, proof_images, reference_logits
from pocketvit.data import open_data
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.models import Model, create
from pocketvit.targets import TARGETS

SUFFIXES = {name: TARGETS.get(name).suffix for name in TARGETS}


def small_vit() -> Model:
    """0.9 M random weights, 3.6 MB."""
    return create("pocket_deit_patch4_32", num_classes=10, patch_size=8, embed_dim=192, depth=2, num_heads=6)


@pytest.fixture(scope="module")
def model() -> Model:
    return small_vit()


@pytest.fixture(scope="module")
def images(model: Model) -> ProofImages:
    return proof_images(model.spec, "digits", calibration=4, verification=4)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test when the model is run, which is the first work an export does."""
    monkeypatch.setattr(artifacts, "EagerRunner", lambda *_: pytest.fail("work was started"))


@pytest.mark.usefixtures("no_work")
def test_the_weights_beside_an_openvino_file_are_not_overwritten(
    model: Model, images: ProofImages, tmp_path: Path
) -> None:
    (tmp_path / "weights.bin").write_text("precious")
    for refused in (
        lambda: check_export("openvino", tmp_path, tmp_path / "weights.xml", "test_vit"),
        lambda: export(model, "openvino", tmp_path / "weights.xml", images=images),
    ):
        with pytest.raises(BadInput, match=r"weights\.bin exists without weights\.xml"):
            refused()
    (tmp_path / "weights.xml").write_text("<mine/>")
    with pytest.raises(BadInput, match=r"weights\.xml exists and was not made by pocketvit"):
        check_export("openvino", tmp_path, tmp_path / "weights.xml", "test_vit")
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"weights.bin": "precious", "weights.xml": "<mine/>"}


@pytest.mark.usefixtures("no_work")
def test_a_place_that_cannot_be_written_is_refused_before_work(
    model: Model, images: ProofImages, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    places = [tmp_path / "file" / "deep", *([Path("/sys/pocketvit")] if Path("/sys").is_dir() else [])]
    for place in places:
        with pytest.raises(BadInput, match="cannot be written"):
            check_export("onnx", place, None, "test_vit")
        with pytest.raises(BadInput, match="cannot be written"):
            export(model, "onnx", place / "m.onnx", images=images)


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    _, _, path = check_export("onnx", tmp_path / "a" / "b", None, "test_vit")
    assert path == tmp_path / "a" / "b" / "test_vit_fp32.onnx"
    assert not list(tmp_path.iterdir())


def test_a_failure_between_the_moves_of_a_pair_leaves_nothing_that_opens(
    model: Model, images: ProofImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, move = tmp_path / "m.xml", Path.replace
    export(model, "openvino", path, images=images)
    assert {p.name for p in tmp_path.iterdir()} == {"m.xml", "m.bin"}

    def failing(self: Path, target: Path) -> Path:
        if self.name == "m.xml":
            raise OSError("cut off")
        return move(self, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="cut off"):
        patch.setattr(Path, "replace", failing)
        export(model, "openvino", path, images=images)
    assert {p.name for p in tmp_path.iterdir()} == {"m.bin"}


def test_a_reference_that_proves_nothing_is_found_before_any_target(images: ProofImages) -> None:
    silent = replace(small_vit(), name="silent")
    silent.module.get_classifier().weight.data.zero_()
    silent.module.get_classifier().bias.data.zero_()
    with pytest.raises(CheckFailed, match="logits are all zero"):
        reference_logits(silent, images.verification)


def test_a_reference_given_is_the_one_used(
    model: Model, images: ProofImages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = reference_logits(model, images.verification)
    monkeypatch.setattr(artifacts, "EagerRunner", lambda *_: pytest.fail("the reference was computed again"))
    found = export(model, "onnx", tmp_path / "m.onnx", images=images, reference=reference)
    assert found.agreement is not None
    assert found.agreement.images == 4
    with pytest.raises(CheckFailed, match="below the 80 dB floor"):
        export(model, "onnx", tmp_path / "m.onnx", images=images, reference=reference + 1)
    with pytest.raises(BadInput, match="reference is of 3 images, but 4"):
        export(model, "onnx", tmp_path / "m.onnx", images=images, reference=reference[:3])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk too small for any export of the model."""
    path = tmp_path / "disk"
    path.mkdir()
    if not shutil.which("mount"):
        pytest.skip("a small disk cannot be mounted here: there is no mount command")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {made.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.mark.parametrize("target", list(TARGETS))
def test_a_full_disk_is_one_sentence_for_every_target(
    model: Model, images: ProofImages, small_disk: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as on a large disk, which has megabytes free again once the unfinished file is gone
    monkeypatch.setattr(files, "_FULL_BYTES", 100_000)
    path = small_disk / f"m{SUFFIXES[target]}"
    with pytest.raises(BadInput) as raised:
        export(model, target, path, images=images)
    assert str(raised.value) == f"The disk is full: {path} could not be written; free some space and run again."
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("shade", "kind"), [(0, "every pixel is 0"), (255, "every pixel is 1"), (None, "pixel by pixel")]
)
def test_images_that_are_all_the_same_prove_nothing(
    model: Model, tmp_path: Path, shade: int | None, kind: str
) -> None:
    picture = open_data("digits", "all")[0][0] if shade is None else Image.new("RGB", (32, 32), (shade,) * 3)
    for i in range(20):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        picture.save(tmp_path / str(i % 2) / f"{i}.png")
    with pytest.raises(BadInput, match=rf"images drawn from .* are all the same \({kind}\)"):
        proof_images(model.spec, f"folder:{tmp_path}", calibration=4, verification=4)
