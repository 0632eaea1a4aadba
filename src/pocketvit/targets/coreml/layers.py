"""The layers of a package, the operations that carry weights, under the names that the user's model gives them.

coremltools renames, fuses and reorders: a convolution takes the name of the norm folded into it. What it keeps is a
number that each node of the torch graph may carry (`debug_handle`), and it writes beside the package which operation
came from which number. The layer of an operation is the nearest one at or before its node.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ...models import graph
from ...types import Quantized
from .program import Op, Program

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

# operations that may carry weights, and the parameters that may take them
WEIGHTS = {"conv": ("weight",), "conv_transpose": ("weight",), "linear": ("weight",), "matmul": ("y", "x")}
_KEEPS_WEIGHTS = {"transpose", "reshape", "cast", "squeeze", "expand_dims", "identity"}
_HANDLES = "executorch_debug_handle_mapping.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One operation that carries weights.

    name: the module that holds the weight in the user's model; the operation's own where no module is known. data: the
    parameter that takes the activation. constant: what makes the weight. direct: nothing stands between that and `op`.
    output_axis, input_axis: of the weight.
    """

    name: str
    op: Op
    data: str
    constant: Op
    direct: bool
    output_axis: int
    input_axis: int

    @property
    def weight(self) -> NDArray | None:
        """The numbers of a float weight, None for a compressed one."""
        value = self.constant.attributes.get("val")
        return value.data if value is not None and isinstance(value.data, np.ndarray) else None


def number_nodes(program: ExportedProgram) -> None:
    """Give every node of a torch graph the number that coremltools hands on."""
    for i, node in enumerate(program.graph.nodes):
        node.meta["debug_handle"] = i


def take_names(path: Path, program: ExportedProgram) -> dict[str, str]:
    """Layer name by name of the operation in a saved package; deletes the file that coremltools left for it."""
    handles = path / _HANDLES
    mapping = json.loads(handles.read_text())["mapping"] if handles.exists() else {}
    handles.unlink(missing_ok=True)
    nodes = list(program.graph.nodes)
    known = {layer.node: layer.name for layer in graph.layers(program)}
    names: dict[str, str] = {}
    for handle, places in mapping.items():
        kinds = {place[-1]["Output"]: place[-1]["Operator"] for place in places}
        if handle == "null" or not set(kinds.values()) & set(WEIGHTS):
            continue
        found = _nearest(nodes[int(handle)], known)
        if found is not None:
            names |= {output: found for output, kind in kinds.items() if kind in WEIGHTS}
    return names


def _nearest(node: Node, known: Mapping[str, str]) -> str | None:
    """The layer at a node or the fewest steps before it."""
    waiting, met = deque([node]), set()
    while waiting:
        here = waiting.popleft()
        if here in met:
            continue
        met.add(here)
        if here.name in known:
            return known[here.name]
        waiting.extend(here.all_input_nodes)
    return None


def layers(program: Program, names: Mapping[str, str]) -> tuple[Layer, ...]:
    """Convolutions, linears and products with a constant, in the order they are computed; names: of `take_names`."""
    producers = {output.name: op for op in program.block.ops for output in op.outputs}
    found = []
    for op in program.block.ops:
        for parameter in WEIGHTS.get(op.kind, ()):
            constant = _origin(op.inputs[parameter][0], producers)
            if constant is None:
                continue
            direct = constant.name == op.inputs[parameter][0]
            output_axis, input_axis = _axes(op, parameter, producers) if direct else (0, 1)
            found.append(
                Layer(
                    name=names.get(op.name, op.name),
                    op=op,
                    data="y" if parameter == "x" else "x",
                    constant=constant,
                    direct=direct,
                    output_axis=output_axis,
                    input_axis=input_axis,
                )
            )
            break
    return tuple(found)


def is_quantized(layer: Layer, program: Program, *, activations: bool) -> bool:
    """True where the weight is unpacked from integers and, if asked, the activation comes from them too."""
    if not layer.constant.kind.startswith("constexpr"):
        return False
    made = {output.name: op.kind for op in program.block.ops for output in op.outputs}
    return not activations or made.get(str(layer.op.inputs[layer.data][0])) == "dequantize"


def count(program: Program, names: Mapping[str, str], kept: Mapping[str, str], *, activations: bool) -> Quantized:
    """How many layers of a package are quantized. kept: why layers stayed float, by name, as far as that is known."""
    found = layers(program, names)
    floats = [layer.name for layer in found if not is_quantized(layer, program, activations=activations)]
    return Quantized(
        layers=len(found) - len(floats),
        of=len(found),
        kept={name: kept.get(name, "coremltools left it as it was") for name in floats},
    )


def _axes(op: Op, parameter: str, producers: Mapping[str, Op]) -> tuple[int, int]:
    """Output and input channels of a weight."""
    if op.kind == "conv_transpose":
        return 1, 0
    if op.kind != "matmul":
        return 0, 1
    given = op.inputs.get(f"transpose_{parameter}", (None,))[0]
    value = producers[given].attributes["val"] if isinstance(given, str) else given
    transposed = value is not None and bool(np.asarray(value.data).item())
    return (-2, -1) if transposed is (parameter == "y") else (-1, -2)


def _origin(name: object, producers: Mapping[str, Op]) -> Op | None:
    """Constant behind a value, or None for an activation."""
    while isinstance(name, str) and (op := producers.get(name)) is not None:
        if op.kind not in _KEEPS_WEIGHTS:
            return op if op.kind == "const" or op.kind.startswith("constexpr") else None
        (name,) = op.inputs["x"]
    return None
