"""Branches and loops of real packages, and constants, against the same written in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from pocketvit.errors import BadInput
from pocketvit.targets.coreml import plan
from pocketvit.targets.coreml.arithmetic import Arithmetic
from pocketvit.targets.coreml.compiler import compile_program
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.program import Block, Op
from pocketvit.targets.coreml.values import TensorType, Value

from .conftest import save_program

COVERS = {"const": "test_const", "cond": "test_cond", "while_loop": "test_while_loop"}


def numbers(*shape: int) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def whole(value: int) -> np.ndarray:
    """A number as an input; inputs of packages have at least one axis."""
    return np.array([value], np.int32)


def number(mb, value):
    """The same without its axis, as conditions and counters are."""
    return mb.squeeze(x=value)


def opened(tmp_path: Path, build, inputs: dict[str, np.ndarray], **options) -> Interpreter:
    """One package to run with several inputs."""
    return Interpreter(save_program(tmp_path / "flow.mlpackage", build, inputs, 17, **options))


def results(interpreter: Interpreter, **inputs) -> list[np.ndarray]:
    found = interpreter.predict(inputs)
    return [found[output.name] for output in interpreter.outputs]


@pytest.mark.parametrize("ios", [15, 16, 17, 18])
def test_const(run_op, ios):
    # ten elements and more lie in the weight file, fewer in the description
    for count in (1, 3, 12):
        real = np.linspace(-3, 70000, count).astype(np.float32)
        half = np.linspace(-3, 65000, count).astype(np.float16)
        integers = np.linspace(-(2**31), 2**31 - 1, count).astype(np.int32)
        truths = np.arange(count) % 2 == 0

        def build(mb, zero, real=real, half=half, integers=integers, truths=truths):
            floats = [mb.const(val=real), mb.cast(x=mb.const(val=half), dtype="fp32")]
            counts = [mb.const(val=integers), mb.cast(x=mb.const(val=truths), dtype="int32")]
            return [
                *(mb.add(x=value, y=zero) for value in floats),
                *(mb.add(x=value, y=mb.cast(x=zero, dtype="int32")) for value in counts),
            ]

        found = run_op(build, {"zero": np.zeros(count, np.float32)}, ios=ios)
        for got, wanted in zip(found, (real, half.astype(np.float32), integers, truths), strict=True):
            assert_array_equal(got, wanted)


def test_cond(tmp_path):
    def build(mb, x, choose):
        doubled = mb.mul(x=x, y=np.float32(2))  # made outside, read in one branch only

        def chosen():
            return mb.add(x=doubled, y=np.float32(1)), mb.const(val=np.float32([7]))

        def other():
            return mb.sub(x=x, y=np.float32(1)), mb.reduce_sum(x=x, axes=[0], keep_dims=True)

        first, second = mb.cond(pred=mb.greater(x=number(mb, choose), y=0), _true_fn=chosen, _false_fn=other)
        return mb.mul(x=first, y=np.float32(10)), mb.add(x=second, y=np.float32(0))

    x = numbers(3)
    program = opened(tmp_path, build, {"x": x, "choose": whole(1)})
    for _ in range(2):  # the branches share their places with those of the run before
        first, second = results(program, x=x, choose=whole(1))
        assert_array_equal(first, (2 * x + 1) * 10)
        assert_array_equal(second, [7])
        first, second = results(program, x=x, choose=whole(-1))
        assert_array_equal(first, (x - 1) * 10)
        assert_array_equal(second, [x.sum()])


def test_cond_that_returns_what_was_there_before(tmp_path):
    def build(mb, x, choose):
        y = mb.relu(x=x)
        got = mb.cond(pred=mb.greater(x=number(mb, choose), y=0), _true_fn=lambda: x, _false_fn=lambda: y)
        return mb.add(x=got, y=np.float32(1))

    x = numbers(4) - 3
    program = opened(tmp_path, build, {"x": x, "choose": whole(1)})
    assert_array_equal(results(program, x=x, choose=whole(1))[0], x + 1)
    assert_array_equal(results(program, x=x, choose=whole(0))[0], np.maximum(x, 0) + 1)


def test_cond_within_cond(tmp_path):
    def build(mb, x, choose):
        level = number(mb, choose)
        twice = mb.mul(x=x, y=np.float32(2))

        def high():
            return mb.cond(
                pred=mb.greater(x=level, y=10),
                _true_fn=lambda: mb.add(x=twice, y=np.float32(100)),
                _false_fn=lambda: mb.add(x=twice, y=x),
            )

        return mb.cond(pred=mb.greater(x=level, y=0), _true_fn=high, _false_fn=lambda: mb.mul(x=x, y=np.float32(-1)))

    x = numbers(2, 2)
    program = opened(tmp_path, build, {"x": x, "choose": whole(1)})
    for level, expected in ((11, 2 * x + 100), (5, 3 * x), (0, -x)):
        assert_array_equal(results(program, x=x, choose=whole(level))[0], expected)


def test_while_loop(tmp_path):
    def build(mb, x, rounds):
        step = mb.mul(x=x, y=np.float32(0.5))  # captured by the body, made before, not read after
        last = number(mb, rounds)  # captured by the test

        def body(i, total, other):
            # the two change places: both must be read before either is written
            return mb.add(x=i, y=1), mb.add(x=other, y=step), total

        _, total, other = mb.while_loop(
            _cond=lambda i, total, other: mb.less(x=i, y=last),
            _body=body,
            loop_vars=(np.int32(0), mb.mul(x=x, y=np.float32(1)), mb.mul(x=x, y=np.float32(0))),
        )
        return mb.add(x=total, y=x), other

    x = numbers(3)
    program = opened(tmp_path, build, {"x": x, "rounds": whole(1)})
    for rounds in (4, 0, 1, 7):
        total, other = x, 0 * x
        for _ in range(rounds):
            total, other = other + x / 2, total
        found = results(program, x=x, rounds=whole(rounds))
        assert_array_equal(found[0], total + x, f"{rounds} rounds")
        assert_array_equal(found[1], other, f"{rounds} rounds")


def test_while_loop_within_while_loop(tmp_path):
    def build(mb, x, rounds):
        last = number(mb, rounds)

        def outer(i, total):
            def inner(j, product):
                return mb.add(x=j, y=1), mb.mul(x=product, y=x)

            # as many factors as the outer loop has rounds behind it
            _, product = mb.while_loop(
                _cond=lambda j, product: mb.less(x=j, y=i),
                _body=inner,
                loop_vars=(np.int32(0), mb.add(x=mb.mul(x=x, y=np.float32(0)), y=np.float32(1))),
            )
            return mb.add(x=i, y=1), mb.add(x=total, y=product)

        _, total = mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=last),
            _body=outer,
            loop_vars=(np.int32(0), mb.mul(x=x, y=np.float32(0))),
        )
        return total

    x = np.float32([2, -1, 0.5])
    program = opened(tmp_path, build, {"x": x, "rounds": whole(1)})
    for rounds in (0, 1, 5):
        expected = sum((x**i for i in range(rounds)), np.zeros(3, np.float32))
        assert_array_equal(results(program, x=x, rounds=whole(rounds))[0], expected, f"{rounds} rounds")


def test_cond_within_while_loop(tmp_path):
    def build(mb, x, rounds):
        last = number(mb, rounds)

        def body(i, total):
            even = mb.equal(x=mb.mod(x=i, y=2), y=0)
            total = mb.cond(
                pred=even,
                _true_fn=lambda: mb.add(x=total, y=x),
                _false_fn=lambda: mb.mul(x=total, y=np.float32(2)),
            )
            return mb.add(x=i, y=1), total

        return mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=last), _body=body, loop_vars=(np.int32(0), mb.relu(x=x))
        )

    x = numbers(2)
    program = opened(tmp_path, build, {"x": x, "rounds": whole(1)})
    total = x
    for i in range(5):
        total = total * 2 if i % 2 else total + x
    count, found = results(program, x=x, rounds=whole(5))
    assert count == 5
    assert_array_equal(found, total)


def test_while_loop_over_the_rows_of_a_tensor(tmp_path):
    """A recurrence as coremltools writes one: rows read and written at a place that the loop counts."""

    def build(mb, x):
        def body(i, state, seen):
            row = mb.gather(x=x, indices=i, axis=0)
            part = mb.slice_by_size(x=x, begin=mb.concat(values=(i, 0), axis=0), size=[1, 3])
            state = mb.add(x=mb.mul(x=state, y=np.float32(0.5)), y=row)
            state = mb.add(x=state, y=mb.squeeze(x=part, axes=[0]))
            seen = mb.scatter(
                data=seen, indices=mb.expand_dims(x=i, axes=[0]), updates=mb.expand_dims(x=state, axes=[0]),
                axis=0, mode="update",
            )  # fmt: skip
            return mb.add(x=i, y=1), state, seen

        first = mb.fill(shape=[3], value=np.float32(0))
        _, _, seen = mb.while_loop(
            _cond=lambda i, state, seen: mb.less(x=i, y=4),
            _body=body,
            loop_vars=(np.int32(0), first, mb.fill(shape=[4, 3], value=np.float32(0))),
        )
        return seen

    x = numbers(4, 3)
    expected, state = [], np.zeros(3, np.float32)
    for row in x:
        state = state * np.float32(0.5) + row + row
        expected.append(state)
    assert_array_equal(results(opened(tmp_path, build, {"x": x}), x=x)[0], expected)


def test_each_round_is_rounded_where_the_program_is_in_half_precision(tmp_path):
    def build(mb, x):
        _, total = mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=20),
            _body=lambda i, total: (mb.add(x=i, y=1), mb.add(x=total, y=x)),
            loop_vars=(np.int32(0), mb.mul(x=x, y=np.float32(100))),
        )
        return total

    x = np.float32([0.1, 0.01, 3])
    path = save_program(tmp_path / "half.mlpackage", build, {"x": x}, 17, half=True)
    total = np.float16(np.float32(np.float16(x)) * np.float32(100))
    exact = np.float32(x) * np.float32(100)
    for _ in range(20):
        total = np.float16(np.float32(total) + np.float32(np.float16(x)))
        exact = exact + x
    assert not np.array_equal(np.float32(total), exact)
    assert_array_equal(results(Interpreter(path, "fp16-fp32acc"), x=x)[0], total)
    assert_array_equal(results(Interpreter(path, "fp32"), x=x)[0], exact)


def test_observers_see_what_runs_inside(tmp_path):
    def build(mb, x):
        _, total = mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=3),
            _body=lambda i, total: (mb.add(x=i, y=1), mb.mul(x=total, y=np.float32(2))),
            loop_vars=(np.int32(0), mb.relu(x=x)),
        )
        return total

    seen: list[str] = []
    x = numbers(2)
    opened(tmp_path, build, {"x": x}).run({"x": x}, lambda op, given, results: seen.append(op.kind))
    assert [kind for kind in seen if kind in ("mul", "while_loop")] == ["mul"] * 3 + ["while_loop"]


def test_what_is_only_read_inside_a_loop_is_kept_for_every_round_and_run(tmp_path):
    def build(mb, x):
        table = mb.mul(x=x, y=np.float32(3))
        _, total = mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=3),
            _body=lambda i, total: (mb.add(x=i, y=1), mb.add(x=total, y=mb.relu(x=table))),
            loop_vars=(np.int32(0), mb.relu(x=x)),
        )
        return total

    x = numbers(2)
    program = opened(tmp_path, build, {"x": x})
    for _ in range(2):
        assert_array_equal(results(program, x=x)[0], x + 9 * x)


def test_an_endless_loop_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "_MAX_ROUNDS", 50)

    def build(mb, x):
        return mb.while_loop(
            _cond=lambda total: mb.less(x=mb.reduce_min(x=total, axes=[0], keep_dims=False), y=np.float32(10)),
            _body=lambda total: mb.relu(x=total),
            loop_vars=(x,),
        )

    x = numbers(2)
    with pytest.raises(BadInput, match=r"'while_loop'.*did not end after 50 rounds"):
        results(opened(tmp_path, build, {"x": x}), x=x)


def test_values_that_change_shape_from_round_to_round_are_refused(tmp_path):
    def build(mb, x):
        _, total = mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=3),
            _body=lambda i, total: (mb.add(x=i, y=1), mb.concat(values=(total, total), axis=0)),
            loop_vars=(np.int32(0), mb.relu(x=x)),
        )
        return total

    with pytest.raises(BadInput, match=r"'while_loop'.*shape \(2,\) in one branch or round and \(4,\) in another"):
        opened(tmp_path, build, {"x": numbers(2)})


def test_damaged_branches_are_refused(tmp_path):
    def build(mb, x, choose):
        return mb.cond(
            pred=mb.greater(x=number(mb, choose), y=0),
            _true_fn=lambda: mb.relu(x=x),
            _false_fn=lambda: mb.tile(x=x, reps=[1]),
        )

    shapes = {"x": (2,), "choose": (1,)}
    program = opened(tmp_path, build, {"x": numbers(2), "choose": whole(1)}).program
    compile_program(program, shapes, Arithmetic.FP32)

    def twice(op: Op) -> Op:
        """The branch that repeats x once repeats it twice, and no shape is declared."""
        if op.kind in ("tile", "cond"):
            free = tuple(replace(out, type=TensorType(out.type.dtype, (None,))) for out in op.outputs)
            return replace(op, outputs=free, blocks=tuple(edited(block, twice) for block in op.blocks))
        if op.name.endswith("reps_0"):
            return replace(op, attributes={"val": Value(op.attributes["val"].type, np.array([2], np.int32))})
        return op

    with pytest.raises(BadInput, match=r"'cond'.*shape \(2,\) in one branch or round and \(4,\) in another"):
        compile_program(replace(program, block=edited(program.block, twice)), shapes, Arithmetic.FP32)

    def by_number(op: Op) -> Op:
        return replace(op, inputs={"pred": ("choose",)}) if op.kind == "cond" else op

    with pytest.raises(BadInput, match=r"'cond'.*not a single truth value"):
        compile_program(replace(program, block=edited(program.block, by_number)), shapes, Arithmetic.FP32)


def edited(block: Block, change: Callable[[Op], Op]) -> Block:
    return replace(block, ops=tuple(change(op) for op in block.ops))
