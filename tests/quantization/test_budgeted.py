"""Files within a budget, made by a real runtime from a model whose first block was made hard to quantize."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pocketvit.artifacts import ProofImages, proof_images
from pocketvit.data import ImageDataset
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.models import EagerRunner, Model, create
from pocketvit.quantization import (
    Labelled,
    Outcome,
    budgeted,
    check_drop,
    export_files,
    export_within,
    labelled,
    measured_calibrators,
)
from pocketvit.stages import RunDirectory
from pocketvit.targets import TARGETS
from pocketvit.types import ASKED, Accuracy, Calibrator, Precision, Quantization, Runner

RUINED = "blocks.0.mlp.fc1"
MOST = 1.0  # points


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Model:
    """The same function as the checkpoint, with channels before one layer too wide for 8 bits."""
    plain = create(str(checkpoint))
    module = copy.deepcopy(plain.module)
    block = module.blocks[0]  # type: ignore[union-attr,index]
    with torch.no_grad():
        for channel, factor in ((3, 3000.0), (17, 1000.0)):
            block.norm2.weight[channel] *= factor
            block.norm2.bias[channel] *= factor
            block.mlp.fc1.weight[:, channel] /= factor
    ruined = replace(plain, module=module)
    images = torch.rand(4, *plain.spec.size).numpy()
    before, after = EagerRunner(plain)(images), EagerRunner(ruined)(images)
    assert abs(before - after).max() < 1e-3 * abs(before).max(), "the function changed"
    return ruined


@pytest.fixture(scope="module")
def images(model: Model) -> ProofImages:
    return proof_images(model.spec, "digits", calibration=32, verification=32)


@pytest.fixture(scope="module")
def data(model: Model) -> Labelled:
    return labelled(model, "digits", images=150)


@pytest.fixture(scope="module")
def searched(
    model: Model, images: ProofImages, data: Labelled, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Outcome, Path]:
    directory = tmp_path_factory.mktemp("files")
    jobs = [(TARGETS.get("onnx"), Precision.W8A8, directory / "vit.onnx")]
    found = export_files(
        model, jobs, max_drop=MOST, data=data, images=images, work=directory / "search", rounds=5, threads=2
    )
    return found, directory


def test_the_layer_that_cannot_be_quantized_stays_float_with_its_reason(searched: tuple[Outcome, Path]) -> None:
    found, _ = searched
    assert not found.failed, found.failed
    (made,) = found.made
    artifact = made.verification.artifact
    assert RUINED in artifact.quantization.keep, f"kept {artifact.quantization.keep} instead"
    assert artifact.quantized is not None
    assert artifact.quantization.keep.items() <= artifact.quantized.kept.items()
    assert "without it" in made.reasons[RUINED]
    assert artifact.quantized.kept[RUINED] == made.reasons[RUINED], "the file gives another reason"
    assert made.trials >= 2
    assert made.drop <= MOST + 1e-9, f"loses {made.drop:.2f} points"


def test_the_rows_hold_the_model_the_float_file_and_the_quantized_one(searched: tuple[Outcome, Path]) -> None:
    found, directory = searched
    assert [f"{row.target}:{row.precision}" for row in found.rows] == ["eager:fp32", "onnx:fp32", "onnx:w8a8"]
    eager, plain, quantized = found.rows
    assert eager.accuracy is not None
    assert plain.accuracy is not None
    assert quantized.accuracy is not None
    assert plain.accuracy.top1 == eager.accuracy.top1
    assert quantized.accuracy.top1 >= eager.accuracy.top1 - MOST / 100 - 1e-9
    assert quantized.size_bytes is not None
    assert plain.size_bytes is not None
    assert quantized.size_bytes < plain.size_bytes
    assert all(row.latency for row in found.rows)
    (recommended,) = found.recommendations
    assert "ratio" in recommended.sentence
    assert (directory / "vit.onnx").is_file()


def test_without_the_search_the_file_loses_more(
    model: Model, images: ProofImages, data: Labelled, tmp_path: Path
) -> None:
    from pocketvit.artifacts import load
    from pocketvit.golden import make_golden
    from pocketvit.measure.accuracy import accuracy
    from pocketvit.models import deployable, weights_sha256
    from pocketvit.types import Artifact

    logits = EagerRunner(model)(images.verification)
    draft = Artifact(
        path=tmp_path / "all.onnx", target="onnx", precision=Precision.W8A8, model="vit", trained=True, classes=10,
        spec=model.spec, golden=make_golden(images.verification[:1], logits[:1]),
        weights_sha256=weights_sha256(model.module),
    )  # fmt: skip
    TARGETS.get("onnx").export(deployable(model), draft, images.calibration)
    own = accuracy(EagerRunner(model), data.test).top1
    naive = accuracy(load(draft.path), data.test).top1
    assert 100 * (own - naive) > MOST, f"quantizing everything costs only {100 * (own - naive):.2f} points"


def test_the_same_command_again_makes_no_file_twice(
    searched: tuple[Outcome, Path],
    model: Model,
    images: ProofImages,
    data: Labelled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, directory = searched
    made: list[str] = []
    export = budgeted.export

    def counted(model: Model, target: str, path: Path, *args: object, **kwargs: object) -> object:
        made.append(path.name)
        return export(model, target, path, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(budgeted, "export", counted)
    path = directory / "again.onnx"
    jobs = [(TARGETS.get("onnx"), Precision.W8A8, path)]
    after = export_files(
        model, jobs, max_drop=MOST, data=data, images=images, work=directory / "search", rounds=2, threads=2
    )
    assert made == [path.name], "only the final file is made again"
    assert after.made[0].reasons == before.made[0].reasons
    assert after.made[0].accuracy == before.made[0].accuracy


def test_a_retrained_model_of_the_same_name_is_scored_anew(
    searched: tuple[Outcome, Path], model: Model, images: ProofImages, data: Labelled
) -> None:
    before, directory = searched
    module = copy.deepcopy(model.module)
    with torch.no_grad():
        module.head.weight.zero_()  # type: ignore[union-attr,operator]
        module.head.weight[:, 0] = 1  # type: ignore[union-attr,index,operator]
    other = replace(model, module=module)
    found = budgeted.float_accuracy(other, "test", data.test, RunDirectory(directory / "search"), 2)
    assert before.rows[0].accuracy is not None
    assert found.top1 < before.rows[0].accuracy.top1 - 0.1, "the accuracy of the other weights was taken"


@pytest.mark.slow
def test_a_file_kinder_on_the_search_images_is_rejected_and_the_next_one_tried(
    model: Model, images: ProofImages, data: Labelled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was at the path stays, until a file holds; one that holds on the search's images alone is not enough."""
    path = tmp_path / "vit.onnx"
    scored = budgeted.accuracy
    unkind = []

    def accuracy(runner: Runner, dataset: ImageDataset, *args: object) -> Accuracy:
        found = scored(runner, dataset, *args)  # type: ignore[arg-type]
        if dataset is data.test and not isinstance(runner, EagerRunner) and len(unkind) < 2:
            unkind.append(found)
            return replace(found, top1=found.top1 - 0.5)
        return found

    monkeypatch.setattr(budgeted, "accuracy", accuracy)
    with RunDirectory(tmp_path / "search").open() as directory:
        made = export_within(
            model, "onnx", path, Precision.W8A8, max_drop=MOST, data=data, images=images, directory=directory,
            wanted=Quantization(calibrator=Calibrator.MINMAX),
        )  # fmt: skip
    assert len(unkind) == 2
    assert made.drop <= MOST + 1e-9
    assert RUINED in made.verification.artifact.quantization.keep
    assert len(made.verification.artifact.quantization.keep) >= 2, "the files that were rejected kept fewer layers"
    monkeypatch.setattr(budgeted, "accuracy", lambda *args: replace(scored(*args), top1=float("nan")))
    before = path.read_bytes()
    with pytest.raises(CheckFailed), RunDirectory(tmp_path / "other").open() as directory:
        export_within(
            model, "onnx", path, Precision.W8A8, max_drop=MOST, data=data, images=images, directory=directory
        )
    assert path.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["other", "search", "vit.onnx"]


def test_calibrators_are_measured_and_few_images_are_not_divided(model: Model, images: ProofImages) -> None:
    target = TARGETS.get("onnx")
    found = measured_calibrators(model, target, images, Quantization(keep={RUINED: ASKED}))
    assert set(found) == set(target.calibrators)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert Precision.W8A8.floor_db < next(iter(found.values())) < math.inf
    few = replace(images, calibration=images.calibration[:8])
    assert measured_calibrators(model, target, few, Quantization()) == {}


def test_a_layer_the_user_keeps_stays_float(model: Model, images: ProofImages, data: Labelled, tmp_path: Path) -> None:
    jobs = [(TARGETS.get("onnx"), Precision.W8A8, tmp_path / "vit.onnx")]
    wanted = Quantization(keep={"head": ASKED, RUINED: ASKED}, calibrator=Calibrator.MINMAX)
    found = export_files(
        model, jobs, max_drop=50, data=data, images=images, work=tmp_path / "s", wanted=wanted, rounds=2
    )
    artifact = found.made[0].verification.artifact
    assert artifact.quantized is not None
    assert {"head", RUINED} <= set(artifact.quantized.kept)
    assert artifact.quantization.calibrator is Calibrator.MINMAX
    assert found.made[0].calibrators == {}


@pytest.mark.parametrize("drop", [-0.5, 100, math.nan, math.inf])
def test_a_budget_that_is_none_is_refused(drop: float) -> None:
    with pytest.raises(BadInput, match="--max-drop is in points of top-1"):
        check_drop(drop)


def test_images_without_the_models_classes_and_untrained_models_are_refused(model: Model) -> None:
    with pytest.raises(BadInput, match=r"labelled images of the model's 10 classes; photos has \d+"):
        labelled(model, "photos")
    with pytest.raises(BadInput, match="untrained, so there is no accuracy to keep"):
        labelled(create("pocket_deit_patch4_32"), "digits")
