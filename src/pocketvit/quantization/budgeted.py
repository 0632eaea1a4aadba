"""One file within a budget of accuracy: real files are made and scored until the fewest layers are float."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..artifacts import ProofImages, Verification, export, load
from ..data import ImageDataset, check_classes, open_data
from ..errors import BadInput, CheckFailed
from ..files import remove
from ..measure.accuracy import accuracy
from ..measure.environment import versions
from ..models import EagerRunner, Model, deployable, weights_sha256
from ..search import Found, Sensitivity, Trial, sensitivities, within_budget
from ..stages import RunDirectory, key_of
from ..targets import TARGETS
from ..types import Accuracy, Calibrator, Evidence, Precision, Quantization
from .calibrators import measured_calibrators

SEARCH_IMAGES = 2000
SENSITIVITY_IMAGES = 16
_TIGHTENED = 2  # times, where the search's images were kinder than the test's


@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Images with labels: `search` steers, `test` decides."""

    search: ImageDataset
    test: ImageDataset


@dataclass(frozen=True, kw_only=True, slots=True)
class Budgeted:
    """A proven file within its budget.

    accuracy: of the file, reference: of the float model, on the test images. search_top1, search_reference: shares on
    the search images. reasons: why each kept layer is float. trials: how many files were made. calibrators: dB each.
    """

    verification: Verification
    accuracy: Accuracy
    reference: Accuracy
    search_top1: float
    search_reference: float
    reasons: Mapping[str, str]
    trials: int
    calibrator: Calibrator | None
    calibrators: Mapping[Calibrator, float]

    @property
    def drop(self) -> float:
        """Points of top-1 (percent) that the file loses on the test images."""
        return 100 * (self.reference.top1 - self.accuracy.top1)


def labelled(model: Model, data: str, *, strict: bool = False, images: int = SEARCH_IMAGES) -> Labelled:
    """Open `data` for a search; BadInput where the model is untrained or the classes are not its own."""
    if not model.trained:
        raise BadInput(f"{model.name} is untrained, so there is no accuracy to keep; train it, or load weights.")
    test = open_data(data, "test", strict=strict)
    if len(test.labels) != model.classes:
        raise BadInput(
            f"--max-drop needs labelled images of the model's {model.classes} classes; {data} has {len(test.labels)}. "
            "Give them with --data."
        )
    check_classes(model.classes, test)
    return Labelled(search=open_data(data, "val", strict=strict).take(images), test=test)


def export_within(
    model: Model,
    target: str,
    path: Path,
    precision: Precision,
    *,
    max_drop: float,
    data: Labelled,
    images: ProofImages,
    directory: RunDirectory,
    wanted: Quantization = Quantization(),
    threads: int = 2,
) -> Budgeted:
    """Write `path` so that its own top-1 is at most `max_drop` points (percent) below the float model's.

    directory: open; trials done in it before are not made again. wanted: layers the user wants float in any case, and
    a calibrator in place of the one that measures best. Raises CheckFailed with the numbers when the budget cannot be
    met, and no file is left.
    """
    check_drop(max_drop)
    one = _Search(model, target, precision, data, images, directory, wanted, threads)
    float_search, float_test = one.reference("search"), one.reference("test")
    calibrators: Mapping[Calibrator, float] = {}
    if precision is Precision.W8A8 and wanted.calibrator is None:
        calibrators = one.calibrators()
        if calibrators:
            one.wanted = replace(wanted, calibrator=next(iter(calibrators)))
    least = float_search.top1 - max_drop / 100
    for attempt in range(_TIGHTENED + 1):
        found = one.search(least)
        chosen = replace(one.wanted, keep=tuple(sorted({*wanted.keep, *found.keep})))
        made = export(model, target, path, precision, images=images, threads=threads, quantization=chosen)
        reached = one.score(path, "test", chosen)
        short = float_test.top1 - max_drop / 100 - reached.top1
        if short <= 1e-9:
            return Budgeted(
                verification=made,
                accuracy=reached,
                reference=float_test,
                search_top1=found.top1,
                search_reference=float_search.top1,
                reasons=found.reasons,
                trials=len(found.trials),
                calibrator=chosen.calibrator,
                calibrators=calibrators,
            )
        for part in TARGETS.get(target).files(path):
            remove(part)
        if attempt < _TIGHTENED:
            least = max(least, found.top1) + short  # the search's images were kinder by so much
    raise CheckFailed(
        f"{target}:{precision} keeps {max_drop:g} points on the {len(data.search)} images of the search and loses "
        f"{100 * (float_test.top1 - reached.top1):.2f} on the {len(data.test)} test images ({100 * reached.top1:.2f}% "
        f"against {100 * float_test.top1:.2f}%), also after the search was tightened. Allow a larger drop."
    )


def check_drop(max_drop: float) -> None:
    """Raise BadInput for a budget that cannot be one."""
    if not 0 <= max_drop < 100:  # a NaN is neither
        raise BadInput(f"--max-drop is in points of top-1, 0 or more and below 100, not {max_drop:g}.")


class _Search:
    """What every stage of one file's search depends on."""

    def __init__(
        self,
        model: Model,
        target: str,
        precision: Precision,
        data: Labelled,
        images: ProofImages,
        directory: RunDirectory,
        wanted: Quantization,
        threads: int,
    ) -> None:
        self.model = model
        self.target = TARGETS.get(target)
        self.precision = precision
        self.data = data
        self.images = images
        self.directory = directory
        self.wanted = wanted
        self.threads = threads
        self.stem = f"{target}-{precision}"
        self.depends = {
            "model": [model.name, model.spec, weights_sha256(model.module), type(model.module).__name__],
            "images": hashlib.sha256(images.calibration.tobytes()).hexdigest(),
            "versions": versions(),
        }

    def reference(self, which: str) -> Accuracy:
        """The float model's own accuracy on the `search` or the `test` images."""

        def work(out: Path, scratch: Path) -> None:
            runner = EagerRunner(self.model, self.threads)
            write_accuracy(out / "accuracy.json", accuracy(runner, getattr(self.data, which), self.directory.progress))

        digest = getattr(self.data, which).digest()
        stage = self.directory.stage(f"float-{which}", {**self.depends, "data": digest}, work)
        return read_accuracy(stage.path / "accuracy.json")

    def score(self, path: Path, which: str, chosen: Quantization) -> Accuracy:
        """The accuracy of a file that has been made."""

        def work(out: Path, scratch: Path) -> None:
            runner = load(path, self.threads)
            write_accuracy(out / "accuracy.json", accuracy(runner, getattr(self.data, which), self.directory.progress))

        depends = {**self.depends, "file": [self.stem, chosen], "data": getattr(self.data, which).digest()}
        stage = self.directory.stage(f"{self.stem}-{which}", depends, work)
        return read_accuracy(stage.path / "accuracy.json")

    def calibrators(self) -> Mapping[Calibrator, float]:
        """What each calibrator of the target measures, best first."""

        def work(out: Path, scratch: Path) -> None:
            found = measured_calibrators(
                self.model, self.target, self.images, self.wanted, self.threads, self.directory.progress
            )
            (out / "calibrators.json").write_text(json.dumps({k: str(v) for k, v in found.items()}))

        stage = self.directory.stage(
            f"{self.stem}-calibrators", {**self.depends, "known": self.target.calibrators, "wanted": self.wanted}, work
        )
        raw = json.loads((stage.path / "calibrators.json").read_text())
        return {Calibrator(name): float(db) for name, db in raw.items()}

    def sensitivities(self) -> tuple[Sensitivity, ...]:
        """Layers that may be kept float, most worth it first."""

        def work(out: Path, scratch: Path) -> None:
            found = sensitivities(
                deployable(self.model),
                self.model.spec,
                self.images.calibration[:SENSITIVITY_IMAGES],
                self.precision,
                self.wanted.group_size,
                self.directory.progress,
            )
            text = json.dumps([{**dataclasses.asdict(one), "sqnr_db": str(one.sqnr_db)} for one in found])
            (out / "sensitivities.json").write_text(text)

        depends = {**self.depends, "precision": self.precision, "group": self.wanted.group_size}
        stage = self.directory.stage(f"sensitivity-{self.precision}", depends, work)
        raw = json.loads((stage.path / "sensitivities.json").read_text())
        every = [Sensitivity(**{**one, "sqnr_db": float(one["sqnr_db"])}) for one in raw]
        return tuple(one for one in every if one.layer not in self.wanted.keep)

    def search(self, least_top1: float) -> Found:
        """The cheapest layers to keep float; for a precision that rounds no layer, the file as it is."""
        quantizes = self.precision.is_quantized and self.precision is not Precision.INTEGER
        candidates = self.sensitivities() if quantizes else ()
        return within_budget(candidates, least_top1, self.trial)

    def trial(self, keep: tuple[str, ...]) -> Trial:
        """Make a file with these layers float, score it on the search's images, and let it go."""
        chosen = replace(self.wanted, keep=tuple(sorted({*self.wanted.keep, *keep})))

        def work(out: Path, scratch: Path) -> None:
            path = out / f"file{self.target.suffix}"
            try:
                export(
                    self.model,
                    self.target.name,
                    path,
                    self.precision,
                    images=self.images,
                    threads=self.threads,
                    quantization=chosen,
                )
                reached = accuracy(load(path, self.threads), self.data.search, self.directory.progress)
                result: dict[str, Any] = {"top1": reached.top1, "problem": ""}
            except CheckFailed as e:
                result = {"top1": None, "problem": str(e)}
            for part in self.target.files(path):
                remove(part)
            (out / "trial.json").write_text(json.dumps(result))

        depends = {**self.depends, "chosen": chosen, "data": self.data.search.digest()}
        name = f"{self.stem}-trial-{key_of(chosen)}"
        stage = self.directory.stage(name, depends, work)
        return Trial(keep=keep, **json.loads((stage.path / "trial.json").read_text()))


def write_accuracy(path: Path, reached: Accuracy) -> None:
    """Keep an accuracy as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(reached)))


def read_accuracy(path: Path) -> Accuracy:
    """Inverse of `write_accuracy`."""
    raw = json.loads(path.read_text())
    return Accuracy(**{**raw, "evidence": Evidence(raw["evidence"])})
