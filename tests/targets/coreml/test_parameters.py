"""Every handler takes the parameters that coremltools' definitions have in any version, with the same defaults."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pocketvit.targets.coreml.ops import OPS, parameters


def definitions(kind: str) -> list[Any]:
    """The op's classes from iOS 15 on."""
    import coremltools as ct
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    return [cls for target, cls in SSAOpRegistry.core_ops[kind].items() if target >= ct.target.iOS15]


def written_defaults(definition: Any) -> dict[str, Any]:
    """What coremltools writes for parameters left out, of an op on a float32 tensor of rank 3."""
    from coremltools.converters.mil.mil import types

    tensor = SimpleNamespace(
        dtype=types.fp32, rank=3, shape=(2, 3, 4), val=None, sym_type=types.tensor(types.fp32, (2, 3, 4))
    )
    op = definition.__new__(definition)
    for name, given in definition.input_spec.input_types.items():
        setattr(op, name, None if given.optional else tensor)
    return dict(op.default_inputs().items())


@pytest.mark.parametrize("kind", list(OPS))
def test_a_handler_takes_the_documented_parameters(kind):
    handler = OPS.get(kind)
    known, signature = parameters(handler), inspect.signature(handler).parameters
    versions = definitions(kind)
    assert versions, f"coremltools defines no operation {kind!r}"
    documented = {name for version in versions for name in version.input_spec.input_types}
    assert set(known) - {"opset", "outputs"} == documented
    for version in versions:
        optional = {name for name, given in version.input_spec.input_types.items() if given.optional}
        assert not {name for name in optional if known[name].required}, "required here and optional there"
        for name, default in written_defaults(version).items():
            ours = signature[name].default
            if name not in optional or ours is None:  # None: worked out from the other arguments
                continue
            same = ours == default if isinstance(ours, str | bool) else np.float32(ours) == np.float32(default)
            assert same, f"{name} is {default} where it is left out, not {ours}"
