"""Training by name: it goes on from checkpoints, writes only where nothing is lost, and says so before any work."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from pocketvit import training
from pocketvit.errors import BadInput
from pocketvit.models import create, save, weights_sha256
from pocketvit.train import Distillation
from pocketvit.training import QAT, QAT_SETTINGS, read_settings, train_checkpoint
from pocketvit.types import Precision

NAME = "pocket_deit_patch4_32"
SMALL = {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 2}
ARGUMENTS = [f"{key}={value}" for key, value in SMALL.items()]
QUICK = (
    "epochs=1 warmup_epochs=0 batch_size=8 repeated_aug=1 rand_augment=null mixup=0 cutmix=0 lr=0.01 "
    "min_lr=0 warmup_lr=0 drop_path=0"
).split()


@pytest.fixture
def colours(tmp_path: Path) -> str:
    """Three classes of plain colour, eight images each."""
    for name, colour in {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            shade = tuple(max(0, channel - i) for channel in colour)
            Image.new("RGB", (32, 32), shade).save(tmp_path / "data" / name / f"{i}.png")
    return f"folder:{tmp_path / 'data'}"


@pytest.fixture
def ten(tmp_path: Path) -> Path:
    """A checkpoint of ten classes that counts as trained."""
    untrained = create(NAME, num_classes=10, labels=tuple("abcdefghij"), **SMALL)
    save(dataclasses.replace(untrained, trained=True), tmp_path / "ten")
    return tmp_path / "ten"


def test_a_checkpoint_is_fine_tuned_to_other_classes(colours: str, ten: Path, tmp_path: Path) -> None:
    for model, arguments in ((str(ten), []), (f"{NAME}@{ten / 'model.safetensors'}", ARGUMENTS)):
        out = tmp_path / f"out{len(arguments)}"
        found = train_checkpoint(model, colours, out, settings=QUICK, model_args=arguments)
        made = create(str(out))
        assert (made.spec.labels, made.classes, made.trained) == (("blue", "green", "red"), 3, True), found
        assert made.name == out.name
        assert not list(tmp_path.glob(".*")), "the working files were left"


def test_the_seed_decides_the_random_start(monkeypatch, colours: str, tmp_path: Path) -> None:
    """What train starts from, without training: the same weights whatever random numbers were drawn before."""
    starts = []

    def stop(model, *_, **__):
        starts.append(weights_sha256(model.module))
        raise InterruptedError

    monkeypatch.setattr(training, "fit", stop)
    for seed in (0, 0, 1):
        torch.rand(7)
        with pytest.raises(InterruptedError):
            train_checkpoint(NAME, colours, tmp_path / "out", settings=[*QUICK, f"seed={seed}"], model_args=ARGUMENTS)
    assert starts[0] == starts[1] != starts[2]
    assert starts[2] == weights_sha256(create(NAME, num_classes=3, seed=1, **SMALL).module)


def refused(out: Path, sentence: str, model: str = NAME, arguments: tuple[str, ...] = ()) -> None:
    """`train` refuses before it even looks for the data."""
    with pytest.raises(BadInput, match=re.escape(sentence)):
        train_checkpoint(model, "folder:no/such/data", out, settings=QUICK, model_args=arguments)


def test_a_finished_checkpoint_is_never_overwritten(ten: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in ten.iterdir()}
    refused(ten, "already holds a finished checkpoint; choose another directory with --out.")
    refused(ten, "already holds a finished checkpoint", model=str(ten))
    assert {path.name: path.read_bytes() for path in ten.iterdir()} == before
    assert list(tmp_path.iterdir()) == [ten]


@pytest.mark.parametrize("config", ["{}", '{"name": "my settings"}', '{"architecture": "my_house"}'])
def test_a_directory_with_some_config_json_is_not_taken_for_a_checkpoint(config: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    refused(tmp_path, "holds something that is not a checkpoint")
    with pytest.raises(BadInput, match="holds something that is not a checkpoint"):
        save(create(NAME, **SMALL), tmp_path)
    assert (tmp_path / "config.json").read_text() == config


def test_a_checkpoint_among_other_files_is_not_replaced(ten: Path) -> None:
    (ten / "thesis.tex").write_text("precious")
    refused(ten, "holds something that is not a checkpoint")
    with pytest.raises(BadInput, match="holds something that is not a checkpoint"):
        save(create(NAME, **SMALL), ten)
    assert (ten / "thesis.tex").read_text() == "precious"


def test_where_nothing_can_be_written_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "holds something that is not a checkpoint")
    refused(tmp_path / "file" / "deep" / "vit", "cannot be written (Not a directory)")
    if Path("/sys").is_dir():
        refused(Path("/sys/foo"), "/sys/foo cannot be written")
    refused(Path("/"), "/ holds something that is not a checkpoint")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    refused(Path(), "is the working directory; choose a directory in it with --out.")
    assert not list((tmp_path / "empty").iterdir())


def test_an_empty_or_absent_directory_passes_and_nothing_is_left_by_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        refused(out, "no/such/data")
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_what_follows_from_other_options_is_no_model_argument(tmp_path: Path) -> None:
    refused(tmp_path / "out", "--arg num_classes is not for the model's constructor", arguments=("num_classes=3",))


# quantization-aware training

SHORT = "epochs=2 batch_size=8 lr=0.01 threads=1".split()


@pytest.fixture
def three(tmp_path: Path) -> str:
    """A checkpoint of the three colours that counts as trained."""
    untrained = create(NAME, num_classes=3, labels=("blue", "green", "red"), **SMALL)
    save(dataclasses.replace(untrained, trained=True), tmp_path / "three")
    return str(tmp_path / "three")


@pytest.mark.parametrize("precision", QAT)
def test_a_checkpoint_learns_to_be_rounded(precision: Precision, three: str, colours: str, tmp_path: Path) -> None:
    if precision is Precision.INTEGER:
        pytest.importorskip("pocketvit.passes.ivit", reason="integer-only training is not here")
    found = train_checkpoint(three, colours, tmp_path / "out", settings=SHORT, qat=precision)
    made, start = create(str(tmp_path / "out")), create(three)
    assert (made.trained, made.spec.labels, made.classes) == (True, ("blue", "green", "red"), 3)
    assert [type(part) for part in made.module.modules()] == [type(part) for part in start.module.modules()]
    assert weights_sha256(made.module) != weights_sha256(start.module)
    told = found["qat"]
    assert told["precision"] is precision
    scores = {name: told[f"{name}_test_top1"] for name in ("float", "before", "after")}
    assert scores["after"] > max(scores["before"], 0.5), f"{scores} on three plain colours: it learnt nothing"
    if precision is Precision.W4:
        assert str(told["quantized"]) == "6/6"
        assert found["test_top1"] == scores["after"], "the checkpoint is not what was trained"
    assert not list(tmp_path.glob(".*")), "the working files were left"


def test_stopped_and_run_again_quantization_aware_training_goes_on(three: str, colours: str, tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(task: str, done: int, total: int) -> None:
        if task.startswith("training") and done > total / 2:
            raise Stopped

    arguments = {"settings": [*SHORT, "epochs=4"], "qat": "w4"}
    train_checkpoint(three, colours, tmp_path / "straight", **arguments)
    with pytest.raises(Stopped):
        train_checkpoint(three, colours, tmp_path / "out", **arguments, progress=stop)
    with pytest.raises(BadInput, match="belongs to another training: it differs in architecture"):
        train_checkpoint(three, colours, tmp_path / "out", settings=[*SHORT, "epochs=4"], qat="w8a8")
    train_checkpoint(three, colours, tmp_path / "out", **arguments)
    straight, resumed = (weights_sha256(create(str(tmp_path / name)).module) for name in ("straight", "out"))
    assert straight == resumed


def test_the_float_model_teaches_unless_another_is_named(
    monkeypatch, three: str, colours: str, tmp_path: Path
) -> None:
    called = {}

    def stop(model, train_set, val_set, config, work, *, teacher, progress):
        called.update(config=config, teacher=teacher)
        raise InterruptedError

    monkeypatch.setattr(training, "fit", stop)
    other = create(NAME, num_classes=3, labels=("blue", "green", "red"), seed=1, **SMALL)
    save(dataclasses.replace(other, trained=True), tmp_path / "other")
    for options, teacher in (
        ({}, three),
        ({"teacher": str(tmp_path / "other")}, str(tmp_path / "other")),
        ({"settings": ["distillation=none", "lr=0.01"]}, None),
    ):
        with pytest.raises(InterruptedError):
            train_checkpoint(three, colours, tmp_path / "out", qat="w4", **options)
        if teacher is None:
            assert called["teacher"] is None
            assert called["config"].lr == 0.01
        else:
            assert weights_sha256(called["teacher"].module) == weights_sha256(create(teacher).module)
            assert called["config"] == read_settings(None, [], QAT_SETTINGS)
            assert called["config"].distillation is Distillation.SOFT


def test_quantization_aware_training_refuses_what_does_not_fit(three: str, ten: Path, colours: str, tmp_path: Path):
    renamed = dataclasses.replace(
        create(three), spec=dataclasses.replace(create(three).spec, labels=("red", "green", "blue"))
    )
    save(renamed, tmp_path / "renamed")
    for model, precision, arguments, sentence in (
        (three, "w44", [], "not 'w44'. Did you mean w4"),
        (three, "w8", [], "--qat knows w4, w8a8, w8a8-dynamic, integer-only; not 'w8'."),
        (NAME, "w4", ARGUMENTS, "is untrained; quantization-aware training starts from trained weights"),
        (str(ten), "w4", [], "ten is untrained"),  # its head does not fit the data and is new
        (str(tmp_path / "renamed"), "w4", [], "names its classes otherwise than"),
    ):
        with pytest.raises(BadInput, match=re.escape(sentence)):
            train_checkpoint(model, colours, tmp_path / "out", settings=SHORT, model_args=arguments, qat=precision)
    assert not list(tmp_path.glob(".*"))
