"""Where Core ML would run each operation, as a Mac says, and how our prediction compares.

Two JSON forms are read:

- Ours, which docs/mac/compute_plan_to_json.py writes on a Mac (macOS 14.4 on, coremltools 8.1 on):
  {"format": "pocketvit-compute-plan", "version": 1, "model": ..., "compute_units": ..., "operations": [{"name": first
  output, "kind": "ios17.conv", "preferred": "neural_engine" | "gpu" | "cpu" | "other" | null, "supported": [...],
  "cost": share of the whole or null}, ...]}. "other" is a device that the script does not know.
- What coremltools' experimental `ComputePlan.from_dict` (models/ml_program/experimental/remote_device.py) reads from a
  device: a list `infos` of `path`, `deviceUsage` and `estimatedCost`. It holds no kinds.

The performance reports of Xcode show the same columns. No description of their file's contents was found in public and
none was seen by us, so such a file is refused rather than guessed at.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import BadInput
from ...types import Evidence
from .graph import OpRecord
from .matches import off_engine

FORMAT = "pocketvit-compute-plan"
ENGINE = "neural_engine"
_DEVICES = {ENGINE: ENGINE, "neuralEngine": ENGINE, "gpu": "gpu", "cpu": "cpu", "other": "other"}
_MAX_BYTES = 64 << 20
_MAX_OPERATIONS = 200_000
_WAY_OUT = "write one on a Mac with docs/mac/compute_plan_to_json.py"


class _Unreadable(ValueError):
    """What an operation of a plan says that cannot be, after "Operation 3 of plan.json"."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedOp:
    """One operation of a plan. preferred: None where Core ML gives no device, as for constants. cost: a share."""

    name: str
    kind: str
    preferred: str | None
    supported: tuple[str, ...]
    cost: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Disagreement:
    """An operation that runs elsewhere than predicted. reason: why it was predicted off the engine; empty if not."""

    name: str
    kind: str
    module: str
    preferred: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Score:
    """Our prediction against a plan, over the operations both name and the plan has a device for.

    on_engine, of: operations the plan runs on the Neural Engine, of those it has a device for. precision: of those
    predicted on the engine, the share that is; recall: of those on it, the share predicted so; None where there are
    none. cost_on_engine: share of the plan's estimated cost; None where it has no costs. The plan is what the user's
    Mac said; the prediction is ours.
    """

    on_engine: int
    of: int
    matched: int
    precision: float | None
    recall: float | None
    cost_on_engine: float | None
    disagreements: tuple[Disagreement, ...]
    not_in_plan: int
    not_in_file: int
    evidence: Evidence = Evidence.MEASURED


def load_plan(path: Path) -> tuple[PlannedOp, ...]:
    """Read a compute plan; BadInput says what is wrong with the file and how to get one."""
    if not path.is_file():
        raise BadInput(f"There is no compute plan {path}; {_WAY_OUT}.")
    if path.stat().st_size > _MAX_BYTES:
        raise BadInput(f"{path} has {path.stat().st_size} bytes, more than a compute plan's {_MAX_BYTES}.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise BadInput(f"{path} is not JSON ({e}); {_WAY_OUT}.") from e
    if isinstance(raw, dict) and raw.get("format") == FORMAT and raw.get("version") == 1:
        rows, read = raw.get("operations"), _ours
    elif isinstance(raw, dict) and "infos" in raw:
        rows, read = raw["infos"], _coremltools
    else:
        raise BadInput(
            f"{path} is not a compute plan that pocketvit reads (an Xcode performance report is not one); {_WAY_OUT}."
        )
    if not isinstance(rows, list) or not 0 < len(rows) <= _MAX_OPERATIONS:
        raise BadInput(f"{path} lists no operations, or more than {_MAX_OPERATIONS}; {_WAY_OUT}.")
    planned = []
    for i, row in enumerate(rows):
        try:
            planned.append(read(row))
        except _Unreadable as e:
            raise BadInput(f"Operation {i} of {path} {e}; {_WAY_OUT}.") from e
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as e:
            raise BadInput(f"Operation {i} in {path} cannot be read ({type(e).__name__}: {e}); {_WAY_OUT}.") from e
    if len({op.name for op in planned}) < len(planned):
        raise BadInput(f"{path} names an operation twice; {_WAY_OUT}.")
    return tuple(planned)


def _ours(row: Any) -> PlannedOp:
    preferred, cost = row["preferred"], row.get("cost")
    return PlannedOp(
        name=_text(row["name"]),
        kind=_text(row["kind"]).rpartition(".")[2],
        preferred=None if preferred is None else _device(preferred),
        supported=tuple(_device(device) for device in row.get("supported", ())),
        cost=None if cost is None else _share(cost),
    )


def _coremltools(row: Any) -> PlannedOp:
    usage, cost = row["deviceUsage"], row.get("estimatedCost")
    (last,) = row["path"]["components"][-1:]
    return PlannedOp(
        name=_text(last["programOperation"]["data"]["outputName"]),
        kind="",
        preferred=_device(_only(usage["preferred"])),
        supported=tuple(_device(_only(device)) for device in usage["supported"]),
        cost=None if cost is None else _share(cost),
    )


def _only(named: Any) -> Any:
    (name,) = named  # {"neuralEngine": {"totalCoreCount": 16}}
    return name


def _device(name: Any) -> str:
    if not isinstance(name, str) or name not in _DEVICES:
        raise _Unreadable(f"names the device {name!r}; known: {', '.join(dict.fromkeys(_DEVICES.values()))}")
    return _DEVICES[name]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} should be text")
    return value


def _share(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"{value!r} should be a number")
    return float(value)


def score(ops: Sequence[OpRecord], plan: Sequence[PlannedOp]) -> Score:
    """Hold our prediction for a package against its plan; BadInput when they share no operation."""
    placed = {op.name: op for op in plan if op.preferred is not None}
    records = {op.name: op for op in ops}
    both = [(records[name], planned) for name, planned in placed.items() if name in records]
    if not both:
        raise BadInput("The compute plan names none of the file's operations; make it from this very package.")
    on = [(record, planned.preferred == ENGINE, off_engine(record)) for record, planned in both]
    predicted = [is_on for _, is_on, reason in on if not reason]
    actual = [not reason for _, is_on, reason in on if is_on]
    costs = [op for op in placed.values() if op.cost is not None]
    total = sum(op.cost or 0.0 for op in costs)
    return Score(
        on_engine=sum(op.preferred == ENGINE for op in placed.values()),
        of=len(placed),
        matched=len(both),
        precision=sum(predicted) / len(predicted) if predicted else None,
        recall=sum(actual) / len(actual) if actual else None,
        cost_on_engine=sum(op.cost or 0.0 for op in costs if op.preferred == ENGINE) / total if total else None,
        disagreements=tuple(
            Disagreement(
                name=record.name,
                kind=record.kind,
                module=record.module,
                preferred=planned.preferred or "",
                reason=off_engine(record),
            )
            for record, planned in both
            if (planned.preferred == ENGINE) == bool(off_engine(record))
        ),
        not_in_plan=sum(name not in placed for name in records),
        not_in_file=sum(name not in records for name in placed),
    )
