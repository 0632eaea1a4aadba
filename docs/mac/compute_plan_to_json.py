"""Ask Core ML on this Mac where it would run each operation of a package, and write the answer as JSON.

    python compute_plan_to_json.py model.mlpackage plan.json [ALL | CPU_AND_NE | CPU_AND_GPU | CPU_ONLY]

Needs macOS 14.4 or newer and coremltools 8.1 or newer; nothing of pocketvit. On any machine, afterwards:

    pocketvit audit model.mlpackage --for ane --plan plan.json

Written from coremltools' documentation of MLComputePlan; it has not been run on a Mac by its authors.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def operations(block: Any) -> Iterator[Any]:
    """Every operation of a block and of the blocks inside."""
    for operation in block.operations:
        yield operation
        for inner in operation.blocks:
            yield from operations(inner)


def device(found: Any) -> str:
    """A short name for a compute device of coremltools; "other" for a class that is not known here."""
    known = {"MLNeuralEngineComputeDevice": "neural_engine", "MLGPUComputeDevice": "gpu", "MLCPUComputeDevice": "cpu"}
    return known.get(type(found).__name__, "other")


def describe(plan: Any, operation: Any) -> dict[str, Any]:
    """One row: null devices for constants, which run nowhere."""
    usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
    cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
    return {
        "name": operation.outputs[0].name,
        "kind": operation.operator_name,
        "preferred": None if usage is None else device(usage.preferred_compute_device),
        "supported": [] if usage is None else [device(one) for one in usage.supported_compute_devices],
        "cost": None if cost is None else cost.weight,
    }


def main(package: str, output: str, units: str = "ALL") -> None:
    """Compile the package, load its plan for the compute units, write it."""
    import coremltools as ct
    from coremltools.models.compute_plan import MLComputePlan

    compiled = ct.models.utils.compile_model(package)
    plan = MLComputePlan.load_from_path(path=str(compiled), compute_units=ct.ComputeUnit[units])
    program = plan.model_structure.program
    if program is None:
        sys.exit(f"{package} is not an ML program.")
    rows = [
        describe(plan, operation) for operation in operations(program.functions["main"].block) if operation.outputs
    ]
    document = {
        "format": "pocketvit-compute-plan",
        "version": 1,
        "model": Path(package).name,
        "compute_units": units,
        "machine": f"{platform.machine()}, macOS {platform.mac_ver()[0]}",
        "coremltools": ct.__version__,
        "operations": rows,
    }
    Path(output).write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
