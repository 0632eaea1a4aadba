"""The captured graph run on images, node by node, with a look at what every layer reads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Interpreter, Node

from ...errors import BadInput
from ...models import Deployable, Model
from ...models.graph import capture, operator

if TYPE_CHECKING:
    from torch.export import ExportedProgram

OWN = "module."  # under which `Deployable` holds the user's model
WEIGHED = {"linear", "conv1d", "conv2d"}


def captured(model: Model) -> tuple[Deployable, ExportedProgram]:
    """An evaluation copy of `model` with the normalisation inside, its parameters as they are, and its graph."""
    module = Deployable(copy.deepcopy(model.module).cpu().float(), model.spec).eval().requires_grad_(False)
    try:
        return module, capture(module, model.spec)
    except Exception as e:  # whatever the model's own code or the exporter's raises
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), "")
        raise BadInput(
            f"{model.name} cannot be followed: torch.export does not get through it ({type(e).__name__}: "
            f"{reason[:160]}). The model is as it was."
        ) from e


def run(program: ExportedProgram, images: NDArray[np.float32], visit: Callable[[Node, Tensor], None]) -> None:
    """Run the graph on each image (N, C, H, W) in turn and show `visit` what each linear and convolution reads."""
    runner = _Watching(program.graph_module, visit)
    held = inputs(program)
    with torch.no_grad():
        for image in images:
            x = torch.from_numpy(np.ascontiguousarray(image[None]))
            runner.run(*[x if value is None else value for value in held])


def inputs(program: ExportedProgram) -> Sequence[Tensor | None]:
    """What the graph's placeholders hold, in their order; None for the image."""
    signature = program.graph_signature
    names: Mapping[str, str] = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    stored = {**program.constants, **program.state_dict}
    places = [node for node in program.graph.nodes if node.op == "placeholder"]
    return [stored[names[node.name]].detach() if node.name in names else None for node in places]


class _Watching(Interpreter):
    """torch.fx's interpreter, which forgets every value after its last use."""

    def __init__(self, graph_module: torch.fx.GraphModule, visit: Callable[[Node, Tensor], None]) -> None:
        super().__init__(graph_module)
        self.visit = visit

    def run_node(self, n: Node) -> Any:
        if operator(n) in WEIGHED:
            self.visit(n, self.env[n.args[0]])  # type: ignore[index]
        return super().run_node(n)
