"""One file per format: write a model as a file that describes itself, and run that file with its own runtime.

Nothing heavy is imported here or at the top of any target: a library is imported by the function that needs it, so
that listing targets takes milliseconds and works where a library is missing or broken.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import files as disk
from ..errors import BadInput, CheckFailed, PocketvitError
from ..registry import Registry, close_matches
from ..types import Artifact, Calibrator, InputSpec, Precision, Quantization, Runner
from ._no_telemetry import no_telemetry
from ._reading import NotOurs as NotOurs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    Calibration = NDArray[np.float32] | None

MAX_SIDE = 8192  # pixels; a file that claims more is damaged or hostile
MAX_CLASSES = 1_000_000


def just_the_file(path: Path) -> list[Path]:
    """Most formats are one file (or one directory)."""
    return [path]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """A format: what it can make, what it needs, and how to write, run and read it.

    precisions: each with the quantizer that makes it, in words. packages: distributions it needs. extra: the pip
    extra that installs them. write, open and embedded do the format's work; call `export`, `load` and `read`, which
    check what is asked first. files: all that make up a path, the path itself first. interpreted: its own runtime
    does not exist on this machine, so the file is interpreted. foreign: opens a file of this
    format that pocketvit did not write, with the mean, std and resize rule it was made for if its user knows them.
    calibrators: how it can choose the range of an activation, its own default first. Layers named in
    draft.quantization.keep stay float, and `write` says in Quantized.kept why any layer did.
    prove: shows that the file's content is the module's, given images (N, C, H, W) and the module's logits; returns
    what was proven in a sentence, raises CheckFailed.
    """

    name: str
    suffix: str
    precisions: Mapping[Precision, str]
    packages: tuple[str, ...]
    extra: str
    write: Callable[[nn.Module, Artifact, Calibration], Artifact]
    open: Callable[[Artifact, int], Runner]
    embedded: Callable[[Path], str]
    files: Callable[[Path], list[Path]] = just_the_file
    calibrators: tuple[Calibrator, ...] = ()
    interpreted: bool = False
    foreign: Callable[[Path, int, InputSpec | None], Runner] | None = None
    prove: Callable[[Artifact, nn.Module, NDArray[np.float32], NDArray[np.float32]], str] | None = None

    def missing(self) -> list[str]:
        """Distributions this target needs that are not installed; imports nothing."""
        return [name for name in self.packages if not _version(name)]

    def check(self, precision: Precision) -> None:
        """Raise BadInput unless this target makes `precision` and its packages are installed."""
        if precision not in self.precisions:
            known = ", ".join(self.precisions)
            raise BadInput(f"{self.name} does not make {precision}; it makes {known}.")
        self.require()

    def needs_calibration(self, precision: Precision) -> bool:
        """True where export needs images to find the activations' ranges."""
        return precision in (Precision.W8A8, Precision.INTEGER)

    def export(self, module: nn.Module, draft: Artifact, calibration: Calibration = None) -> Artifact:
        """Write `module` as draft.path, with the artifact's metadata inside; return the artifact as written.

        module maps float32 RGB in [0, 1] of shape (1, *spec.size) to logits (1, classes). calibration: (N, *spec.size)
        in [0, 1], needed where `needs_calibration`. draft.path must not exist yet; when anything fails nothing is
        left there. Raises BadInput before work, CheckFailed when the model cannot be converted or no layer quantized.
        """
        self.check(draft.precision)
        check_claims(draft)
        self._check_new(draft)
        self._check_calibration(draft, calibration)
        self.check_quantization(module, draft.spec, draft.precision, draft.quantization)
        versions = {name: _version(name) for name in self.packages}
        draft = dataclasses.replace(draft, made_with={**draft.made_with, **versions})
        try:
            with no_telemetry(), disk.full_disk_named(draft.path):
                artifact = self.write(module, draft, calibration)
        except (PocketvitError, OSError, MemoryError):
            self.remove(draft.path)
            raise
        except Exception as error:
            self.remove(draft.path)
            raise CheckFailed(f"{draft.display_name} could not be exported: {_first_line(error)}") from error
        except BaseException:
            self.remove(draft.path)
            raise
        if artifact.precision.is_quantized and not (artifact.quantized and artifact.quantized.layers):
            self.remove(draft.path)
            count = artifact.quantized or "no"
            raise CheckFailed(
                f"{draft.display_name}: the quantizer quantized {count} layers, so this is not {draft.precision}."
            )
        return artifact

    def load(self, artifact: Artifact, threads: int) -> Runner:
        """Open artifact.path with its runtime, or what stands in for it here, on `threads` CPU threads."""
        if threads < 1:
            raise BadInput(f"{threads} threads cannot run anything; ask for 1 or more.")
        self.require()
        self._check_present(artifact.path)
        with no_telemetry():
            return self.open(artifact, threads)

    def show(
        self, artifact: Artifact, module: nn.Module, images: NDArray[np.float32], reference: NDArray[np.float32]
    ) -> str | None:
        """What `prove` proves, in a sentence, or None where the file's own runtime does; CheckFailed when it fails."""
        if self.prove is None:
            return None
        try:
            with no_telemetry():
                return self.prove(artifact, module, images, reference)
        except (PocketvitError, OSError, MemoryError):
            raise
        except Exception as error:
            raise CheckFailed(f"could not be converted again to be held against: {_first_line(error)}") from error

    def read(self, path: Path) -> str:
        """Return the JSON embedded in the file, unparsed; BadInput when the file is damaged or not ours."""
        self.require()
        self._check_present(path)
        with no_telemetry():
            return self.embedded(path)

    def remove(self, path: Path) -> None:
        """Delete every file that makes up `path`; those not there are left alone."""
        for part in self.files(path):
            disk.remove(part)

    def require(self) -> None:
        """Raise BadInput with the pip command that installs what is missing."""
        if missing := self.missing():
            raise BadInput(f"{self.name} needs {', '.join(missing)}: pip install 'pocketvit[{self.extra}]'")

    def check_suffix(self, path: Path) -> None:
        """Raise BadInput unless the name ends as this target's files do."""
        if path.suffix != self.suffix:
            known = [TARGETS.get(name).suffix for name in TARGETS]
            hint = close_matches(path.suffix, known) if path.suffix not in known else ""
            ends = path.suffix or "nothing"
            raise BadInput(f"{path} should end in {self.suffix}, as {self.name} files do, not in {ends}.{hint}")

    def _check_new(self, draft: Artifact) -> None:
        self.check_suffix(draft.path)
        if not draft.path.parent.is_dir():
            raise BadInput(f"{draft.path} cannot be written: there is no directory {draft.path.parent}.")
        for part in self.files(draft.path):
            if part.exists():
                raise BadInput(f"{part} already exists; export writes new files only.")

    def _check_calibration(self, draft: Artifact, calibration: Calibration) -> None:
        if not self.needs_calibration(draft.precision):
            return
        if calibration is None or len(calibration) == 0:
            raise BadInput(f"{self.name}:{draft.precision} needs images to calibrate on, and got none.")
        from ..data import check_calibration

        check_calibration(calibration, draft.spec)

    def check_quantization(
        self, module: nn.Module, spec: InputSpec, precision: Precision, wanted: Quantization
    ) -> None:
        """Raise BadInput for a calibrator, a layer or a model that quantization to `precision` cannot take."""
        chosen = wanted.calibrator if precision is Precision.W8A8 else None
        if chosen is not None and chosen not in self.calibrators:
            known = ", ".join(self.calibrators) or "none to choose from"
            raise BadInput(f"{self.name} has no calibrator {chosen}; it has {known}.")
        if not precision.is_quantized:
            return
        if kind := quantized_already(module):
            raise BadInput(f"The model is quantized already (it holds {kind}); export the float model.")
        if wanted.keep and precision is Precision.INTEGER:
            raise BadInput(
                f"{next(iter(wanted.keep))} cannot stay float in an integer-only file; choose w8a8 to keep layers."
            )
        if wanted.keep:
            from ..models.graph import capture, layers

            names = {layer.name for layer in layers(capture(module, spec))}
            for name in wanted.keep:
                if name not in names:
                    raise BadInput(f"The model has no layer {name!r} to keep float.{close_matches(name, names)}")

    def _check_present(self, path: Path) -> None:
        for part in self.files(path):
            if not part.exists():
                raise BadInput(f"There is no {part}.")
            if part.is_file() and part.stat().st_size == 0:
                raise BadInput(f"{part} is empty; export it again.")


TARGETS: Registry[Target] = Registry("target", "pocketvit.targets")


def quantized_already(module: nn.Module) -> str | None:
    """The kind of integer weights a module holds, None for a float model."""
    import torch

    for name, tensor in module.state_dict().items():
        if not isinstance(tensor, torch.Tensor):  # packed parameters of PyTorch's own int8 layers
            return f"packed parameters in {name}"
        if type(tensor.data) not in (torch.Tensor, torch.nn.Parameter) and "torchao" in type(tensor.data).__module__:
            return type(tensor.data).__name__
        if tensor.is_quantized or (tensor.dtype in (torch.int8, torch.uint8) and name.endswith("weight")):
            return f"{tensor.dtype} weights in {name}"
    return None


def target_of(path: Path) -> Target:
    """Return the target that writes files with this suffix, or raise BadInput with the suffixes known."""
    suffixes = {TARGETS.get(name).suffix: TARGETS.get(name) for name in TARGETS}
    if path.suffix not in suffixes:
        hint = close_matches(path.suffix, suffixes) or f" Known: {', '.join(sorted(suffixes))}."
        raise BadInput(f"{path} is no format pocketvit reads: its name ends in {path.suffix or 'nothing'!r}.{hint}")
    return suffixes[path.suffix]


def read_artifact(path: Path) -> Artifact:
    """Read what an exported file says about itself; BadInput when it is missing, damaged, not ours or absurd."""
    target = target_of(path)
    artifact = Artifact.from_json(target.read(path), path)
    if artifact.target != target.name or artifact.precision not in target.precisions:
        raise BadInput(
            f"{path} says it is {artifact.target}:{artifact.precision}, which a {target.name} file cannot be."
        )
    check_claims(artifact)
    return artifact


def check_claims(artifact: Artifact) -> None:
    """Raise BadInput unless the artifact's sizes fit together and are within reason."""
    spec, path = artifact.spec, artifact.path
    whole = len(spec.size) == 3 and all(type(n) is int for n in spec.size)
    if not whole or spec.size[0] != 3 or not all(1 <= side <= MAX_SIDE for side in spec.size[1:]):
        raise BadInput(f"{path} claims images of size {spec.size}; expected (3, height, width) up to {MAX_SIDE}.")
    if not 1 <= artifact.classes <= MAX_CLASSES:
        raise BadInput(f"{path} claims {artifact.classes} classes; expected 1 to {MAX_CLASSES}.")
    if spec.labels and len(spec.labels) != artifact.classes:
        raise BadInput(f"{path} claims {artifact.classes} classes but names {len(spec.labels)} labels.")
    if not all(len(row) == artifact.classes and all(map(math.isfinite, row)) for row in artifact.golden.logits):
        raise BadInput(f"{path} carries golden logits that are not {artifact.classes} finite numbers per image.")
    if artifact.quantized is not None and not 0 <= artifact.quantized.layers <= artifact.quantized.of:
        raise BadInput(f"{path} claims {artifact.quantized} quantized layers.")
    if len(artifact.golden.images) != len(artifact.golden.logits):
        raise BadInput(
            f"{path} carries {len(artifact.golden.images)} golden images for {len(artifact.golden.logits)} logits."
        )


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
