"""A package as a Runner: with our interpreter anywhere, with Core ML itself on a Mac."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ...errors import BadInput
from ...registry import close_matches
from ...types import Artifact, Evidence, InputSpec, Runner
from .._reading import check_shapes, damage_reported
from .._runner import FileRunner
from .arithmetic import Arithmetic
from .features import Feature
from .interpreter import Interpreter
from .package import Package, read_package
from .seal import check_seal

if TYPE_CHECKING:
    from numpy.typing import NDArray

_DEFAULT = Arithmetic.FP16_FP32_ACC
_SUM_OFF = 0.01  # how far fp16 probabilities may add up from 1: a thousand of them round by 0.0005, a few vanish


class InterpretedRunner(FileRunner):
    """Interprets a package that pocketvit wrote; what it declares fp16 is rounded as it is stored."""

    evidence = Evidence.INTERPRETED

    def __init__(self, artifact: Artifact, threads: int, arithmetic: Arithmetic = _DEFAULT) -> None:
        """Load and check the package; BadInput when it was damaged or is not what its metadata says."""
        self._artifact = artifact
        package = read_package(artifact.path)
        _check_interface(artifact, package)
        self.interpreter = Interpreter(package, arithmetic)
        check_seal(package, self.interpreter.program)

        def run_one(image: NDArray[np.float32]) -> NDArray[np.float32]:
            _compute_with(threads)
            return self.interpreter.predict({"image": image})["logits"]

        super().__init__(artifact, threads, run_one)
        self.name += _suffix(arithmetic)

    def computing_in(self, arithmetic: str) -> Runner:
        """The same package, rounded as `arithmetic` says."""
        return InterpretedRunner(self._artifact, self.threads, _arithmetic(arithmetic))


class ForeignRunner(Runner):
    """Interprets a package that somebody else wrote: one image or array in; logits or class probabilities out."""

    evidence = Evidence.INTERPRETED

    def __init__(self, path: Path, threads: int, spec: InputSpec | None, arithmetic: Arithmetic = _DEFAULT) -> None:
        """Load a package. spec: mean, std and resize rule; size and labels are the package's own.

        An image input takes pixels 0..255 as Core ML does and has its normalisation inside: mean 0,0,0 and std 1,1,1
        are all that a spec may say of it there; an array needs them. Raises BadInput for packages that do not classify
        one RGB image.
        """
        self._given = spec
        self._interpreter = Interpreter(path, arithmetic)
        self._input = self._only_input()
        self._normalises = self._input.kind == "array"
        if not self._normalises and spec is not None and (any(spec.mean) or set(spec.std) != {1.0}):
            raise BadInput(f"{path} takes an image and has its own mean and std inside; leave them out.")
        if self._normalises and spec is None:
            raise BadInput(
                f"{path} takes an array and does not say how images are normalised for it; give --mean and --std "
                "(0,0,0 and 1,1,1 for RGB in [0, 1])."
            )
        self.name = f"coreml, not pocketvit's: {path.name}{_suffix(arithmetic)}"
        self.threads = threads
        labels, scores = self._scores(np.zeros(self._input.shape, np.float32))
        self.classes = len(scores)
        self.probabilities = _are_probabilities(scores, declared=bool(labels))
        height, width = self._input.shape[2:]
        self.spec = dataclasses.replace(spec or InputSpec(), size=(3, height, width), labels=labels)
        self._order = np.arange(self.classes)

    def in_order_of(self, labels: Sequence[str]) -> Runner:
        """This package with its classes in the order of `labels`, where these are its own in another order."""
        ours = {label: i for i, label in enumerate(self.spec.labels)}
        if self.spec.labels == tuple(labels) or len(ours) != self.classes or sorted(ours) != sorted(labels):
            return self
        found = copy.copy(self)
        found._order = self._order[[ours[label] for label in labels]]
        found.spec = dataclasses.replace(self.spec, labels=tuple(labels))
        return found

    def computing_in(self, arithmetic: str) -> Runner:
        """The same package, rounded as `arithmetic` says, with its classes in its own order."""
        return ForeignRunner(self._interpreter.path, self.threads, self._given, _arithmetic(arithmetic))

    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores (N, classes) of images (N, 3, H, W) in [0, 1]: logits, or what the package gives in their place."""
        scores = np.empty((len(images), self.classes), np.float32)
        for i, image in enumerate(images):
            _compute_with(self.threads)
            scores[i] = self._scores(self._prepared(image))[1][self._order]
        return scores

    def _prepared(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        if not self._normalises:
            ordered = image[::-1] if self._input.colour == "BGR" else image
            return np.round(ordered * 255)[None].astype(np.float32)
        mean, std = (np.asarray(part, np.float32)[:, None, None] for part in (self.spec.mean, self.spec.std))
        return ((image - mean) / std)[None].astype(np.float32)

    def _only_input(self) -> Feature:
        if len(self._interpreter.inputs) != 1:
            raise BadInput(
                f"{self._interpreter.path} takes {len(self._interpreter.inputs)} inputs instead of an image."
            )
        (found,) = self._interpreter.inputs
        if len(found.shape) != 4 or found.shape[:2] != (1, 3):
            raise BadInput(f"{self._interpreter.path} takes {found.shape}, not one RGB image (1, 3, height, width).")
        return found

    def _scores(self, image: NDArray[np.float32]) -> tuple[tuple[str, ...], NDArray[np.float32]]:
        """Labels where the package has them, and one score per class."""
        results = self._interpreter.predict({self._input.name: image}).values()
        for found in results:
            if isinstance(found, dict):
                return tuple(map(str, found)), np.asarray(list(found.values()), np.float32)
        arrays = [found for found in results if isinstance(found, np.ndarray) and found.dtype.kind == "f"]
        if len(arrays) != 1 or arrays[0].size != arrays[0].shape[-1]:
            raise BadInput(
                f"{self._interpreter.path} gives {[a.shape for a in arrays]}, not one vector with a score per class."
            )
        return (), arrays[0].reshape(-1)


def _are_probabilities(scores: NDArray[np.float32], *, declared: bool) -> bool:
    """True when scores, of an image, are probabilities: between 0 and 1, and declared to be or 1 together."""
    within = bool(((scores >= 0) & (scores <= 1)).all())
    return within and (declared or abs(float(scores.sum()) - 1) < _SUM_OFF)


def _arithmetic(name: str) -> Arithmetic:
    """The arithmetic of that name; BadInput for another."""
    if name not in set(Arithmetic):
        known = list(Arithmetic)
        raise BadInput(f"There is no arithmetic {name!r}; use {', '.join(known)}.{close_matches(name, known)}")
    return Arithmetic(name)


def _suffix(arithmetic: Arithmetic) -> str:
    """What a name says of the arithmetic, where it is not the usual one."""
    return "" if arithmetic is _DEFAULT else f", in {arithmetic} arithmetic"


def core_ml_runner(artifact: Artifact, threads: int) -> Runner:
    """Compile and run with MLModel.predict; Core ML chooses its own threads and processors."""
    import coremltools as ct

    package = read_package(artifact.path)
    _check_interface(artifact, package)
    with damage_reported(artifact.path, "Core ML"):
        model = ct.models.MLModel(str(artifact.path))

    def run_one(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return model.predict({"image": image})["logits"]

    return FileRunner(artifact, threads, run_one)


def _check_interface(artifact: Artifact, package: Package) -> None:
    """Raise BadInput unless the package maps one float32 'image' to one float32 'logits' of the promised shapes."""
    description = package.spec.description
    ends = [*description.input, *description.output]
    if [end.name for end in ends] != ["image", "logits"]:
        raise BadInput(f"{artifact.path} maps {[end.name for end in ends]}, expected one 'image' to one 'logits'.")
    image, logits = (end.type.multiArrayType for end in ends)
    for end, array in zip(ends, (image, logits), strict=True):
        if array.dataType != array.FLOAT32:
            raise BadInput(f"{artifact.path} does not take or give its {end.name} as float32.")
    check_shapes(artifact, image.shape, logits.shape)


def _compute_with(threads: int) -> None:
    """Set torch's threads: one setting for the whole process, which other candidates may have changed."""
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
