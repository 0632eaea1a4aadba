"""A recipe run from images to files: the one place that sees every stage."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from .artifacts import ProofImages, Verification, draw_proof, export, export_name, load
from .data import ImageDataset, check_classes, open_data, sample
from .errors import BadInput, CheckFailed
from .files import size_bytes
from .measure.accuracy import accuracy
from .measure.environment import environment, versions
from .measure.latency import interleave
from .models import EagerRunner, Model, create, save, weights_sha256
from .passes import apply, read_passes
from .recipe import ModelRecipe, Recipe, parse_export, read_recipe
from .runs import Run
from .stages import RunDirectory, Stage, key_of
from .targets import read_artifact
from .train import TrainConfig, fit
from .train.checks import check as check_training
from .types import Accuracy, Agreement, Evidence, Latency, Progress, Row, Runner, silent

T = TypeVar("T", Accuracy, Agreement, Latency)


@dataclass(frozen=True, slots=True)
class _Splits:
    train: ImageDataset
    val: ImageDataset
    test: ImageDataset


def run(recipe: Recipe | Path | str, out: Path | str | None = None, progress: Progress = silent) -> Run:
    """Run a recipe in the directory `out` (runs/NAME when not given) and write its report there.

    Everything that can be checked is checked first (BadInput). Finished stages are not redone, so a run that was
    killed is continued by calling this again. A file that does not hold up becomes a row that says so.
    """
    recipe = recipe if isinstance(recipe, Recipe) else read_recipe(recipe)
    out = Path(out) if out else Path("runs") / recipe.name
    exports = [parse_export(text) for text in recipe.export]
    for target, _ in exports:
        target.require()
    passes = read_passes(recipe.passes, "passes")
    splits = _open_splits(recipe, progress)
    _check_models(recipe, splits)
    with RunDirectory(out, progress).open() as directory:
        stages: list[Stage] = []
        model, weights, training = _trained(recipe, splits, directory, stages)
        images = draw_proof(
            model.spec,
            splits.train,
            splits.test,
            calibration=recipe.calibration_images,
            verification=recipe.verify_images,
        )
        model = apply(model, passes, images=images.calibration)
        depends = {
            "model": [recipe.model, model.name, model.spec, model.trained],
            "weights": weights,
            "passes": passes,
            "data": splits.train.digest(),
            "versions": versions(),
        }
        rows = [_eager_row(model, splits.test, recipe, directory, stages, depends)]
        for text in recipe.export:
            rows.append(_file_row(model, text, images, splits.test, recipe, directory, stages, depends))
        rows = _timed(rows, model, splits.test, recipe, directory, stages)
        finished = Run(
            path=out,
            title=f"{recipe.name}: {model.display_name}",
            about=recipe.about,
            rows=tuple(rows),
            training=tuple(training),
            environment=environment(recipe.bench.threads),
            budget=recipe.budget,
            reused=tuple(stage.path.name for stage in stages if stage.reused),
        )
        finished.write()
    return finished


def _open_splits(recipe: Recipe, progress: Progress) -> _Splits:
    source, test, strict = recipe.data.source, recipe.data.test, recipe.data.strict
    train = open_data(source, "train", strict=strict, progress=progress)
    val = open_data(source, "val", strict=strict, progress=progress)
    reported = open_data(test or source, "all" if test else "test", strict=strict, progress=progress)
    if tuple(reported.labels) != tuple(train.labels):
        raise BadInput(f"{source} and {test} do not have the same classes in the same order.")
    return _Splits(train, val, reported)


def _check_models(recipe: Recipe, splits: _Splits) -> None:
    """Build what will be trained or exported once, to learn now rather than later that something does not fit."""
    model = _initial(recipe.model, splits, trained_here=recipe.train is not None)
    check_classes(model.classes, splits.test)
    if recipe.train is None:
        return
    for name in recipe.train.distillation:
        config = _student_config(recipe, name)
        teacher = None
        if name != "none":
            if recipe.train.teacher is None:
                raise BadInput(f"distillation {name} needs a teacher under train.")
            trains = recipe.train.teacher.train is not None
            teacher = _initial(recipe.train.teacher.model, splits, trained_here=trains)
            if trains:
                teacher = replace(teacher, trained=True)
        check_training(model, splits.train, splits.val, config, teacher, processes=1)
    if recipe.train.teacher and recipe.train.teacher.train is not None:
        teacher = _initial(recipe.train.teacher.model, splits, trained_here=True)
        config = TrainConfig.from_dict(recipe.train.teacher.train, "train.teacher.train")
        check_training(teacher, splits.train, splits.val, config, None, processes=1)


def _initial(recipe: ModelRecipe, splits: _Splits, *, trained_here: bool, seed: int = 0) -> Model:
    """The model before training: random weights depend on the seed alone."""
    classes = len(splits.train.labels) if trained_here else None
    return create(recipe.name, pretrained=recipe.pretrained, num_classes=classes, seed=seed, **recipe.args)


def _student_config(recipe: Recipe, distillation: str) -> TrainConfig:
    assert recipe.train is not None
    return TrainConfig.from_dict({**recipe.train.config, "distillation": distillation}, "train.config")


def _trained(
    recipe: Recipe, splits: _Splits, directory: RunDirectory, stages: list[Stage]
) -> tuple[Model, str, list[dict[str, Any]]]:
    """Return the model to export, a hash of its weights, and what each training reached."""
    if recipe.train is None:
        model = _initial(recipe.model, splits, trained_here=False)
        return model, weights_sha256(model.module), []
    teacher: Model | None = None
    results: list[dict[str, Any]] = []
    if recipe.train.teacher is not None:
        given = recipe.train.teacher
        if given.train is None:
            teacher = _initial(given.model, splits, trained_here=False)
        else:
            config = TrainConfig.from_dict(given.train, "train.teacher.train")
            teacher, result = _fit("teacher", given.model, config, None, splits, directory, stages)
            results.append(result)
    students: list[Model] = []
    for distillation in recipe.train.distillation:
        config = _student_config(recipe, distillation)
        guide = teacher if distillation != "none" else None
        student, result = _fit(f"student-{distillation}", recipe.model, config, guide, splits, directory, stages)
        students.append(student)
        results.append(result)
    reached = [result["val_top1"] for result in results[-len(students) :]]
    best = reached.index(max(reached))
    results[len(results) - len(students) + best]["exported"] = "yes"
    return students[best], weights_sha256(students[best].module), results


def _fit(
    name: str,
    recipe: ModelRecipe,
    config: TrainConfig,
    teacher: Model | None,
    splits: _Splits,
    directory: RunDirectory,
    stages: list[Stage],
) -> tuple[Model, dict[str, Any]]:
    start = _initial(recipe, splits, trained_here=True, seed=config.seed)
    depends = {
        "model": [recipe, start.name, start.spec],
        "weights": weights_sha256(start.module),
        "config": dataclasses.asdict(config),
        "teacher": weights_sha256(teacher.module) if teacher else None,
        "data": [splits.train.digest(), splits.val.digest(), splits.test.digest()],
        "versions": versions(),
    }

    def work(out: Path, scratch: Path) -> None:
        def named(task: str, done: int, total: int) -> None:
            directory.progress(f"{name}: {task}", done, total)

        trained = fit(start, splits.train, splits.val, config, scratch, teacher=teacher, progress=named)
        save(trained.model, out / "checkpoint")
        reached = accuracy(EagerRunner(trained.model), splits.test, directory.progress)
        result = {
            "name": name,
            "model": trained.model.name,
            "distillation": config.distillation.value,
            "epochs": config.epochs,
            "val_top1": trained.history[-1]["val_top1"],
            "test_top1": reached.top1,
            "test_images": reached.images,
        }
        (out / "result.json").write_text(json.dumps(result, indent=1))
        (out / "history.json").write_text(json.dumps(trained.history, indent=1))

    stage = directory.stage(name, depends, work, scratch=True)
    stages.append(stage)
    finished = replace(create(str(stage.path / "checkpoint")), name=start.name)
    return finished, json.loads((stage.path / "result.json").read_text())


def _eager_row(
    model: Model,
    test: ImageDataset,
    recipe: Recipe,
    directory: RunDirectory,
    stages: list[Stage],
    depends: Mapping[str, Any],
) -> Row:
    """The model itself, unconverted: what every file is compared with."""
    runner = EagerRunner(model, recipe.bench.threads)
    reached = _scored("eager-fp32", runner, test, directory, stages, {**depends, "test": test.digest()})
    return Row(
        name=model.name,
        target="eager",
        precision="fp32",
        trained=model.trained,
        size_bytes=sum(t.numel() * t.element_size() for t in model.module.state_dict().values()),
        accuracy=reached,
        check="reference: the model in PyTorch, not converted",
        settings=_settings(recipe, model),
    )


def _file_row(
    model: Model,
    text: str,
    images: ProofImages,
    test: ImageDataset,
    recipe: Recipe,
    directory: RunDirectory,
    stages: list[Stage],
    depends: Mapping[str, Any],
) -> Row:
    """Export, prove and score one file; one that does not hold up becomes a row that says why."""
    target, precision = parse_export(text)
    depends = {
        **depends,
        "export": text,
        "proof": [recipe.calibration_images, recipe.verify_images],
        "test": test.digest(),
    }
    stem = f"{target.name}-{precision}"
    filename = export_name(model.name, precision, target)

    def work(out: Path, scratch: Path) -> None:
        try:
            found = export(model, target.name, out / filename, precision, images=images, threads=recipe.bench.threads)
        except CheckFailed as e:
            (out / "check.json").write_text(json.dumps({"check": f"failed: {e}", "agreement": None}))
            return
        (out / "check.json").write_text(json.dumps(_found(found)))

    stage = directory.stage(stem, depends, work)
    stages.append(stage)
    checked = json.loads((stage.path / "check.json").read_text())
    path = stage.path / filename
    row = Row(
        name=model.name,
        target=target.name,
        precision=precision,
        trained=model.trained,
        agreement=_known(Agreement, checked["agreement"]) if checked["agreement"] else None,
        check=checked["check"],
        settings={**_settings(recipe, model), "quantizer": target.precisions[precision]},
    )
    if not path.exists():
        return row
    artifact = read_artifact(path)
    row = replace(
        row,
        file=str(path.relative_to(directory.path)),
        size_bytes=size_bytes(target.files(path)),
        quantized=artifact.quantized,
    )
    runner = load(path, recipe.bench.threads)
    reached = _scored(f"{stem}-accuracy", runner, test, directory, stages, {"file": stage.key})
    return replace(row, accuracy=reached)


def _found(found: Verification) -> dict[str, Any]:
    return {
        "check": f"{found.sentence}; {found.proof}" if found.proof else found.sentence,
        "agreement": dataclasses.asdict(found.agreement),
    }


def _known(kind: type[T], raw: dict[str, Any]) -> T:
    """A stored measurement with its evidence."""
    return kind(**{**raw, "evidence": Evidence(raw["evidence"])})


def _settings(recipe: Recipe, model: Model) -> dict[str, str]:
    return {
        "input": "x".join(map(str, model.spec.size)),
        "passes": json.dumps(recipe.passes) if recipe.passes else "none",
        "calibration images": str(recipe.calibration_images),
        "threads": str(recipe.bench.threads),
    }


def _scored(
    name: str,
    runner: Runner,
    test: ImageDataset,
    directory: RunDirectory,
    stages: list[Stage],
    depends: Mapping[str, Any],
) -> Accuracy:
    def work(out: Path, scratch: Path) -> None:
        reached = accuracy(runner, test, directory.progress)
        (out / "accuracy.json").write_text(json.dumps(dataclasses.asdict(reached)))

    stage = directory.stage(name, {**depends, "threads": runner.threads, "evidence": runner.evidence}, work)
    stages.append(stage)
    return _known(Accuracy, json.loads((stage.path / "accuracy.json").read_text()))


def _timed(
    rows: Sequence[Row],
    model: Model,
    test: ImageDataset,
    recipe: Recipe,
    directory: RunDirectory,
    stages: list[Stage],
) -> list[Row]:
    """Time every row that its own runtime ran, all in one interleaved session, so that their ratios mean something."""
    timed = [i for i, row in enumerate(rows) if row.accuracy and row.accuracy.evidence is Evidence.MEASURED]

    def work(out: Path, scratch: Path) -> None:
        threads = recipe.bench.threads
        runners: list[Runner] = []
        for i in timed:
            file = rows[i].file
            runners.append(load(directory.path / file, threads) if file else EagerRunner(model, threads))
        image = sample(test, model.spec, 1)
        measured = interleave(
            runners,
            [image] * len(runners),
            rounds=recipe.bench.rounds,
            warmup=recipe.bench.warmup,
            progress=directory.progress,
        )
        (out / "latency.json").write_text(json.dumps([dataclasses.asdict(latency) for latency in measured]))

    depends = {
        "files": [stage.key for stage in stages],
        "bench": dataclasses.asdict(recipe.bench),
        "machine": key_of(environment()),
    }
    stage = directory.stage("latency", depends, work)
    stages.append(stage)
    measured = [_known(Latency, raw) for raw in json.loads((stage.path / "latency.json").read_text())]
    done = list(rows)
    for i, latency in zip(timed, measured, strict=True):
        done[i] = replace(done[i], latency=latency)
    return done
