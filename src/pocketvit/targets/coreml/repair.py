"""Rewrites a package so that it stays within fp16, as a new package with the same weights that is proven equal."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import files
from ...errors import BadInput, CheckFailed
from ...types import Evidence, Progress, silent
from .findings import ConstantHeadroom, Headroom, OpHeadroom, State
from .graph import Graph
from .headroom import Inputs, headroom
from .interpreter import Interpreter
from .norm_rewrites import scaled_decomposed_norm, scaled_norm, scaled_reduction
from .package import Package, read_package
from .program import read_program
from .rewrites import (
    Change,
    Reach,
    Refusal,
    finite_mask,
    finite_mask_behind,
    opened_attention,
    scaled_query,
    shifted_softmax,
)
from .seal import SEAL_KEY, check_seal, seal

REPAIRS_KEY = "pocketvit.repairs"  # in the metadata of a repaired package: one rewrite per line
TOLERANCE = 1e-5  # of the outputs' scale, in float32 arithmetic: the rewrites are exact but for the order of rounding
_STALE = "executorch_debug_handle_mapping.json"  # of coremltools: names operations that may be gone
_RULES = (
    finite_mask_behind,
    scaled_query,
    opened_attention,
    shifted_softmax,
    scaled_norm,
    scaled_decomposed_norm,
    scaled_reduction,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Repaired:
    """What was done. path: the new package, None where there was nothing to rewrite and nothing was written.

    changes: rewrites in it. refusals: what still overflows in it, and why no rewrite helps. error: largest difference
    of an output from the original's in float32 arithmetic, over the outputs' scale. after: its headroom.
    """

    path: Path | None
    changes: tuple[Change, ...]
    refusals: tuple[Refusal, ...]
    error: float
    before: Headroom
    after: Headroom
    evidence: Evidence = Evidence.INTERPRETED

    @property
    def sentence(self) -> str:
        """The outcome in words."""
        left = f"; {len(self.refusals)} overflow still" if self.refusals else ""
        if self.path is None:
            return f"nothing was rewritten and nothing written{left}" if left else "nothing to repair; nothing written"
        return f"{len(self.changes)} rewrites, equal to the original within {self.error:.1e} of its scale{left}"


def repair(
    source: Path | str, before: Headroom, out: Path | str, images: Sequence[Inputs], progress: Progress = silent
) -> Repaired:
    """Rewrite what `before` says overflows or is tight, write the result to `out` and prove it on `images`.

    The original stays as it is. Raises BadInput for an `out` that is taken or cannot be written, CheckFailed when the
    new package's outputs differ from the original's by more than 1e-5 of their scale; nothing is written then.
    """
    package, out = read_package(Path(source)), Path(out)
    check_output(out)
    if SEAL_KEY in package.spec.description.metadata.userDefined:
        check_seal(package, read_program(package))
    graph = Graph(package)
    changes, refusals = _rewrite(graph, before)
    if not changes:
        left = _left(before, refusals)
        return Repaired(path=None, changes=(), refusals=left, error=0.0, before=before, after=before)
    with files.workspace(out) as partial:
        made = partial / out.name
        spec = graph.spec()
        done = (*repaired_changes(package), *(f"{change.rewrite}: {change.detail}" for change in changes))
        spec.description.metadata.userDefined[REPAIRS_KEY] = "\n".join(done)
        write_package(package, spec, made)
        new = Interpreter(made)
        error = difference(Interpreter(package), new, images)
        if not error <= TOLERANCE:
            raise CheckFailed(
                f"The repaired {package.path.name} differs from the original by {error:.1e} of its outputs' scale in "
                f"float32 arithmetic, more than {TOLERANCE:.0e}; it was not kept. Rewrites: "
                f"{'; '.join(change.detail for change in changes)}."
            )
        after = headroom(new, images, progress)
        files.move_into_place([made], out.parent)
    return Repaired(
        path=out,
        changes=changes,
        refusals=_left(after, refusals),
        error=error,
        before=before,
        after=after,
    )


def check_output(out: Path) -> None:
    """Raise BadInput unless a new package can be written to `out`."""
    if out.suffix != ".mlpackage":
        raise BadInput(f"{out} should end in .mlpackage.")
    if out.exists():
        raise BadInput(f"{out} exists; choose another name for the repaired package.")
    files.check_writable(out)


def write_package(package: Package, spec: Any, out: Path) -> None:
    """Write `spec` with everything else that is in `package`, weights included, to `out`, which must not exist.

    Metadata travels in `spec` (description.metadata.userDefined); a package that was sealed is sealed anew.
    """
    # links stay links, so that nothing outside the package is copied into the new one; reading refuses such
    shutil.copytree(package.path, out, symlinks=True, ignore=shutil.ignore_patterns(_STALE))
    (out / package.model.relative_to(package.path)).write_bytes(spec.SerializeToString())
    if SEAL_KEY in spec.description.metadata.userDefined:
        written = read_package(out)
        seal(written, read_program(written))


def repaired_changes(package: Package) -> tuple[str, ...]:
    """The rewrites by which a package was made from another, in words; none for one as it was converted."""
    text = package.spec.description.metadata.userDefined.get(REPAIRS_KEY)
    return tuple(text.splitlines()) if text else ()


def _rewrite(graph: Graph, before: Headroom) -> tuple[tuple[Change, ...], list[Refusal]]:
    by_name = {op.name: op for op in before.ops}
    reach: Reach = by_name.get
    named = before.of(State.OVERFLOWS, State.TIGHT)
    changes: list[Change] = []
    refusals: list[Refusal] = []
    settled: set[str] = set()
    for constant in (found for found in named if isinstance(found, ConstantHeadroom)):
        outcome = finite_mask(graph, constant.name, reach)
        if isinstance(outcome, Change):
            changes.append(outcome)
        elif outcome is not None:
            refusals.append(outcome)
    for op in (found for found in named if isinstance(found, OpHeadroom)):
        for rule in _RULES:
            if op.name in settled:
                break
            outcome = rule(graph, op, reach)
            if isinstance(outcome, Change):
                changes.append(outcome)
                settled |= set(outcome.touched)
            elif outcome is not None:
                refusals.append(outcome)
    return tuple(changes), refusals


def _left(after: Headroom, refusals: Iterable[Refusal]) -> tuple[Refusal, ...]:
    """What overflows after all, each with a reason: that of the rule which could not help, or a general one."""
    reasons = {refusal.op: refusal.reason for refusal in refusals}
    general = (
        "later operations read the value as it is: it is the network's own scale. Train with smaller weights, or "
        "convert with this operation in float32"
    )
    return tuple(
        Refusal(op=found.name, reason=f"{found.because}; {reasons.get(found.name, general)}")
        for found in after.of(State.OVERFLOWS)
    )


def difference(original: Interpreter, new: Interpreter, images: Sequence[Inputs]) -> float:
    """The largest difference between two packages' outputs over the largest output; inf where one is not finite."""
    worst = scale = 0.0
    for inputs in images:
        ours, theirs = new.run(inputs), original.run(inputs)
        for name, value in theirs.items():
            for a, b in zip(_numbers(value), _numbers(ours[name]), strict=True):
                gap = float((a - b).abs().max()) if a.numel() else 0.0
                worst = max(worst, gap if math.isfinite(gap) else math.inf)
                scale = max(scale, float(a.abs().max()) if a.numel() else 0.0)
    return worst / scale if scale else worst


def _numbers(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.double()]
    if isinstance(value, dict):
        return [torch.tensor(list(value.values()), dtype=torch.float64)]
    return []
