"""Runs the ML program inside a saved package, anywhere torch runs: the file itself, not the model it came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import BadInput
from .arithmetic import Arithmetic, to_half
from .compiler import compile_program
from .features import Feature, read_features
from .package import Package, read_package
from .plan import Compiled, Observer
from .program import Program, read_program
from .values import Dtype

_MAX_PLANS = 8  # of a package with flexible shapes; each holds its own unpacked weights


class Interpreter:
    """A loaded package. inputs, outputs: what it takes and gives; program: its operations.

    It shows what the file computes. It cannot see what a device's compiler fuses or in which order it accumulates;
    `arithmetic` brackets the rounding.
    """

    def __init__(self, source: Path | str | Package, arithmetic: Arithmetic = Arithmetic.FP32) -> None:
        """Load and check a package; BadInput names the operation that is unknown, damaged or does not fit."""
        package = source if isinstance(source, Package) else read_package(Path(source))
        self.path = package.path
        self.arithmetic = Arithmetic(arithmetic)
        self.inputs, self.outputs = read_features(package)
        self.program: Program = read_program(package)
        self._types = {given.name: given.type for given in self.program.inputs}
        self._plans: dict[tuple[tuple[int, ...], ...], Compiled] = {}
        if sorted(f.name for f in self.inputs) != sorted(self._types):
            raise BadInput(f"{self.path} describes other inputs than its program takes.")
        for feature in self.inputs:
            declared = self._types[feature.name]
            if declared is not None and declared.dtype.is_float != feature.torch_dtype.is_floating_point:
                raise BadInput(
                    f"{self.path} describes {feature.name!r} as {feature.dtype}; its program takes {declared}."
                )
        self._results = {name: i for i, name in enumerate(self.program.block.outputs)}
        if not self.outputs or not {f.name for f in self.outputs} <= set(self._results):
            raise BadInput(f"{self.path} describes other outputs than its program gives.")
        self._plan(tuple(feature.shape for feature in self.inputs))

    def predict(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Map inputs by name to outputs by name, as coremltools' MLModel.predict does on a Mac.

        Arrays come back as numpy arrays, a label as text (or int), class probabilities as a dictionary.
        """
        return {name: _given(value) for name, value in self.run(inputs).items()}

    def run(self, inputs: Mapping[str, Any], observe: Observer | None = None) -> dict[str, Any]:
        """As `predict`, with tensors for arrays, which may share memory with each other and with constants: read only.

        observe(op, arguments, results) is called after each operation, before what is no longer needed is freed.

        Raises BadInput for inputs that are missing, unknown or of another shape.
        """
        if unknown := set(inputs) - set(self._types):
            raise BadInput(f"{self.path.name} has no input {sorted(unknown)}; it takes {sorted(self._types)}.")
        with torch.inference_mode():
            tensors = [self._tensor(feature, inputs) for feature in self.inputs]
            compiled = self._plan(tuple(tuple(t.shape) for t in tensors))
            by_name = {feature.name: tensor for feature, tensor in zip(self.inputs, tensors, strict=True)}
            found = compiled.run(tuple(by_name[given.name] for given in self.program.inputs), observe)
        return {feature.name: found[self._results[feature.name]] for feature in self.outputs}

    def _tensor(self, feature: Feature, inputs: Mapping[str, Any]) -> Tensor:
        if feature.name in inputs:
            tensor = feature.tensor(inputs[feature.name])
        elif feature.default is not None:
            tensor = torch.full(feature.shape, feature.default, dtype=feature.torch_dtype)
        else:
            raise BadInput(f"{self.path.name} needs its input {feature.name!r}.")
        declared = self._types[feature.name]
        halved = declared is not None and declared.dtype is Dtype.FP16 and self.arithmetic is not Arithmetic.FP32
        return to_half(tensor) if halved else tensor

    def _plan(self, shapes: tuple[tuple[int, ...], ...]) -> Compiled:
        """The steps for these input shapes, kept for the next image of the same size."""
        if shapes not in self._plans:
            named = {feature.name: shape for feature, shape in zip(self.inputs, shapes, strict=True)}
            try:
                with torch.inference_mode():
                    compiled = compile_program(self.program, named, self.arithmetic)
            except BadInput as e:
                raise BadInput(f"{self.path}: {str(e).removesuffix('.')}.") from e
            if len(self._plans) >= _MAX_PLANS:
                self._plans.pop(next(iter(self._plans)))
            self._plans[shapes] = compiled
        return self._plans[shapes]


def _given(value: Any) -> Any:
    return np.array(value.numpy()) if isinstance(value, Tensor) else value  # a copy: results may share memory
