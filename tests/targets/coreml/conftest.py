"""Packages of a single operation, written by coremltools and read back by us: what every oracle test starts from."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketvit.targets.coreml.interpreter import Interpreter

# inputs by name, the function that builds the operation from them -> outputs in order
RunOp = Callable[..., list[np.ndarray]]


def save_program(
    path: Path, build: Callable[..., Any], inputs: dict[str, np.ndarray], ios: int, half: bool = False
) -> Path:
    """Write a package whose program is build(mb, **inputs); build may return one Var or several."""
    import coremltools as ct
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    kinds = {"float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool}
    target = getattr(ct.target, f"iOS{ios}")
    specs = [mb.TensorSpec(shape=array.shape, dtype=kinds[str(array.dtype)]) for array in inputs.values()]
    names = list(inputs)

    # coremltools reads the names of a program's inputs from the function's own parameters
    scope: dict[str, Any] = {"build": build, "mb": mb}
    exec(f"def body({', '.join(names)}):\n    return build(mb, {', '.join(f'{n}={n}' for n in names)})", scope)
    program = mb.program(input_specs=specs, opset_version=target)(scope["body"])
    model = ct.convert(
        program,
        convert_to="mlprogram",
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        minimum_deployment_target=target,
        pass_pipeline=ct.PassPipeline.EMPTY if not half else ct.PassPipeline.DEFAULT,
        skip_model_load=True,
    )
    model.save(str(path))
    return path


@pytest.fixture(scope="session", autouse=True)
def quick_collection() -> Iterator[None]:
    """coremltools collects garbage at each conversion; without what imports left, that takes 10 ms, not 500."""
    import coremltools  # noqa: F401

    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def run_op(tmp_path: Path) -> RunOp:
    """run_op(lambda mb, x: mb.relu(x=x), {"x": array}, ios=15): save, reload, interpret; outputs in order."""
    numbers = itertools.count()

    def run(
        build: Callable[..., Any], inputs: dict[str, np.ndarray], *, ios: int = 15, arithmetic: str = "fp32"
    ) -> list[np.ndarray]:
        path = save_program(tmp_path / f"op{next(numbers)}.mlpackage", build, inputs, ios)
        interpreter = Interpreter(path, arithmetic)
        before = {name: array.copy() for name, array in inputs.items()}
        found = interpreter.predict(inputs)
        for name, array in inputs.items():  # float32 arrays reach handlers without a copy
            np.testing.assert_array_equal(array, before[name], f"the input {name!r} was edited")
        return [found[output.name] for output in interpreter.outputs]

    return run
