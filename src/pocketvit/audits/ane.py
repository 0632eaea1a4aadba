"""What the Neural Engine would make of a model or a package: predicted from the graph, nothing is timed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import BadInput, CheckFailed
from ..measure.ane.audit import Audit, audit
from ..measure.ane.compute_plan import Score, load_plan, score
from ..measure.ane.graph import OpRecord
from ..measure.ane.sweep import Refused, Sweep, SweepPoint, find_cliffs, sweep_point
from ..measure.ane.torch_graph import torch_records
from ..models import Model, create, deployable
from ..passes import apply
from ..types import Progress, silent
from .package import default_shapes, is_package, package_records

_MOST_PIXELS = 2048  # of a side in a sweep
# what models raise of a size they do not take, and torch.export (all of its own are RuntimeErrors) of code
_REFUSALS = (RuntimeError, AssertionError, ValueError)


class Unexportable(CheckFailed):
    """A model that cannot be exported at a size. reason: the model's or the exporter's own words."""

    def __init__(self, model: Model, reason: str) -> None:
        super().__init__(f"{model.display_name} cannot be exported at {model.spec.size[1]} px: {reason}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True, slots=True)
class AneAudit:
    """An audit with what was asked for beside it. is_file: a package was read, not a model exported. before: the same
    model without the passes.
    """

    name: str
    is_file: bool
    audit: Audit
    before: Audit | None = None
    sweep: Sweep | None = None
    score: Score | None = None


def audit_ane(
    source: str,
    *,
    pretrained: bool = False,
    passes: Sequence[Any] = (),
    sizes: Sequence[int] = (),
    plan: Path | None = None,
    progress: Progress = silent,
) -> AneAudit:
    """Audit a model by name or a Core ML package for the Neural Engine; nothing is run on one.

    passes: configs of passes applied to a model first; the audit then also says what it was before them.
    sizes: sides in pixels to sweep over, for a model as it is. plan: a compute plan of the package, from a Mac. Raises
    BadInput for what cannot be audited or read, CheckFailed for a model that cannot be exported.
    """
    is_file = is_package(source)
    if is_file and passes:
        raise BadInput(f"{source} is a file; passes are applied to the model it came from.")
    if passes and sizes:
        raise BadInput("A sweep is of the model as it is; leave the passes out.")
    if is_file and sizes:
        raise BadInput(f"{source} is a file, whose input size is fixed; a sweep needs the model it came from.")
    if plan is not None and not is_file:
        raise BadInput(f"A compute plan belongs to a package; {source} is a model. Export it and audit the file.")
    _check_sizes(sizes)
    planned = load_plan(plan) if plan is not None else ()
    if is_file:
        from ..targets.coreml.package import read_package
        from ..targets.coreml.program import read_program

        package, name = read_package(Path(source)), Path(source).name
        program = read_program(package)
        ops = package_records(program, default_shapes(package, program))
        scored = score(ops, planned) if plan is not None else None
        return AneAudit(name=name, is_file=True, audit=audit(ops, name), score=scored)
    model = create(source, pretrained=pretrained)
    rewritten = apply(model, passes)
    ops = _exported(rewritten)
    found = audit(ops, rewritten.display_name)
    if passes:
        return AneAudit(name=rewritten.display_name, is_file=False, audit=found, before=audit_model(model))
    swept = _sweep(source, model, ops, sizes, progress) if sizes else None
    return AneAudit(name=model.display_name, is_file=False, audit=found, sweep=swept)


def audit_model(model: Model) -> Audit:
    """Audit a model that is already there; raises CheckFailed for one that cannot be exported."""
    return audit(_exported(model), model.display_name)


def _check_sizes(sizes: Sequence[int]) -> None:
    for size in sizes:
        if not 1 <= size <= _MOST_PIXELS:
            raise BadInput(f"An input of {size} pixels cannot be swept over; sizes are from 1 to {_MOST_PIXELS}.")
    if len(set(sizes)) < len(sizes):
        raise BadInput("A size is named twice in the sweep.")


def _exported(model: Model) -> tuple[OpRecord, ...]:
    from ..models.graph import capture

    try:
        program = capture(deployable(model), model.spec)
    except _REFUSALS as e:
        raise Unexportable(model, _reason(e)) from e
    return torch_records(program)


def _sweep(source: str, model: Model, ops: tuple[OpRecord, ...], sizes: Sequence[int], progress: Progress) -> Sweep:
    points: list[SweepPoint] = []
    refused: list[Refused] = []
    own = _windows(model.module)
    for done, size in enumerate(sorted(sizes)):
        progress("sweep", done, len(sizes))
        if model.spec.size[1:] == (size, size):
            points.append(sweep_point(size, ops, _named(own)))
            continue
        try:
            points.append(_point(source, model, size, own))
        except Unexportable as e:
            refused.append(Refused(size=size, reason=e.reason))
    return Sweep(points=tuple(points), refused=tuple(refused), cliffs=find_cliffs(points), windows=_named(own))


def _point(source: str, model: Model, size: int, own: tuple[int, ...]) -> SweepPoint:
    """The traffic at another size, in the model's own windows where it takes the size with them.

    timm would scale the windows with the image, and so compare different models.
    """
    resized = replace(model, spec=replace(model.spec, size=(model.spec.size[0], size, size)))
    setter = getattr(model.module, "set_input_size", None)
    if setter is not None and own and "window_size" in inspect.signature(setter).parameters:
        with suppress(Unexportable):  # MaxViT's maps must be whole windows: its windows have to change
            return _counted(_set(resized, window_size=own))
    if setter is not None:
        return _counted(_set(resized))
    with suppress(BadInput):  # many have no such argument and take any size as they are
        # shapes do not depend on the weights
        resized = replace(resized, module=create(source, img_size=size).module)
    return _counted(resized)


def _set(model: Model, **how: Any) -> Model:
    """A copy whose module is set to the spec's size as timm sets it; Unexportable when it refuses."""
    module: Any = copy.deepcopy(model.module)
    try:
        module.set_input_size(img_size=model.spec.size[1:], **how)
    except _REFUSALS as e:
        raise Unexportable(model, _reason(e)) from e
    return replace(model, module=module)


def _counted(model: Model) -> SweepPoint:
    return sweep_point(model.spec.size[1], _exported(model), _named(_windows(model.module)))


def _windows(module: Any) -> tuple[int, ...]:
    """Height and width of the largest windows of attention; empty where there are none."""
    sides = (getattr(part, name, None) for part in module.modules() for name in ("window_size", "partition_size"))
    return max((side for side in sides if isinstance(side, tuple) and len(side) == 2), default=())


def _named(window: tuple[int, ...]) -> str:
    return "x".join(map(str, window))


def _reason(error: Exception) -> str:
    """The first line of an exporter's complaint that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
