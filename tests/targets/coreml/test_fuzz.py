"""Damaged packages: whatever is changed, loading ends in a sentence that names the package, soon and within bounds.

Ours are sealed, so every change of what they compute or say is refused. A package of others carries no digest: a
changed number cannot be noticed there, but nothing may crash, hang, or take memory without bound.
"""

from __future__ import annotations

import random
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS
from pocketvit.targets.coreml.interpreter import Interpreter
from pocketvit.targets.coreml.seal import SEAL_KEY
from pocketvit.types import Precision

MOST_S = 20.0  # of one load and run of a package that takes 0.2 s when whole; a hang is minutes
MOST_BYTES = 2 << 30  # above what the process had before; the whole package takes 30 MB


def _mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight small changes: bits, bytes, numbers, runs cut out, repeated, or moved."""
    mutable = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
        if not mutable:
            break
        at = rng.randrange(len(mutable))
        length = rng.choice((1, 2, 4, 8, 64, 1024))
        kind = rng.randrange(7)
        if kind == 0:
            mutable[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutable[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 2:
            del mutable[at : at + length]
        elif kind == 3:
            mutable[at:at] = mutable[at : at + length]
        elif kind == 4:
            number = rng.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**62, 2**64 - 1))
            mutable[at : at + 8] = number.to_bytes(8, "little")
        elif kind == 5:
            other = rng.randrange(len(mutable))
            mutable[at : at + length] = mutable[other : other + length]
        else:
            del mutable[at:]
    return bytes(mutable)


def _mutate_spec(spec, rng: random.Random) -> None:
    """Change one field of the program so that it still parses: these reach the checks behind the parser."""
    main = spec.mlProgram.functions["main"]
    operations = main.block_specializations[main.opset].operations
    op = rng.choice(operations)
    kind = rng.randrange(9)
    if kind == 0:
        op.type = rng.choice(operations).type
    elif kind == 1 and op.inputs:
        argument = op.inputs[rng.choice(list(op.inputs))].arguments[0]
        argument.name = rng.choice(rng.choice(operations).outputs).name
    elif kind == 2 and op.inputs:
        del op.inputs[rng.choice(list(op.inputs))]
    elif kind == 3 and op.outputs[0].type.tensorType.dimensions:
        dimension = rng.choice(op.outputs[0].type.tensorType.dimensions)
        dimension.constant.size = rng.choice((0, 1, 7, 2**20, 2**40, 2**63))
    elif kind == 4:
        op.outputs[0].type.tensorType.dataType = rng.choice((0, 1, 2, 10, 11, 21, 23, 35, 40, 99))
    elif kind == 5 and "val" in op.attributes:
        value = op.attributes["val"]
        if value.WhichOneof("value") == "blobFileValue":
            value.blobFileValue.offset = rng.choice((0, 1, 64, 128, 2**40, 2**63))
        else:
            field = value.immediateValue.tensor.WhichOneof("value")
            values = getattr(value.immediateValue.tensor, field).values
            if field in ("ints", "floats") and values:
                values[rng.randrange(len(values))] = rng.choice((0, 1, -1, -7, 1000, 2**30, -(2**31)))
            elif field == "strings" and values:
                values[0] = rng.choice(("", "same", "EXACT", "fp16", "x" * 1000))
            elif field == "bools":
                values[0] = not values[0]
    elif kind == 6:
        del operations[rng.randrange(len(operations))]
    elif kind == 7:
        copied = type(op)()
        copied.CopyFrom(op)
        operations.append(copied)
    else:
        first, second = rng.randrange(len(operations)), rng.randrange(len(operations))
        a, b = type(op)(), type(op)()
        a.CopyFrom(operations[first])
        b.CopyFrom(operations[second])
        operations[first].CopyFrom(b)
        operations[second].CopyFrom(a)


def _damage(source: Path, path: Path, rng: random.Random) -> bool:
    """Write a damaged copy; False when the change left every file as it was."""
    from coremltools.proto import Model_pb2

    shutil.copytree(source, path)
    inside = path / "Data" / "com.apple.CoreML"
    model, weights = inside / "model.mlmodel", inside / "weights" / "weight.bin"
    which = rng.choice((model, weights, path / "Manifest.json", None, None, None))
    if which is not None:
        before = which.read_bytes()
        which.write_bytes(_mutate(before, rng))
        return which.read_bytes() != before
    spec = Model_pb2.Model.FromString(model.read_bytes())
    before = spec.SerializeToString(deterministic=True)
    _mutate_spec(spec, rng)
    model.write_bytes(spec.SerializeToString())
    return spec.SerializeToString(deterministic=True) != before


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


COUNTS = [
    pytest.param(60, id="60"),
    pytest.param(1200, id="1200", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize("count", COUNTS)
def test_damage_to_our_own_packages_is_always_refused(count, exported, images, tmp_path):
    artifact = exported("coreml", Precision.FP16)
    expected = TARGETS.get("coreml").load(artifact, 1)(images[:1])
    wrong, unnamed, before = [], [], _peak()
    for seed in range(count):
        path = tmp_path / f"{seed}.mlpackage"
        changed = _damage(artifact.path, path, random.Random(seed))
        start = time.monotonic()
        try:
            found = TARGETS.get("coreml").load(replace(artifact, path=path), 1)(images[:1])
        except BadInput as e:
            unnamed += [] if str(path) in str(e) else [f"seed {seed}: {e}"]
        else:
            # the manifest's spelling, or protobuf fields nothing reads, may change; the answer may not
            if changed and not np.array_equal(found, expected):
                wrong.append(seed)
        assert time.monotonic() - start < MOST_S, f"seed {seed} took {time.monotonic() - start:.0f} s"
        shutil.rmtree(path)
    assert not unnamed
    assert not wrong, f"another answer was taken for right for the seeds {wrong}"
    assert _peak() - before < MOST_BYTES, f"memory grew by {(_peak() - before) / 1e6:.0f} MB"


@pytest.mark.parametrize("count", COUNTS)
def test_damage_to_packages_of_others_never_crashes_or_runs_away(count, exported, images, tmp_path):
    from coremltools.proto import Model_pb2

    source = tmp_path / "source.mlpackage"
    shutil.copytree(exported("coreml", Precision.W8).path, source)
    model = source / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model.FromString(model.read_bytes())
    spec.description.metadata.userDefined.pop(SEAL_KEY)
    model.write_bytes(spec.SerializeToString())
    refused, unnamed, before = 0, [], _peak()
    for seed in range(count):
        path = tmp_path / f"{seed}.mlpackage"
        _damage(source, path, random.Random(10_000 + seed))
        start = time.monotonic()
        try:
            Interpreter(path).predict({"image": images[:1]})
        except BadInput as e:
            refused += 1
            unnamed += [] if str(path) in str(e) or "input" in str(e) else [f"seed {seed}: {e}"]
        assert time.monotonic() - start < MOST_S, f"seed {seed} took {time.monotonic() - start:.0f} s"
        shutil.rmtree(path)
    assert not unnamed
    print(f"{refused} of {count} refused")
    assert refused > count // 3, f"only {refused} of {count} were refused: the changes do not reach anything"
    assert _peak() - before < MOST_BYTES, f"memory grew by {(_peak() - before) / 1e6:.0f} MB"


def test_a_program_that_asks_for_a_terabyte_is_refused_before_it_is_given(exported, images, tmp_path):
    """In a process that may not have it: 6 GiB of address space above what loading takes."""
    from coremltools.proto import Model_pb2

    path = tmp_path / "m.mlpackage"
    shutil.copytree(exported("coreml", Precision.FP32).path, path)
    model = path / "Data" / "com.apple.CoreML" / "model.mlmodel"
    spec = Model_pb2.Model.FromString(model.read_bytes())
    main = spec.mlProgram.functions["main"]
    block = main.block_specializations[main.opset]
    huge = block.operations.add(type="fill")
    shape = type(huge)(type="const")
    value = shape.attributes["val"]
    value.type.tensorType.dataType, value.type.tensorType.rank = 23, 1
    value.type.tensorType.dimensions.add().constant.size = 4
    value.immediateValue.tensor.ints.values.extend([2**15] * 4)
    shape.outputs.add(name="huge_shape").type.CopyFrom(value.type)
    operations = [shape, *block.operations]
    del block.operations[:]
    block.operations.extend(operations)
    huge = block.operations[-1]
    huge.inputs["shape"].arguments.add(name="huge_shape")
    number = huge.inputs["value"].arguments.add().value
    number.type.tensorType.dataType = 11
    number.immediateValue.tensor.floats.values.append(0.0)
    result = huge.outputs.add(name="huge").type.tensorType
    result.dataType, result.rank = 11, 4
    for _ in range(4):
        result.dimensions.add().constant.size = 2**15
    model.write_bytes(spec.SerializeToString())
    code = (
        "import resource, sys\n"
        "from pocketvit.errors import BadInput\n"
        "from pocketvit.targets.coreml.interpreter import Interpreter\n"
        "import torch, coremltools\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (6 << 30),) * 2)\n"
        "try: Interpreter(sys.argv[1])\n"
        "except BadInput as e: print(e)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert "1152921504606846976" in ran.stdout or "elements" in ran.stdout, (ran.stdout, ran.stderr[-500:])
