"""Every operation the interpreter knows has an oracle test, and docs/coreml_ops.md is the table of both.

After adding an operation run `WRITE_TABLE=1 python -m pytest tests/targets/coreml/test_coverage.py`.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Iterator
from pathlib import Path

from pocketvit.targets.coreml.half import STEPWISE
from pocketvit.targets.coreml.ops import OPS

HERE = Path(__file__).parent
TABLE = Path(__file__).parents[3] / "docs" / "coreml_ops.md"
IN_THE_PLAN = {
    "const": "A constant: its value is read with the program.",
    "cond": "Runs one of two blocks.",
    "while_loop": "Runs a block as long as another says so, at most 100,000 times.",
}
UNKNOWN = {
    "sequences": "gru lstm rnn",
    "lists of tensors": "list_gather list_length list_read list_scatter list_write make_list",
    "chance, which no check can repeat": "random_bernoulli random_categorical random_normal random_uniform",
    "shapes that depend on what the image shows": "non_zero non_maximum_suppression",
    "states, which classifiers do not keep": "read_state write_state coreml_update_state",
    "deprecated by Apple": "conv_quantized",
}
HEAD = """# What the Core ML interpreter computes

One row for each MIL operation it knows, with the test that holds it against numpy or scipy, written from the
operation's documented definition. Each runs as a real package that coremltools wrote and we read back. An operation
that is not here stops the load with its name and place; none is skipped. `half`: in fp16 arithmetic the steps inside
are rounded too. To add one: a function in `targets/coreml/ops/` with the parameters MIL documents, and its name in the
`COVERS` of an oracle test. This page is written by `tests/targets/coreml/test_coverage.py`, which fails when it is out
of date.

| operation | computes | half | handler | oracle test |
|---|---|---|---|---|
"""


def _covers() -> Iterator[tuple[str, str, str]]:
    """(operation, test file, test function) of every COVERS table, read without importing what else is there."""
    for path in sorted(HERE.glob("test_*.py")):
        if "COVERS" not in path.read_text() or path == Path(__file__):
            continue
        name = f"{__package__}.{path.stem}" if __package__ else path.stem
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for kind, test in module.COVERS.items():
            assert callable(getattr(module, test, None)), f"{path.name} has no {test}, which should cover {kind}"
            yield kind, path.name, test


def _table() -> str:
    tests = {kind: f"`{file}::{test}`" for kind, file, test in _covers()}
    rows = []
    for kind in sorted({*OPS, *IN_THE_PLAN}):
        if kind in IN_THE_PLAN:
            about, place, half = IN_THE_PLAN[kind], "`plan.py`", ""
        else:
            handler = inspect.unwrap(OPS.get(kind))
            about = (
                (inspect.getdoc(handler) or "What its name says, element by element.")
                .split("\n\n")[0]
                .replace("\n", " ")
                .replace("|", "\\|")
            )
            place = f"`ops/{Path(inspect.getfile(handler)).name}`"
            half = "yes" if kind in STEPWISE else ""
        rows.append(f"| `{kind}` | {about} | {half} | {place} | {tests.get(kind, 'none')} |")
    unknown = [f"- {why}: {', '.join(f'`{kind}`' for kind in kinds.split())}" for why, kinds in UNKNOWN.items()]
    return HEAD + "\n".join(rows) + "\n\nNot known, and why:\n\n" + "\n".join(unknown) + "\n"


def test_every_operation_has_exactly_one_oracle_test() -> None:
    found = [kind for kind, _, _ in _covers()]
    twice = {kind for kind in found if found.count(kind) > 1}
    assert not twice, f"covered twice: {sorted(twice)}"
    missing = {*OPS, *IN_THE_PLAN} - set(found)
    assert not missing, f"no oracle test: {sorted(missing)}"
    assert set(found) <= {*OPS, *IN_THE_PLAN}, f"covered, but not known: {sorted(set(found) - set(OPS))}"


def test_the_table_in_the_documentation_is_up_to_date() -> None:
    if os.environ.get("WRITE_TABLE"):
        TABLE.write_text(_table())
    assert TABLE.read_text() == _table(), "run this file's tests with WRITE_TABLE=1"


def test_what_is_not_known_is_named_with_the_reason() -> None:
    """Of all the operations coremltools can write, for any of its versions."""
    from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry

    unknown = {kind for kinds in UNKNOWN.values() for kind in kinds.split()}
    all_kinds = {kind for kind in SSAOpRegistry.core_ops if not kind.startswith("_")}
    assert all_kinds - set(OPS) - set(IN_THE_PLAN) == unknown & all_kinds
    assert not unknown & set(OPS)
