"""Exported files: made, reloaded from disk, proven against their model, loaded, scored and timed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from . import files
from .data import ImageDataset, batches, open_data, preprocess, sample
from .errors import BadInput, CheckFailed
from .golden import golden_count, golden_images, make_golden
from .measure import environment
from .measure.accuracy import accuracy
from .measure.agreement import compare_logits, refuse_degenerate
from .measure.latency import interleave
from .models import EagerRunner, Model, create, deployable, weights_sha256
from .recipe import parse_export, parse_precision
from .targets import TARGETS, NotOurs, read_artifact, target_of
from .types import (
    Accuracy,
    Agreement,
    Artifact,
    Evidence,
    InputSpec,
    Latency,
    OpTime,
    Precision,
    Progress,
    Quantization,
    Runner,
    silent,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from .targets import Target

DEFAULT_DATA = "photos"  # real photographs that scikit-learn ships: noise is never used
LEAST_TOP1 = 0.8  # of the images, a file of a trained model must give the model's own top class


@dataclass(frozen=True, kw_only=True, slots=True)
class ProofImages:
    """Real images in [0, 1], (N, C, H, W): those that set activation ranges, and others that prove the result.

    names: what the verification images are called in messages. skipped: images that could not be read.
    """

    calibration: NDArray[np.float32]
    verification: NDArray[np.float32]
    names: tuple[str, ...]
    skipped: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What was found when a file was reloaded from disk and held against its model.

    agreement: with the model, on real images. golden: with the logits stored in the file. proof: in words, what was
    shown of the operations of a file that another runtime than its own ran. failures: sentences; none means it passed.
    """

    artifact: Artifact
    agreement: Agreement
    golden: Agreement
    proof: str | None
    failures: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The outcome in words, for tables."""
        if self.failures:
            return f"failed: {self.failures[0]}"
        return f"ok (floor {self.artifact.precision.floor_db:.0f} dB)"

    @property
    def described(self) -> str:
        """The outcome in words with its numbers."""
        if self.failures:
            return self.sentence
        same = round(self.agreement.top1 * self.agreement.images)
        known = "" if self.agreement.evidence is Evidence.MEASURED else f", {self.agreement.evidence}"
        return (
            f"{self.sentence}: {self.agreement.sqnr_db:.1f} dB, same class on {same} of {self.agreement.images} images"
            f"{known}"
        )


def proof_images(
    spec: InputSpec,
    source: str = DEFAULT_DATA,
    *,
    calibration: int = 128,
    verification: int = 64,
    strict: bool = False,
    progress: Progress = silent,
) -> ProofImages:
    """Draw calibration images from the training split of `source` and verification images from its test split.

    The photographs are too few to keep apart: all of them verify. Raises BadInput for data that cannot be used.
    """
    train = open_data(source, "train", strict=strict, progress=progress)
    test = open_data(source, "all" if source == DEFAULT_DATA else "test", strict=strict, progress=progress)
    return draw_proof(spec, train, test, calibration=calibration, verification=verification)


def draw_proof(
    spec: InputSpec, train: ImageDataset, test: ImageDataset, *, calibration: int, verification: int
) -> ProofImages:
    """Draw images, one of each class in turn, from data that is already open."""
    if spec.size[0] != 3:
        raise BadInput(f"The model takes {spec.size[0]} channels; pocketvit feeds RGB images, which have 3.")
    chosen = test.take(verification, seed=1)
    if len(chosen) < 2:
        raise BadInput(f"{test.name} has {len(chosen)} image; at least 2 are needed to tell whether a file follows.")
    shown = next(batches(chosen, spec, len(chosen)))[0]
    if (shown == shown[0]).all():
        kind = f"every pixel is {shown.max():.2g}" if np.ptp(shown) == 0 else "pixel by pixel"
        raise BadInput(
            f"The {len(shown)} images drawn from {test.name} are all the same ({kind}), so they cannot tell whether a "
            "file follows its model; give photos of what the model is for."
        )
    return ProofImages(
        calibration=sample(train, spec, calibration, seed=0),
        verification=shown,
        names=tuple(chosen.images.name(int(row)) for row in chosen.rows),
        skipped=train.skipped + test.skipped,
    )


def reference_logits(model: Model, images: NDArray[np.float32], threads: int = 2) -> NDArray[np.float32]:
    """Return the model's own logits (N, classes), which files are held against, for images (N, C, H, W).

    Raises CheckFailed when they cannot prove anything, as those of some untrained models cannot.
    """
    logits = EagerRunner(model, threads)(images)
    refuse_degenerate(logits)
    return logits


def export(
    model: Model,
    target: str,
    path: Path | str,
    precision: str = Precision.FP32,
    *,
    images: ProofImages | None = None,
    reference: NDArray[np.float32] | None = None,
    threads: int = 2,
    quantization: Quantization = Quantization(),
) -> Verification:
    """Write `model` to `path` for `target`, reload it from disk and prove it; only a proven file stays.

    images: real images to calibrate and verify with; crops of two photographs when not given. reference: what
    `reference_logits` gave for images.verification, to compute it once for several files. quantization: layers to keep
    float, calibrator, group size. Raises BadInput before any
    work for a target, precision, suffix or path that cannot be, CheckFailed when the model cannot be converted or the
    file does not hold up, with the number; nothing is left behind then.
    """
    chosen = TARGETS.get(target)
    wanted = parse_precision(chosen, precision)
    path = Path(path)
    chosen.require()
    _check_destination(path, chosen)
    images = images or proof_images(model.spec)
    if reference is None:
        reference = reference_logits(model, images.verification, threads)
    if len(reference) != len(images.verification):
        raise BadInput(f"The reference is of {len(reference)} images, but {len(images.verification)} are to verify.")
    shown = min(golden_count(model.spec), len(reference))
    with files.workspace(path) as partial:
        draft = Artifact(
            path=partial / path.name,
            target=target,
            precision=wanted,
            model=model.name,
            trained=model.trained,
            classes=model.classes,
            spec=model.spec,
            golden=make_golden(images.verification[:shown], reference[:shown]),
            weights_sha256=weights_sha256(model.module),
            quantization=_applying(quantization, wanted),
            made_with=environment.versions(),
        )
        chosen.export(deployable(model), draft, images.calibration)
        found = _verify(read_artifact(draft.path), model, reference, images.verification, threads)
        if found.failures:
            raise CheckFailed(f"{target}:{wanted} of {model.display_name} {' Also: '.join(found.failures)}")
        files.move_into_place(chosen.files(draft.path), path.parent)
    return Verification(
        artifact=read_artifact(path),
        agreement=found.agreement,
        golden=found.golden,
        proof=found.proof,
        failures=(),
    )


def _applying(quantization: Quantization, precision: Precision) -> Quantization:
    """What of the options a file of this precision is made with, and so says of itself."""
    if not precision.is_quantized:
        return Quantization()
    return quantization if precision is Precision.W8A8 else replace(quantization, calibrator=None)


def verify(
    path: Path | str, model: Model, *, images: NDArray[np.float32] | None = None, threads: int = 2
) -> Verification:
    """Hold a file against the model it came from, on real images (N, C, H, W) and on its own golden vectors.

    Raises BadInput when the two cannot be compared, CheckFailed when the model's outputs are degenerate.
    """
    artifact = read_artifact(Path(path))
    if artifact.classes != model.classes or artifact.spec.size != model.spec.size:
        raise BadInput(
            f"{path} maps {artifact.spec.size} to {artifact.classes} classes, {model.name} {model.spec.size} to "
            f"{model.classes}; it was made from another model."
        )
    if images is None:
        images = proof_images(model.spec).verification
    return _verify(artifact, model, reference_logits(model, images, threads), images, threads)


def _verify(
    artifact: Artifact, model: Model, reference: NDArray[np.float32], images: NDArray[np.float32], threads: int
) -> Verification:
    target = TARGETS.get(artifact.target)
    failures = []
    if artifact.weights_sha256 != weights_sha256(model.module):
        failures.append(f"was made from other weights than those of {model.name}.")
    runner = target.load(artifact, threads)
    agreement = compare_logits(reference, runner(images), runner.evidence)
    expected = np.asarray(artifact.golden.logits, dtype=np.float32)
    golden = compare_logits(expected, runner(golden_images(artifact)), runner.evidence)
    failures += _shortfalls(artifact, agreement, golden)
    proof = None
    try:
        proof = target.show(artifact, deployable(model), images, reference)
    except CheckFailed as e:
        failures.append(str(e))
    return Verification(artifact=artifact, agreement=agreement, golden=golden, proof=proof, failures=tuple(failures))


def _shortfalls(artifact: Artifact, agreement: Agreement, golden: Agreement) -> list[str]:
    found = []
    floor = artifact.precision.floor_db
    for where, result in (("the model's logits", agreement), ("its golden logits", golden)):
        if result.sqnr_db < floor:
            found.append(
                f"is {result.sqnr_db:.1f} dB from {where}, below the {floor:.0f} dB floor of {artifact.precision}; "
                f"the worst of {result.images} images is number {result.worst_image}."
            )
    # the classes of an untrained model mean nothing, so their agreement proves nothing either
    if artifact.trained and agreement.top1 < LEAST_TOP1:
        found.append(
            f"gives the model's top class on {agreement.top1:.0%} of {agreement.images} images, less than "
            f"{LEAST_TOP1:.0%}."
        )
    return found


def is_artifact(source: str) -> bool:
    """True when `source` looks like an exported file rather than a model's name."""
    return any(source.rstrip("/").endswith(TARGETS.get(name).suffix) for name in TARGETS)


def load(
    source: str | Path, threads: int = 2, *, pretrained: bool = False, foreign: InputSpec | None = None
) -> Runner:
    """Load an exported file with its own runtime, or a model by name in eager PyTorch.

    foreign: how images are prepared for a file that pocketvit did not write and that does not say so itself; its size
    and labels are the file's own. Raises BadInput for a file that is missing, damaged or of a format whose foreign
    files cannot be read.
    """
    if is_artifact(str(source)):
        target = target_of(Path(source))
        try:
            artifact = read_artifact(Path(source))
        except NotOurs:
            if target.foreign is None:
                raise
            return target.foreign(Path(source), threads, foreign)
        if foreign is not None:
            raise BadInput(f"{source} carries its own mean and std; leave them out.")
        target.require()
        return target.load(artifact, threads)
    if Path(source).suffix == ".mlmodel" and Path(source).is_file():
        raise BadInput(
            f'{source} is a single file; convert it to an ML program (.mlpackage) with convert_to="mlprogram".'
        )
    if foreign is not None:
        raise BadInput(f"{source} is a model with its own mean and std; leave them out.")
    return EagerRunner(create(str(source), pretrained=pretrained), threads)


def evaluate(
    source: str | Path | Runner,
    data: str | ImageDataset,
    *,
    split: str = "test",
    threads: int = 2,
    progress: Progress = silent,
) -> Accuracy:
    """Top-1 and top-5 of a file or model over every image of a data set's split."""
    dataset = open_data(data, split) if isinstance(data, str) else data
    runner = source if isinstance(source, Runner) else load(source, threads)
    runner = runner.in_order_of(dataset.labels)
    return accuracy(runner, dataset, progress)


def bench(
    sources: Sequence[str | Path | Runner],
    *,
    data: str = DEFAULT_DATA,
    rounds: int = 50,
    warmup: int = 5,
    threads: int = 2,
    progress: Progress = silent,
) -> tuple[Latency, ...]:
    """Time files and models against each other on a real image, interleaved, batch 1; one Latency each, in order."""
    runners = [source if isinstance(source, Runner) else load(source, threads) for source in sources]
    dataset = open_data(data, "test")
    images = [sample(dataset, runner.spec, 1) for runner in runners]
    return interleave(runners, images, rounds=rounds, warmup=warmup, progress=progress)


def classify(runner: Runner, pictures: Sequence[Image], top: int = 5) -> list[list[tuple[str, float]]]:
    """The `top` classes of each picture (PIL, any size) with their probabilities, prepared as the model wants it."""
    prepare = preprocess(runner.spec)
    scores = runner(np.stack([prepare(picture) for picture in pictures]).astype(np.float32) / np.float32(255))
    if not runner.probabilities:
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        scores = powers / powers.sum(axis=1, keepdims=True)
    names = runner.spec.labels or tuple(f"class {i}" for i in range(runner.classes))
    return [[(names[i], float(row[i])) for i in np.argsort(-row)[:top]] for row in scores]


def profiles(runners: Sequence[Runner], data: str = DEFAULT_DATA, runs: int = 10) -> list[tuple[OpTime, ...] | None]:
    """Time per kind of operation for each runner, on a real image; None where its runtime offers no profile."""
    dataset = open_data(data, "test")
    return [runner.profile(sample(dataset, runner.spec, 1), runs) for runner in runners]


def check_export(text: str, directory: Path, output: Path | None, model: str) -> tuple[Target, Precision, Path]:
    """Read 'target:precision' and decide the file's path; BadInput for whatever would stop the export later."""
    target, precision = parse_export(text)
    target.require()
    if directory.exists() and not directory.is_dir():
        raise BadInput(f"{directory} is a file; --out needs a directory.")
    path = output or directory / export_name(Path(model.rstrip("/")).name, precision, target)
    _check_destination(path, target)
    return target, precision, path


def export_name(model: str, precision: Precision, target: Target) -> str:
    """The file name of an export: the model's name made safe, its precision, the target's suffix."""
    safe = "".join(c if c.isalnum() or c in "-_" else "_" for c in model.removesuffix(".safetensors"))
    return f"{safe}_{precision}{target.suffix}"


def _check_destination(path: Path, target: Target) -> None:
    """Raise BadInput unless `path` can be written and nothing there but an older export would be lost."""
    target.check_suffix(path)
    files.check_writable(path)
    for companion in target.files(path)[1:]:
        if companion.exists() and not path.exists():
            raise BadInput(f"{companion} exists without {path.name}; choose another name or remove it.")
    if not path.exists():
        return
    try:
        read_artifact(path)
    except BadInput as e:
        raise BadInput(f"{path} exists and was not made by pocketvit; choose another name or remove it.") from e
