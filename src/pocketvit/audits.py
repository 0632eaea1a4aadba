"""Audits of models and files: what the Neural Engine would make of them, and what fp16 does to their numbers."""

from __future__ import annotations

import copy
import math
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .artifacts import DEFAULT_DATA, is_artifact, proof_images
from .errors import BadInput, CheckFailed
from .measure.ane.audit import Audit, audit
from .measure.ane.compute_plan import Score, load_plan, score
from .measure.ane.graph import OpRecord, Tensor
from .measure.ane.sweep import Refused, Sweep, SweepPoint, find_cliffs, sweep_point
from .measure.ane.torch_graph import torch_records
from .models import Model, create, deployable
from .targets import NotOurs, read_artifact
from .types import InputSpec, Progress, silent

if TYPE_CHECKING:
    from .targets.coreml.headroom import Headroom, Inputs
    from .targets.coreml.interpreter import Interpreter
    from .targets.coreml.program import Op, Output, Program
    from .targets.coreml.repair import Repaired
    from .targets.coreml.rounding import Rounded
    from .targets.coreml.values import Value

PACKAGE = ".mlpackage"
_MOST_PIXELS = 2048  # of a side in a sweep
# names of weights as exporters write them: p_module_blocks_0_attn_qkv_weight_to_fp16, blocks_0_norm1_bias
_WEIGHT_NAME = re.compile(r"^(?:[pbc]_)?(?:module_)?(?P<path>.+?)_(?P<role>weight|bias|gamma|beta)(?!_\d)(?:_|$)")


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
    is_file = _is_package(source)
    if is_file and sizes:
        raise BadInput(f"{source} is a file, whose input size is fixed; a sweep needs the model it came from.")
    if plan is not None and not is_file:
        raise BadInput(f"A compute plan belongs to a package; {source} is a model. Export it and audit the file.")
    _check_sizes(sizes)
    planned = load_plan(plan) if plan is not None else ()
    if is_file:
        from .targets.coreml.package import read_package
        from .targets.coreml.program import read_program

        ops = package_records(read_program(read_package(Path(source))))
        scored = score(ops, planned) if plan is not None else None
        return AneAudit(name=Path(source).name, is_file=True, audit=audit(ops, source), score=scored)
    model = create(source, pretrained=pretrained)
    ops = _exported(model)
    found = audit(ops, model.display_name)
    swept = _sweep(source, model, ops, sizes, progress) if sizes else None
    return AneAudit(name=model.display_name, is_file=False, audit=found, sweep=swept)


def _is_package(source: str) -> bool:
    path = Path(source.rstrip("/"))
    if path.suffix in (PACKAGE, ".mlmodel", ".mlmodelc"):
        return True
    if is_artifact(source):
        raise BadInput(f"{source} is no Core ML package; the Neural Engine runs nothing but those. Audit its model.")
    return False


def _check_sizes(sizes: Sequence[int]) -> None:
    for size in sizes:
        if not 1 <= size <= _MOST_PIXELS:
            raise BadInput(f"An input of {size} pixels cannot be swept over; sizes are from 1 to {_MOST_PIXELS}.")
    if len(set(sizes)) < len(sizes):
        raise BadInput("A size is named twice in the sweep.")


def _exported(model: Model) -> tuple[OpRecord, ...]:
    from .targets._torch_program import capture

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


def package_records(program: Program) -> tuple[OpRecord, ...]:
    """The operations of an ML program, constants left out; module paths as far as the names of weights tell them."""
    reader = _ProgramReader(program)
    return tuple(record for op in program.block.walk() if (record := reader.record(op)) is not None)


class _ProgramReader:
    """Walks the operations in order, keeping constants apart from activations."""

    def __init__(self, program: Program) -> None:
        self.activations = {put.name: _tensor(put) for put in program.inputs}
        self.constants: dict[str, Value | None] = {}
        self.bytes: dict[str, int] = {}  # of constants that no operation has read yet
        self.modules: dict[str, str] = {}  # of activations: the module that touched them last
        self.readers = Counter(name for op in program.block.walk() for name in _names(op))

    def record(self, op: Op) -> OpRecord | None:
        """The record of one operation; None for a constant, whether stored plainly or compressed."""
        names = _names(op)
        new_bytes = sum(self.bytes.pop(name, 0) for name in names)
        if op.kind == "const" or op.kind.startswith("constexpr_"):
            values = [*op.attributes.values(), *(v for group in op.inputs.values() for v in group)]
            stored = sum(_stored(value) for value in values if not isinstance(value, str))
            self.bytes |= {op.name: new_bytes + stored}
            self.constants |= {output.name: op.attributes.get("val") for output in op.outputs}
            return None
        inputs = tuple(self.activations[name] for name in names if name in self.activations)
        outputs = tuple(map(_tensor, op.outputs))
        self.activations |= {tensor.name: tensor for tensor in outputs}
        self.activations |= {put.name: _tensor(put) for block in op.blocks for put in block.inputs}
        module, located = self._place(op, names)
        if located != "op":
            self.modules |= {tensor.name: module for tensor in outputs}
        return OpRecord(
            kind=op.kind,
            name=op.name,
            inputs=inputs,
            outputs=outputs,
            module=module,
            located=located,
            weight_bytes=new_bytes,
            axes=self._axes(op, inputs),
            dilated=any(gap > 1 for gap in self._numbers(op, "dilations")),
        )

    def _place(self, op: Op, names: Sequence[str]) -> tuple[str, str]:
        # a constant that several operations read was one that converters found equal: its name is any one's
        own = (_weight(name) for name in names if name in self.constants and self.readers[name] == 1)
        if named := sorted(filter(None, own)):
            return named[-1][1], "weight"
        before = next((self.modules[name] for name in names if name in self.modules), None)
        return (op.name, "op") if before is None else (before, "after")

    def _axes(self, op: Op, inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
        rank = len(inputs[0].shape) if inputs else 0
        found = self._numbers(op, "perm") or self._numbers(op, "axes") or self._numbers(op, "axis")
        if op.kind == "softmax" and not found:
            found = (-1,)
        return tuple(axis % rank for axis in found) if rank else ()

    def _numbers(self, op: Op, parameter: str) -> tuple[int, ...]:
        """The integers of a constant argument; none where it is missing or computed."""
        arguments = op.inputs.get(parameter, ())
        first = arguments[0] if arguments else None
        value = self.constants.get(first) if isinstance(first, str) else first
        return () if value is None else tuple(int(number) for number in np.asarray(value.data).ravel())


def _names(op: Op) -> list[str]:
    return [name for group in op.inputs.values() for name in group if isinstance(name, str)]


def _tensor(put: Output) -> Tensor:
    return Tensor(put.name, put.type.shape, put.type.dtype.value) if put.type else Tensor(put.name, (), "other")


def _stored(value: Value) -> int:
    return (math.prod(side or 1 for side in value.type.shape) * value.type.dtype.bits + 7) // 8


def _weight(name: str) -> tuple[bool, str] | None:
    """Whether it is a weight rather than a bias, and its module: (True, "blocks.0.attn_qkv") for
    p_module_blocks_0_attn_qkv_weight_to_fp16; None for a name that is no weight's.
    """
    match = _WEIGHT_NAME.match(name)
    if match is None:
        return None
    # a number that stands alone is an index: what follows it and what it follows are other modules
    path = re.sub(r"_?(?<![a-z0-9])(\d+)(?=_|$)_?", r".\1.", match["path"]).replace("..", ".").strip(".")
    return match["role"] in ("weight", "gamma"), path


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
    progress: Progress = silent,
) -> Fp16Audit:
    """Hold every value of a Core ML package against the ends of fp16, on `images` pictures of a data set.

    repair_to: where a rewritten package goes, when anything can be rewritten exactly. Raises BadInput for what cannot
    be audited, read or written, CheckFailed when a rewritten package is not the same.
    """
    if not _is_package(source):
        raise BadInput(f"{source} is a model; export it to coreml and audit the file, whose own values are looked at.")
    from .targets.coreml.headroom import headroom
    from .targets.coreml.interpreter import Interpreter
    from .targets.coreml.repair import check_output, repair
    from .targets.coreml.rounding import rounded

    if repair_to is not None:
        check_output(repair_to)
    interpreter = Interpreter(source)
    feeds = _feeds(interpreter, data, images, strict, progress)
    found = headroom(interpreter, feeds, progress)
    audited = Fp16Audit(name=Path(source).name, data=data, headroom=found, before=rounded(source, feeds, progress))
    if repair_to is None:
        return audited
    repaired = repair(source, found, repair_to, feeds, progress)
    after = rounded(repaired.path, feeds, progress) if repaired.path is not None else ()
    return replace(audited, repaired=repaired, after=after)


def _feeds(interpreter: Interpreter, data: str, images: int, strict: bool, progress: Progress) -> list[Inputs]:
    """Real images as the package takes them: as its metadata says, or resized pictures for an image input."""

    def draw(spec: InputSpec) -> Any:
        drawn = proof_images(spec, data, calibration=1, verification=images, strict=strict, progress=progress)
        return drawn.verification

    try:
        return [{"image": image[None]} for image in draw(read_artifact(interpreter.path).spec)]
    except NotOurs:
        only = interpreter.inputs[0]
        if len(interpreter.inputs) != 1 or only.kind != "image" or only.shape[1] != 3:
            raise BadInput(
                f"{interpreter.path} was not made by pocketvit and does not take one colour image, so that it is not "
                "known how pictures are prepared for it; convert it with an image input to audit it."
            ) from None
        pixels = np.round(draw(InputSpec(size=(3, only.shape[2], only.shape[3]))) * 255)
        return [{only.name: image[None, ::-1] if only.colour == "BGR" else image[None]} for image in pixels]
