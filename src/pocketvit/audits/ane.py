"""What the Neural Engine would make of a model or a package: predicted from the graph, nothing is timed."""

from __future__ import annotations

import copy
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
from ..types import Progress, silent
from .package import is_package, package_records

_MOST_PIXELS = 2048  # of a side in a sweep


@dataclass(frozen=True, kw_only=True, slots=True)
class AneAudit:
    """An audit with what was asked for beside it. is_file: a package was read, not a model exported."""

    name: str
    is_file: bool
    audit: Audit
    sweep: Sweep | None = None
    score: Score | None = None


def audit_ane(
    source: str,
    *,
    pretrained: bool = False,
    sizes: Sequence[int] = (),
    plan: Path | None = None,
    progress: Progress = silent,
) -> AneAudit:
    """Audit a model by name or a Core ML package for the Neural Engine; nothing is run on one.

    sizes: sides in pixels to sweep over, for a model. plan: a compute plan of the package, from a Mac. Raises BadInput
    for what cannot be audited or read, CheckFailed for a model that cannot be exported.
    """
    is_file = is_package(source)
    if is_file and sizes:
        raise BadInput(f"{source} is a file, whose input size is fixed; a sweep needs the model it came from.")
    if plan is not None and not is_file:
        raise BadInput(f"A compute plan belongs to a package; {source} is a model. Export it and audit the file.")
    _check_sizes(sizes)
    planned = load_plan(plan) if plan is not None else ()
    if is_file:
        from ..targets.coreml.package import read_package
        from ..targets.coreml.program import read_program

        ops = package_records(read_program(read_package(Path(source))))
        scored = score(ops, planned) if plan is not None else None
        return AneAudit(name=Path(source).name, is_file=True, audit=audit(ops, source), score=scored)
    model = create(source, pretrained=pretrained)
    ops = _exported(model)
    found = audit(ops, model.display_name)
    swept = _sweep(source, model, ops, sizes, progress) if sizes else None
    return AneAudit(name=model.display_name, is_file=False, audit=found, sweep=swept)


def _check_sizes(sizes: Sequence[int]) -> None:
    for size in sizes:
        if not 1 <= size <= _MOST_PIXELS:
            raise BadInput(f"An input of {size} pixels cannot be swept over; sizes are from 1 to {_MOST_PIXELS}.")
    if len(set(sizes)) < len(sizes):
        raise BadInput("A size is named twice in the sweep.")


def _exported(model: Model) -> tuple[OpRecord, ...]:
    from ..targets._torch_program import capture

    try:
        program = capture(deployable(model), model.spec)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError, KeyError) as e:
        raise CheckFailed(f"{model.display_name} cannot be exported at {model.spec.size[1]} px: {_reason(e)}") from e
    return torch_records(program)


def _sweep(source: str, model: Model, ops: tuple[OpRecord, ...], sizes: Sequence[int], progress: Progress) -> Sweep:
    points: list[SweepPoint] = []
    refused: list[Refused] = []
    for done, size in enumerate(sorted(sizes)):
        progress("sweep", done, len(sizes))
        if model.spec.size[1:] == (size, size):
            points.append(sweep_point(size, ops))
            continue
        try:
            points.append(sweep_point(size, _resized(source, model, size)))
        except CheckFailed as e:
            refused.append(Refused(size=size, reason=str(e).partition(" px: ")[2]))
    return Sweep(points=tuple(points), refused=tuple(refused), cliffs=find_cliffs(points))


def _resized(source: str, model: Model, size: int) -> tuple[OpRecord, ...]:
    """The operations at another size: set as timm sets it, else built for it, else asked of the model as it is.

    Raises CheckFailed when the model does not take that size.
    """
    spec = replace(model.spec, size=(model.spec.size[0], size, size))
    module: Any = copy.deepcopy(model.module)
    if hasattr(module, "set_input_size"):
        try:
            module.set_input_size(img_size=(size, size))
        except (AssertionError, ValueError, RuntimeError) as e:
            raise CheckFailed(f"{model.display_name} refuses {size} px: {_reason(e)}") from e
    else:
        with suppress(BadInput):  # many have no such argument and take any size as they are
            module = create(source, img_size=size).module  # shapes do not depend on the weights
    return _exported(replace(model, module=module, spec=spec))


def _reason(error: Exception) -> str:
    """The first line of an exporter's complaint that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:160]}" if lines else type(error).__name__
