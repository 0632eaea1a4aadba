"""One file within a budget of accuracy: real files are made and scored until the fewest layers are float."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import files
from ..artifacts import ProofImages, Verification, export, load
from ..data import ImageDataset, open_data
from ..errors import BadInput, CheckFailed
from ..measure.accuracy import accuracy
from ..measure.environment import versions
from ..models import EagerRunner, Model, deployable, weights_sha256
from ..search import Found, Sensitivity, Trial, sensitivities, within_budget
from ..stages import RunDirectory, key_of
from ..targets import TARGETS, read_artifact
from ..types import Accuracy, Calibrator, Evidence, Precision, Quantization
from .calibrators import measured_calibrators

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SEARCH_IMAGES = 2000
SENSITIVITY_IMAGES = 16
_REJECTED = 3  # files that fall short on the test images before the search gives up


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

    def spent(self, max_drop: float) -> str:
        """What of the budget was used, in words."""
        return f"loses {self.drop:.2f} of {max_drop:g} points" if self.drop >= 0 else f"gains {-self.drop:.2f} points"


def labelled(model: Model, data: str, *, strict: bool = False, images: int = SEARCH_IMAGES) -> Labelled:
    """Open `data` for a search; BadInput where the model is untrained or the classes are not its own.

    The search takes validation images, or, where these stand in for test images, training images.
    """
    if not model.trained:
        raise BadInput(f"{model.name} is untrained, so there is no accuracy to keep; train it, or load weights.")
    test = open_data(data, "test", strict=strict)
    if len(test.labels) != model.classes:
        raise BadInput(
            f"--max-drop needs labelled images of the model's {model.classes} classes; {data} has {len(test.labels)}. "
            "Give them with --data."
        )
    search = open_data(data, "val", strict=strict)
    if search.digest() == test.digest():
        search = open_data(data, "train", strict=strict)
    return Labelled(search=search.take(images), test=test)


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
    original: Model | None = None,
    reference: NDArray[np.float32] | None = None,
    wanted: Quantization = Quantization(),
    threads: int = 2,
) -> Budgeted:
    """Write `path` so that its own top-1 is at most `max_drop` points (percent) below the float model's.

    directory: open; trials done in it before are not made again. original: the model before passes, whose accuracy is
    the one to keep. reference: logits of images.verification that files are held against, `model`'s where left out.
    wanted: layers the user wants float in any case, and a calibrator in place of the one that measures best. Raises
    CheckFailed with the numbers when the budget cannot be met; what was at `path` then stays as it was.
    """
    check_drop(max_drop)
    one = _Search(model, original or model, target, precision, data, images, directory, reference, wanted, threads)
    float_search, float_test = one.reference("search"), one.reference("test")
    calibrators: Mapping[Calibrator, float] = {}
    if precision is Precision.W8A8 and wanted.calibrator is None:
        calibrators = one.calibrators()
        if calibrators:
            one.wanted = replace(wanted, calibrator=next(iter(calibrators)))
    least = float_search.top1 - max_drop / 100
    for _ in range(_REJECTED + 1):
        found = one.search(least)
        with files.workspace(path) as partial:
            draft = partial / path.name
            made = one.export(draft, found.reasons)
            reached = accuracy(load(draft, threads), data.test, directory.progress)
            short = float_test.top1 - max_drop / 100 - reached.top1
            if short <= 1e-9:
                files.move_into_place(TARGETS.get(target).files(draft), path.parent)
                return Budgeted(
                    verification=replace(made, artifact=read_artifact(path)),
                    accuracy=reached,
                    reference=float_test,
                    search_top1=found.top1,
                    search_reference=float_search.top1,
                    reasons=found.reasons,
                    trials=len(one.tried),
                    calibrator=one.wanted.calibrator,
                    calibrators=calibrators,
                )
        # the search's images were kinder than the test: to the search this file now falls short as well
        one.rejected[found.keep] = min(found.top1, least - short)
    raise CheckFailed(
        f"{target}:{precision} keeps {max_drop:g} points on the {len(data.search)} images of the search and loses "
        f"{100 * (float_test.top1 - reached.top1):.2f} on the {len(data.test)} test images ({100 * reached.top1:.2f}% "
        f"against {100 * float_test.top1:.2f}%), as {_REJECTED} other files did. Allow a larger drop."
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
        original: Model,
        target: str,
        precision: Precision,
        data: Labelled,
        images: ProofImages,
        directory: RunDirectory,
        logits: NDArray[np.float32] | None,
        wanted: Quantization,
        threads: int,
    ) -> None:
        self.model = model
        self.original = original
        self.target = TARGETS.get(target)
        self.precision = precision
        self.data = data
        self.images = images
        self.directory = directory
        self.logits = logits
        self.wanted = wanted
        self.threads = threads
        self.stem = f"{target}-{precision}"
        self.tried: dict[tuple[str, ...], Trial] = {}
        self.rejected: dict[tuple[str, ...], float] = {}  # what fell short on the test images, and what it counts as
        shown = [images.calibration, images.verification]
        self.depends = {
            "model": identity(model),
            "images": [hashlib.sha256(part.tobytes()).hexdigest() for part in shown],
            "versions": versions(),
        }

    def reference(self, which: str) -> Accuracy:
        """The original float model's own accuracy on the `search` or the `test` images."""
        images: ImageDataset = getattr(self.data, which)
        return float_accuracy(self.original, which, images, self.directory, self.threads)

    def export(self, path: Path, keep: Mapping[str, str]) -> Verification:
        """Make and prove the file with these layers float, beside those the user wants so."""
        chosen = replace(self.wanted, keep={**keep, **self.wanted.keep})
        return export(
            self.model,
            self.target.name,
            path,
            self.precision,
            images=self.images,
            reference=self.logits,
            threads=self.threads,
            quantization=chosen,
        )

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
        """The cheapest layers to keep float, among those the target quantizes at all."""
        everything = self.trial(())
        can_keep = self.precision.is_quantized and self.precision is not Precision.INTEGER
        if not can_keep or (everything.top1 or 0) >= least_top1:
            return within_budget((), least_top1, self.trial)
        candidates = [one for one in self.sensitivities() if one.layer not in everything.floats]
        return within_budget(candidates, least_top1, self.trial)

    def trial(self, keep: tuple[str, ...]) -> Trial:
        """Make a file with these layers float, score it on the search's images, and let it go."""

        def work(out: Path, scratch: Path) -> None:
            path = out / f"file{self.target.suffix}"
            try:
                counted = self.export(path, dict.fromkeys(keep, "on trial")).artifact.quantized
                reached = accuracy(load(path, self.threads), self.data.search, self.directory.progress)
                floats = sorted(counted.kept) if counted else []
                result: dict[str, Any] = {"top1": reached.top1, "problem": "", "floats": floats}
            except CheckFailed as e:
                result = {"top1": None, "problem": str(e), "floats": []}
            for part in self.target.files(path):
                files.remove(part)
            (out / "trial.json").write_text(json.dumps(result))

        if keep not in self.tried:
            depends = {**self.depends, "keep": keep, "wanted": self.wanted, "data": self.data.search.digest()}
            stage = self.directory.stage(f"{self.stem}-trial-{key_of([keep, self.wanted])}", depends, work)
            found = json.loads((stage.path / "trial.json").read_text())
            self.tried[keep] = Trial(keep=keep, **{**found, "floats": tuple(found["floats"])})
        made = self.tried[keep]
        return replace(made, top1=self.rejected[keep]) if keep in self.rejected else made


def identity(model: Model) -> list[Any]:
    """What tells one model from another in a run directory."""
    return [model.name, model.spec, weights_sha256(model.module), type(model.module).__name__]


def float_accuracy(model: Model, which: str, images: ImageDataset, directory: RunDirectory, threads: int) -> Accuracy:
    """The accuracy of the model itself in PyTorch, measured once for a run directory."""

    def work(out: Path, scratch: Path) -> None:
        write_accuracy(out / "accuracy.json", accuracy(EagerRunner(model, threads), images, directory.progress))

    depends = {"model": identity(model), "data": images.digest(), "versions": versions()}
    return read_accuracy(directory.stage(f"float-{which}", depends, work).path / "accuracy.json")


def write_accuracy(path: Path, reached: Accuracy) -> None:
    """Keep an accuracy as JSON."""
    path.write_text(json.dumps(dataclasses.asdict(reached)))


def read_accuracy(path: Path) -> Accuracy:
    """Inverse of `write_accuracy`."""
    raw = json.loads(path.read_text())
    return Accuracy(**{**raw, "evidence": Evidence(raw["evidence"])})
