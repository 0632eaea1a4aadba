"""A program turned into steps for given input shapes: constants unpacked, arguments bound, every shape checked.

The check is a dry run on torch's meta device, where tensors have shapes and no memory: a damaged file that would
allocate a terabyte, or whose operations do not give what they declare, is refused before anything is computed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ...errors import BadInput
from ...registry import close_matches
from .arithmetic import Arithmetic, to_half
from .half import STEPWISE
from .ops import OPS, Handler, parameters
from .plan import Compiled, Plan, Step, plain
from .program import Block, Op, Output, Program
from .values import MAX_ELEMENTS, Dtype, TensorType, Value

MAX_LIVE = 4 * MAX_ELEMENTS * 2  # bytes of all values alive at one time: 8 GiB
_SMALL = 4096  # elements; larger values are never shapes, so the dry run need not know them
_TORCH = {
    Dtype.BOOL: torch.bool, Dtype.INT8: torch.int8, Dtype.INT4: torch.int8, Dtype.INT16: torch.int16,
    Dtype.UINT16: torch.int32, Dtype.UINT32: torch.int64, Dtype.INT32: torch.int32, Dtype.INT64: torch.int64,
    Dtype.UINT64: torch.int64,
}  # fmt: skip


def compile_program(program: Program, shapes: Mapping[str, tuple[int, ...]], arithmetic: Arithmetic) -> Compiled:
    """Bind and check every operation for inputs of `shapes`; BadInput names the operation that does not fit."""
    return _Compiler(program, arithmetic).compile(shapes)


def unpacked_constants(program: Program) -> dict[str, Any]:
    """Every constant of the main block by name, weights decompressed, as handlers see it; checked as for running."""
    compiler = _Compiler(program, Arithmetic.FP32)
    compiler.compile({given.name: given.type.sides for given in program.inputs if given.type is not None})
    return {name: compiler.known[slot] for name, slot in compiler.names[0].items() if slot in compiler.known}


def as_tensor(value: Value) -> Any:
    """A constant as handlers see it: floats in float32, integers as torch has them, text as it is."""
    if isinstance(value.data, str | tuple):
        return value.data
    kind = torch.float32 if value.type.dtype.is_float else _TORCH.get(value.type.dtype, torch.uint8)
    # torch does not know all of numpy's unsigned types, numpy knows all of torch's
    widened = value.data.astype(torch.empty(0, dtype=kind).numpy().dtype)
    return torch.from_numpy(widened)


class _Compiler:
    """Walks the program once, binding each operation and running it dry. One use each."""

    def __init__(self, program: Program, arithmetic: Arithmetic) -> None:
        self.program = program
        self.arithmetic = arithmetic
        self.names: list[dict[str, int]] = [{}]  # innermost scope last
        self.known: dict[int, Any] = {}  # constants, by slot
        self.dry: dict[int, Any] = {}  # what the dry run holds: meta tensors, and real small integers
        self.slots = 0
        self.constant_bytes = 0
        self.read = set(_read_names(program.block))

    def compile(self, shapes: Mapping[str, tuple[int, ...]]) -> Compiled:
        inputs = []
        for given in self.program.inputs:
            if given.type is None:
                raise BadInput(f"its input {given.name!r} is a state or a list, which classifiers do not have")
            kind = torch.float32 if given.type.dtype.is_float else _TORCH.get(given.type.dtype, torch.uint8)
            inputs.append(self._define(given.name, torch.empty(shapes[given.name], dtype=kind, device="meta")))
        plan = self._block(self.program.block, tuple(inputs))
        used = {slot for step in _all_steps(plan) for slot in _slots_of(step)} | set(plan.outputs)
        constants = {slot: value for slot, value in self.known.items() if slot in used}
        return Compiled(plan=plan, slots=self.slots, constants=constants)

    def _block(self, block: Block, inputs: tuple[int, ...]) -> Plan:
        plan = Plan(steps=[], inputs=inputs, outputs=())
        for op in block.ops:
            try:
                step = self._step(op)
            except BadInput as e:
                raise e if str(e).startswith("operation ") else BadInput(f"{op}: {e}") from e
            if step is not None:
                plan.steps.append(step)
        plan.outputs = tuple(self._slot(name) for name in block.outputs)
        self._free(plan)
        return plan

    def _step(self, op: Op) -> Step | None:
        """Bind one operation; None when its result is constant and known now."""
        if op.kind == "const":
            if "val" not in op.attributes or len(op.outputs) != 1:
                raise BadInput("a constant has no value")
            if op.outputs[0].name in self.read:
                self._know(op.outputs[0].name, as_tensor(op.attributes["val"]))
            return None
        if op.kind in ("cond", "while_loop"):
            return self._control(op)
        handler = self._handler(op)
        static, dynamic = self._bind(op, handler)
        step = Step(op, handler, static, dynamic, (), self._roundings(op))
        if (dynamic or op.kind.startswith("constexpr")) and all(slot in self.known for slot in _slots_of(step)):
            # a computed constant; checked dry first, so that what it unpacks to has a bound
            self._dry_run(step)
            self._constant(op, step.compute(step.arguments(self.known)), step.rounded)
            return None
        results = self._dry_run(step)
        step.results = tuple(
            self._define(output.name, result) for output, result in zip(op.outputs, results, strict=True)
        )
        return step

    def _handler(self, op: Op) -> Handler:
        if op.kind not in OPS:
            hint = close_matches(op.kind[:80], OPS).removesuffix("?")
            raise BadInput(f"pocketvit's interpreter does not know this operation{'.' if hint else ''}{hint}")
        if self.arithmetic is Arithmetic.FP16 and any(self._is_half(output) for output in op.outputs):
            return STEPWISE.get(op.kind, OPS.get(op.kind))
        return OPS.get(op.kind)

    def _roundings(self, op: Op) -> tuple[bool, ...]:
        rounds = self.arithmetic is not Arithmetic.FP32
        return tuple(rounds and self._is_half(output) for output in op.outputs)

    @staticmethod
    def _is_half(output: Output) -> bool:
        return output.type is not None and output.type.dtype is Dtype.FP16

    def _bind(self, op: Op, handler: Handler) -> tuple[dict[str, Any], tuple[tuple[str, str, Any], ...]]:
        known = parameters(handler)
        if twice := op.inputs.keys() & op.attributes.keys():
            raise BadInput(f"it is given {', '.join(sorted(twice))} twice")
        given: dict[str, tuple[str | Value, ...]] = dict(op.inputs)
        given |= {key: (value,) for key, value in op.attributes.items() if key != "name"}
        static: dict[str, Any] = {}
        dynamic: list[tuple[str, str, Any]] = []
        for name, arguments in given.items():
            if name not in known or name in ("opset", "outputs"):
                raise BadInput(f"it has a parameter {name!r} that this operation is not known to take")
            kind = known[name].kind
            if len(arguments) != 1 and kind not in ("Tensors", "Ints", "Bools"):
                raise BadInput(f"its {name} holds {len(arguments)} values instead of one")
            slots = tuple(self._place(argument) for argument in arguments)
            if known[name].is_tensor and not all(isinstance(self.dry[slot], Tensor) for slot in slots):
                raise BadInput(f"its {name} is text or a list, not numbers")
            if kind == "Tensors":
                dynamic.append((name, kind, slots))
            elif kind == "Tensor" or (len(slots) == 1 and slots[0] not in self.known):
                dynamic.append((name, kind, slots[0]))
            else:
                static[name] = self._constants(slots, kind, name)
        if missing := [n for n, p in known.items() if p.required and n not in given and n not in ("opset", "outputs")]:
            raise BadInput(f"it lacks {', '.join(missing)}")
        if "opset" in known:
            static["opset"] = self.program.ios
        if "outputs" in known:
            static["outputs"] = tuple(output.type for output in op.outputs)
        return static, tuple(dynamic)

    def _constants(self, slots: tuple[int, ...], kind: str, name: str) -> Any:
        """A plain parameter known now; a list may be given as several arguments."""
        if any(slot not in self.known for slot in slots):
            raise BadInput(f"its {name} are not all constants")
        parts = [plain(self.known[slot], kind, name) for slot in slots]
        return parts[0] if len(parts) == 1 else tuple(item for part in parts for item in part)

    def _place(self, argument: str | Value) -> int:
        if isinstance(argument, str):
            return self._slot(argument)
        value = as_tensor(argument)
        return self._know(f"value {self.slots}", value)

    def _know(self, name: str, value: Any) -> int:
        """Keep a constant, within the bound for all of them."""
        self.constant_bytes += _bytes(value)
        if self.constant_bytes > MAX_LIVE:
            raise BadInput(f"its constants take more than {MAX_LIVE} bytes")
        slot = self._define(name, value)
        self.known[slot] = value
        return slot

    def _dry_run(self, step: Step) -> tuple[Any, ...]:
        """Run one operation on shapes alone and hold the results against what it declares."""
        arguments = step.arguments(self.dry)
        tensors = [a for a in _flat(arguments.values()) if isinstance(a, Tensor)]
        large = sum(tensor.numel() for tensor in tensors) > _SMALL or step.op.kind.startswith("constexpr")
        if large or any(tensor.is_meta for tensor in tensors):
            arguments = {name: _to_meta(argument) for name, argument in arguments.items()}
        results = step.compute(arguments)
        if len(results) != len(step.op.outputs):
            raise BadInput(f"it makes {len(results)} values and declares {len(step.op.outputs)}")
        for output, result in zip(step.op.outputs, results, strict=True):
            _check_result(output, result)
        return results

    def _constant(self, op: Op, results: tuple[Any, ...], rounded: tuple[bool, ...]) -> None:
        for output, result, rounds in zip(op.outputs, results, rounded, strict=True):
            self._know(output.name, to_half(result) if rounds else result)

    def _control(self, op: Op) -> Step:
        """Bind `cond` (a block each for true and false) or `while_loop` (a block that tests, a block that steps)."""
        single = "pred" if op.kind == "cond" else "loop_vars"
        if set(op.inputs) != {single} or len(op.blocks) != 2:
            raise BadInput("it does not have the inputs and blocks of its kind")
        places = tuple(self._place(argument) for argument in op.inputs[single])
        plans = []
        for block in op.blocks:
            self.names.append({})
            carried = places if op.kind == "while_loop" else ()
            if len(block.inputs) != len(carried):
                raise BadInput(f"its block takes {len(block.inputs)} values instead of {len(carried)}")
            entered = tuple(
                self._define(given.name, _to_meta(self.dry[place]))
                for given, place in zip(block.inputs, carried, strict=True)
            )
            plans.append(self._block(block, entered))
            self.names.pop()
        body = plans[1]
        if len(body.outputs) != len(op.outputs) or (op.kind == "cond" and len(plans[0].outputs) != len(op.outputs)):
            raise BadInput("its blocks do not return what it declares")
        for plan in plans if op.kind == "cond" else [body]:
            for output, slot in zip(op.outputs, plan.outputs, strict=True):
                _check_result(output, self.dry[slot])
        # what comes later is checked against one shape, so it must not depend on the branch or the round
        others = plans[0].outputs if op.kind == "cond" else body.inputs
        for output, slot, other in zip(op.outputs, body.outputs, others, strict=True):
            one, two = (tuple(self.dry[place].shape) for place in (other, slot))
            if one != two:
                raise BadInput(f"{output.name!r} has shape {one} in one branch or round and {two} in another")
        decides = places if op.kind == "cond" else plans[0].outputs
        if len(decides) != 1 or self.dry[decides[0]].dtype is not torch.bool or self.dry[decides[0]].numel() != 1:
            raise BadInput("what decides how it goes on is not a single truth value")
        results = tuple(
            self._define(output.name, _to_meta(self.dry[slot]))
            for output, slot in zip(op.outputs, body.outputs, strict=True)
        )
        step = Step(op, _blocks_only, {}, ((single, "Tensors", places),), results, self._roundings(op))
        step.blocks = tuple(plans)
        return step

    def _define(self, name: str, dry: Any) -> int:
        slot = self.slots
        self.slots += 1
        self.names[-1][name] = slot
        self.dry[slot] = dry
        return slot

    def _slot(self, name: str) -> int:
        for scope in reversed(self.names):
            if name in scope:
                return scope[name]
        raise BadInput(f"{name!r} is made by nothing before it")

    def _free(self, plan: Plan) -> None:
        """Mark, per step, the values that nothing later reads, and bound what is alive at one time."""
        made = {slot for step in plan.steps for slot in step.results}
        last: dict[int, int] = {}
        for i, step in enumerate(plan.steps):
            for slot in (*_slots_of(step), *step.results):
                last[slot] = i
        ends: dict[int, list[int]] = {}
        for slot in made - set(plan.outputs):
            ends.setdefault(last[slot], []).append(slot)
        live = 0
        for i, step in enumerate(plan.steps):
            step.frees = tuple(ends.get(i, ()))
            live += sum(_bytes(self.dry[slot]) for slot in step.results)
            if live > MAX_LIVE:
                raise BadInput(f"{step.op}: the values alive here take {live} bytes, more than {MAX_LIVE}")
            live -= sum(_bytes(self.dry[slot]) for slot in step.frees)


def _read_names(block: Block) -> Iterator[str]:
    """Every name that an operation takes or a block returns."""
    yield from block.outputs
    for op in block.ops:
        yield from (name for given in op.inputs.values() for name in given if isinstance(name, str))
        for nested in op.blocks:
            yield from _read_names(nested)


def _blocks_only(**arguments: Any) -> Any:
    raise AssertionError("control flow runs its blocks, not a handler")


def _all_steps(plan: Plan) -> list[Step]:
    return [s for step in plan.steps for s in (step, *(n for block in step.blocks for n in _all_steps(block)))]


def _slots_of(step: Step) -> tuple[int, ...]:
    """Slots a step reads, those its blocks read from outside included."""
    own = [i for _, _, place in step.dynamic for i in (place if isinstance(place, tuple) else (place,))]
    return (*own, *(i for block in step.blocks for i in (*block.outputs, *_read(block))))


def _read(block: Plan) -> list[int]:
    return [i for step in block.steps for i in _slots_of(step)]


def _flat(values: Any) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, tuple) else (value,))]


def _to_meta(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_to_meta(item) for item in value)
    return value.to("meta") if isinstance(value, Tensor) else value


def _bytes(value: Any) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def _check_result(output: Output, result: Any) -> None:
    """Hold what an operation makes against what it declares."""
    declared = output.type
    if declared is None or declared.dtype is Dtype.STRING:
        return
    if isinstance(result, int) and declared == TensorType(Dtype.INT64, ()):
        return  # a class that has a number for a name
    if not isinstance(result, Tensor):
        raise BadInput(f"it declares {declared} for {output.name!r} and makes a {type(result).__name__}")
    if result.numel() > MAX_ELEMENTS:
        raise BadInput(f"it would make {result.numel()} elements, more than {MAX_ELEMENTS}")
    shape = tuple(result.shape)
    fits = len(shape) == len(declared.shape) and all(
        d is None or d == s for d, s in zip(declared.shape, shape, strict=True)
    )
    if not fits or not _same_kind(declared, result):
        raise BadInput(f"it declares {declared} for {output.name!r} and makes {result.dtype} {shape}")


def _same_kind(declared: TensorType, result: Tensor) -> bool:
    if declared.dtype is Dtype.BOOL:
        return result.dtype is torch.bool
    return declared.dtype.is_float == result.is_floating_point() and result.dtype is not torch.bool
