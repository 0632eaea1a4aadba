"""What fp16 does to the numbers of a package on real images, and the package rewritten so that it does less."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..artifacts import DEFAULT_DATA, proof_images
from ..errors import BadInput
from ..targets import NotOurs, read_artifact
from ..types import InputSpec, Progress, silent
from .package import is_package

if TYPE_CHECKING:
    from ..targets.coreml.findings import Headroom
    from ..targets.coreml.headroom import Inputs
    from ..targets.coreml.interpreter import Interpreter
    from ..targets.coreml.repair import Repaired
    from ..targets.coreml.rounding import Rounded


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp16Audit:
    """What fp16 does to a package on real images. before, after: its answers in fp16, and the repaired one's."""

    name: str
    data: str
    headroom: Headroom
    before: tuple[Rounded, ...]
    repaired: Repaired | None = None
    after: tuple[Rounded, ...] = ()


def audit_fp16(
    source: str,
    *,
    data: str = DEFAULT_DATA,
    images: int = 8,
    strict: bool = False,
    repair_to: Path | None = None,
    foreign: InputSpec | None = None,
    progress: Progress = silent,
) -> Fp16Audit:
    """Hold every value of a Core ML package against the ends of fp16, on `images` pictures of a data set.

    repair_to: where a rewritten package goes, when anything can be rewritten exactly. foreign: mean and std for a
    package of others that takes an array. Raises BadInput for what cannot
    be audited, read or written, CheckFailed when a rewritten package is not the same.
    """
    if not is_package(source):
        raise BadInput(f"{source} is a model; export it to coreml and audit the file, whose own values are looked at.")
    from ..targets.coreml.headroom import headroom
    from ..targets.coreml.interpreter import Interpreter
    from ..targets.coreml.package import read_package
    from ..targets.coreml.repair import check_output, repair
    from ..targets.coreml.rounding import rounded
    from ..targets.coreml.seal import SEAL_KEY, check_seal

    if repair_to is not None:
        check_output(repair_to)
    package = read_package(Path(source))
    interpreter = Interpreter(package)
    if SEAL_KEY in package.spec.description.metadata.userDefined:
        check_seal(package, interpreter.program)
    feeds = _feeds(interpreter, data, images, strict, foreign, progress)
    found = headroom(interpreter, feeds, progress)
    audited = Fp16Audit(name=Path(source).name, data=data, headroom=found, before=rounded(source, feeds, progress))
    if repair_to is None:
        return audited
    repaired = repair(source, found, repair_to, feeds, progress)
    after = rounded(repaired.path, feeds, progress) if repaired.path is not None else ()
    return replace(audited, repaired=repaired, after=after)


def _feeds(
    interpreter: Interpreter, data: str, images: int, strict: bool, foreign: InputSpec | None, progress: Progress
) -> list[Inputs]:
    """Real images as the package takes them: as its metadata says, or for one of others resized pictures, which an
    array takes normalised as `foreign` says.
    """

    def draw(spec: InputSpec) -> Any:
        drawn = proof_images(spec, data, calibration=1, verification=images, strict=strict, progress=progress)
        return drawn.verification

    path = interpreter.path
    try:
        own = read_artifact(path).spec
    except NotOurs:
        only = interpreter.inputs[0]
        if len(interpreter.inputs) != 1 or len(only.shape) != 4 or only.shape[:2] != (1, 3):
            raise BadInput(
                f"{path} was not made by pocketvit and does not take one colour image, so that it is not known how "
                "pictures are prepared for it; convert it with an image input to audit it."
            ) from None
        drawn = draw(InputSpec(size=(3, only.shape[2], only.shape[3])))
        if only.kind == "array":
            if foreign is None:
                raise BadInput(
                    f"{path} takes an array and does not say how images are normalised for it; give --mean and --std "
                    "(0,0,0 and 1,1,1 for RGB in [0, 1])."
                ) from None
            mean, std = (np.asarray(part, np.float32)[:, None, None] for part in (foreign.mean, foreign.std))
            return [{only.name: ((image - mean) / std)[None]} for image in drawn]
        if foreign is not None:
            raise BadInput(f"{path} takes an image and has its own mean and std inside; leave them out.") from None
        pixels = np.round(drawn * 255)
        return [{only.name: image[None, ::-1] if only.colour == "BGR" else image[None]} for image in pixels]
    if foreign is not None:
        raise BadInput(f"{path} says itself how images are normalised; leave --mean and --std out.")
    return [{"image": image[None]} for image in draw(own)]
