"""A whole run on real images: results, resumption after SIGKILL at every stage, bad recipes."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import yaml

from pocketvit.data import open_data
from pocketvit.errors import BadInput
from pocketvit.pipeline import run
from pocketvit.recipe import DataRecipe, ModelRecipe, find_recipe, read_recipe
from pocketvit.runs import read_run
from pocketvit.types import Evidence

QUICK = {
    "epochs": 2,
    "batch_size": 64,
    "warmup_epochs": 0,
    "lr": 0.004,
    "repeated_aug": 1,
    "hflip": 0,
    "mixup": 0,
    "cutmix": 0,
    "rand_augment": None,
    "random_erasing": 0,
    "crop_scale": [0.8, 1.0],
    "drop_path": 0,
}
RECIPE = {
    "model": {
        "name": "pocket_deit_distilled_patch4_32",
        "args": {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": 2},
    },
    "data": {"source": "digits"},
    "train": {
        "distillation": ["none", "hard"],
        "config": QUICK,
        "teacher": {"model": {"name": "pocket_regnety_32"}, "train": QUICK | {"epochs": 1}},
    },
    "passes": [{"pass": "prune", "sparsity": 0.1}],
    "export": ["onnx", "torch_export", "coreml"],
    "calibration_images": 16,
    "verify_images": 32,
    "bench": {"rounds": 3, "warmup": 1},
    "budget": {"max_top1_drop": 0.05},
}


def write(path: Path, **changes) -> Path:
    recipe = path / "tiny.yaml"
    recipe.write_text(yaml.safe_dump(RECIPE | changes))
    return recipe


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and the directory of its uninterrupted run."""
    path = tmp_path_factory.mktemp("whole")
    recipe = write(path)
    run_alone(recipe, path / "run")
    return recipe, path / "run"


def run_alone(recipe: Path, path: Path) -> list[str]:
    """Run in a fresh process, as a user does, and return what was reused.

    The last bits of a training depend on what else its process has loaded and run before (another thousand tests),
    so the runs that must end bit for bit alike all start from the same state.
    """
    code = (
        "import json, sys; from pathlib import Path; from pocketvit.pipeline import run\n"
        "print(json.dumps(list(run(Path(sys.argv[1]), Path(sys.argv[2])).reused)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(recipe), str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def results(path: Path) -> dict:
    """Everything a run found that is not a time."""
    rows = [{k: v for k, v in row.to_dict().items() if k != "latency"} for row in read_run(path).rows]
    return {"rows": rows, "training": read_run(path).training}


def test_a_run_gives_rows_files_and_a_report(finished: tuple[Path, Path]) -> None:
    found = read_run(finished[1])
    assert [f"{row.target}:{row.precision}" for row in found.rows] == [
        "eager:fp32",
        "onnx:fp32",
        "torch_export:fp32",
        "coreml:fp32",
    ]
    assert [entry["name"] for entry in found.training] == ["teacher", "student-none", "student-hard"]
    assert sum("exported" in entry for entry in found.training) == 1
    eager, onnx, _, coreml = found.rows
    assert onnx.accuracy == eager.accuracy
    assert onnx.accuracy is not None
    assert onnx.accuracy.images == 360
    assert onnx.file is not None
    assert (finished[1] / onnx.file).stat().st_size == onnx.size_bytes
    assert onnx.latency is not None
    assert coreml.accuracy == dataclasses.replace(eager.accuracy, evidence=Evidence.INTERPRETED)
    assert coreml.agreement.evidence is Evidence.INTERPRETED
    assert coreml.latency is None, "interpreting says nothing about time"
    assert "the file is its twin" in coreml.check
    assert "prune" in onnx.settings["passes"]
    assert found.verdict is not None
    assert found.verdict.met
    page = found.report.read_text()
    assert "plotly" in page
    assert "student-hard" in page


def test_a_second_run_does_nothing_again(finished: tuple[Path, Path]) -> None:
    recipe, path = finished
    before = {p: p.stat().st_mtime_ns for p in path.glob("*/stage.json")}
    found = run(recipe, path)
    assert len(found.reused) == len(before) == 11
    assert {p: p.stat().st_mtime_ns for p in path.glob("*/stage.json")} == before


def test_a_change_redoes_only_what_depends_on_it(finished: tuple[Path, Path], tmp_path: Path) -> None:
    recipe = write(tmp_path, bench={"rounds": 4, "warmup": 1})
    found = run(recipe, finished[1])
    assert "latency" not in found.reused
    assert len(found.reused) == 10
    run(finished[0], finished[1])


def test_a_change_of_the_model_that_keeps_its_weights_is_noticed(tmp_path: Path) -> None:
    """Heads only divide the same weights: nothing but the recipe tells 2 heads from 4."""
    for heads in (2, 4):
        args = {"patch_size": 8, "depth": 1, "embed_dim": 48, "num_heads": heads}
        model = {"name": "pocket_deit_patch4_32", "args": args}
        train = {"config": QUICK | {"epochs": 1}}
        found = run(write(tmp_path, model=model, train=train, export=["torch_export"]), tmp_path / "run")
        assert not found.reused, f"{heads} heads: {found.reused}"
    checkpoint = json.loads((tmp_path / "run" / "student-none" / "checkpoint" / "config.json").read_text())
    assert checkpoint["model_args"]["num_heads"] == 4


def test_a_change_of_a_checkpoints_preprocessing_is_noticed(finished: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(finished[1] / "student-none" / "checkpoint", tmp_path / "vit")
    recipe = write(tmp_path, model={"name": str(tmp_path / "vit")}, train=None, export=["torch_export"])
    run(recipe, tmp_path / "run")
    config = json.loads((tmp_path / "vit" / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [0.1, 0.1, 0.1]
    (tmp_path / "vit" / "config.json").write_text(json.dumps(config))
    assert not run(recipe, tmp_path / "run").reused


KILLER = """
import os, signal, sys
from pathlib import Path
from pocketvit.pipeline import run
when, seen = sys.argv[3], []
def progress(task, done, total):
    seen.append(task)
    if when in ("start of " + task if done == 0 else "", "middle of " + task if 0 < done < total else ""):
        os.kill(os.getpid(), signal.SIGKILL)
    if when == f"end of {task}" and done == total:
        os.kill(os.getpid(), signal.SIGKILL)
run(Path(sys.argv[1]), Path(sys.argv[2]), progress)
"""
STAGES = [
    "teacher",
    "student-none",
    "student-hard",
    "eager-fp32",
    "onnx-fp32",
    "onnx-fp32-accuracy",
    "torch_export-fp32",
    "torch_export-fp32-accuracy",
    "coreml-fp32",
    "coreml-fp32-accuracy",
    "latency",
]


@pytest.mark.parametrize(
    "stages", [pytest.param(STAGES[::4], id="some"), pytest.param(STAGES, id="all", marks=pytest.mark.slow)]
)
def test_killed_at_every_stage_a_run_ends_with_the_same_results(
    stages: list[str], finished: tuple[Path, Path], tmp_path: Path
) -> None:
    """One run, killed with SIGKILL as each stage starts, then continued: nothing finished is redone, and the end is
    that of the run that was never killed, weights and files included."""
    recipe, whole = finished
    path = tmp_path / "run"
    times: dict[str, int] = {}
    for stage in stages:
        done = subprocess.run(
            [sys.executable, "-c", KILLER, str(recipe), str(path), f"start of {stage}"], capture_output=True, text=True
        )
        assert done.returncode == -signal.SIGKILL, f"not killed at {stage}: {done.stderr[-2000:]}"
        assert not (path / stage / "stage.json").exists()
        for name, stamp in times.items():
            assert (path / name / "stage.json").stat().st_mtime_ns == stamp, (
                f"{name} was redone after the kill at {stage}"
            )
        times = {p.parent.name: p.stat().st_mtime_ns for p in path.glob("*/stage.json")}
    assert set(run_alone(recipe, path)) == set(times)
    assert results(path) == results(whole)
    for name in ("onnx-fp32", "student-hard"):
        ours, theirs = (json.loads((p / name / "stage.json").read_text())["files"] for p in (path, whole))
        assert ours.keys() == theirs.keys()
        assert ours.get("checkpoint/model.safetensors") == theirs.get("checkpoint/model.safetensors")


def test_killed_in_the_middle_of_training_goes_on_after_the_last_epoch(
    finished: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, whole = finished
    path = tmp_path / "run"
    code = KILLER.replace("seen.append(task)", "seen.append(task); hit(task, done, total)").replace(
        "def progress",
        "def hit(task, done, total):\n"
        "    if task.startswith('student-none') and len([t for t in seen if t == task]) > 25:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "def progress",
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(recipe), str(path), "never"], capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert list(path.glob(".scratch-student-none-*")), "no checkpoint survived the kill"
    run_alone(recipe, path)
    weights = "checkpoint/model.safetensors"
    ours, theirs = ((p / "student-none" / weights).read_bytes() for p in (path, whole))
    assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"exprt": []}, "no key 'exprt'. Did you mean export"),
        ({"export": []}, "export lists no target"),
        ({"export": ["onnx", "onnx"]}, "twice"),
        ({"export": ["onx"]}, "no target called 'onx'"),
        ({"export": ["coreml:w8a8-dynamic"]}, "coreml does not make"),
        ({"model": {"name": "deit_tny"}}, "no model called 'deit_tny'"),
        ({"model": {"name": "test_vit", "pretraind": True}}, "Did you mean pretrained"),
        ({"data": {"source": "folder:nowhere"}}, "nowhere"),
        ({"data": {"source": "photos"}, "train": None}, "10 classes"),
        ({"train": {"config": {"epoch": 1}}}, "Did you mean epochs"),
        ({"train": {"distillation": ["hard"]}}, "needs a teacher"),
        ({"train": {"distillation": ["hrd"], "teacher": {"model": {"name": "test_vit"}}}}, "hrd"),
        ({"passes": [{"pass": "prun"}]}, "Did you mean prune"),
        ({"budget": {"max_top1_drop": 2}}, "max_top1_drop is a share"),
        ({"bench": {"rounds": "many"}}, "bench.rounds must be a whole number"),
        ({"bench": {"rounds": 0}}, "at least 1 round"),
        ({"export": ["onnx", "onnx:fp32"]}, "twice"),
        ({"verify_images": 1}, "verify_images at least 2"),
        ({"name": "a/b"}, "cannot name a run's directory"),
    ],
)
def test_a_bad_recipe_is_refused_before_any_work(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(BadInput) as raised:
        run(write(tmp_path, **changes), tmp_path / "run")
    assert words in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_an_unreadable_recipe_is_refused(tmp_path: Path) -> None:
    for text, words in (("a: [", "not valid YAML"), ("- 1", "must be a mapping")):
        (tmp_path / "r.yaml").write_text(text)
        with pytest.raises(BadInput, match=words):
            read_recipe(tmp_path / "r.yaml")


@pytest.mark.parametrize("path", sorted(find_recipe("digits").parent.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_recipe_reads_and_names_what_exists(path: Path) -> None:
    from pocketvit.passes import read_passes
    from pocketvit.recipe import parse_export
    from pocketvit.train import TrainConfig

    recipe = read_recipe(path)
    assert recipe.about
    assert path.read_text().startswith("# "), "a recipe says what it does, how long it takes, what it should score"
    for text in recipe.export:
        parse_export(text)
    read_passes(recipe.passes, "passes")
    if recipe.train:
        TrainConfig.from_dict(recipe.train.config)
        if recipe.train.teacher and recipe.train.teacher.train:
            TrainConfig.from_dict(recipe.train.teacher.train)


def folder_of_digits(path: Path, rows: range, classes: int = 10) -> Path:
    digits = open_data("digits", "all")
    for i in rows:
        picture, target = digits[i]
        if target < classes:
            (path / digits.labels[target]).mkdir(parents=True, exist_ok=True)
            picture.save(path / digits.labels[target] / f"{i}.png")
    return path


def test_another_source_to_report_on(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """Accuracy is that of every image of `test`; unreadable ones are counted, or refused with `strict`."""
    source = folder_of_digits(tmp_path / "ours", range(0, 200))
    test = folder_of_digits(tmp_path / "theirs", range(200, 280))
    (test / "0" / "broken.png").write_text("not an image")
    few = folder_of_digits(tmp_path / "few", range(200, 280), classes=9)
    model = {"name": str(finished[1] / "student-none" / "checkpoint")}

    def recipe(**data) -> Path:
        data = {"source": f"folder:{source}"} | data
        return write(tmp_path, model=model, data=data, train=None, export=["torch_export"], passes=[])

    found = run(recipe(test=f"folder:{test}"), tmp_path / "run").rows[1].accuracy
    assert found is not None
    assert (found.images, found.skipped) == (80, 1)
    with pytest.raises(BadInput, match=r"broken\.png"):
        run(recipe(test=f"folder:{test}", strict=True), tmp_path / "run2")
    with pytest.raises(BadInput, match="do not have the same classes"):
        run(recipe(test=f"folder:{few}"), tmp_path / "run3")


@pytest.mark.slow
def test_the_recipe_for_a_pretrained_model_on_a_folder(finished: tuple[Path, Path], tmp_path: Path) -> None:
    """As shipped, but for where the weights come from: there is no network here."""
    recipe = read_recipe(find_recipe("timm_folder"))
    folder_of_digits(tmp_path / "images", range(250))
    recipe = dataclasses.replace(
        recipe,
        model=ModelRecipe(name=str(finished[1] / "student-none" / "checkpoint")),
        data=DataRecipe(source=f"folder:{tmp_path / 'images'}"),
    )
    found = run(recipe, tmp_path / "run")
    assert [row.file is not None for row in found.rows] == [False, True, True, True, True, True], found.rows
    assert found.rows[1].accuracy == found.rows[0].accuracy


@pytest.mark.slow
def test_the_recipe_for_a_huggingface_vit(tmp_path: Path) -> None:
    """As shipped, with a small ViT saved by transformers and a parquet file written here."""
    transformers = pytest.importorskip("transformers", reason="the extra 'hf' is not installed")
    digits = open_data("digits", "all")
    config = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=96,
        image_size=32,
        patch_size=8,
        id2label=dict(enumerate(digits.labels)),
        label2id={name: i for i, name in enumerate(digits.labels)},
    )
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "vit")
    rows = []
    for i in range(250):
        picture, target = digits[i]
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        rows.append({"image": {"bytes": stream.getvalue(), "path": None}, "label": target})
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "images.parquet")
    recipe = dataclasses.replace(
        read_recipe(find_recipe("hf_vit")),
        model=ModelRecipe(name=f"hf:{tmp_path / 'vit'}"),
        data=DataRecipe(source=f"parquet:{tmp_path / 'images.parquet'}"),
    )
    found = run(recipe, tmp_path / "run")
    assert found.rows[1].file is not None
    assert found.rows[1].accuracy == found.rows[0].accuracy
    assert [row.target for row in found.rows] == ["eager", "onnx", "onnx", "openvino", "openvino", "coreml"]


def test_a_file_that_fails_its_check_becomes_a_row_and_the_run_is_not_ok(
    finished: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pocketvit import types

    monkeypatch.setitem(types._FLOOR_DB, types.Precision.FP32, 500.0)
    path = tmp_path / "run"
    recipe = write(
        tmp_path, train=None, export=["onnx"], model={"name": str(finished[1] / "student-hard" / "checkpoint")}
    )
    found = run(recipe, path)
    assert not found.ok
    assert "below the 500 dB floor" in found.rows[1].check
    assert found.rows[1].file is None
    assert found.verdict is not None
    assert not found.verdict.met
