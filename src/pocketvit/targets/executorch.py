"""ExecuTorch programs (.pte) for XNNPACK, the CPU of phones; metadata in a constant method of the program."""

from __future__ import annotations

import dataclasses
import struct
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import BadInput, CheckFailed
from ..types import METADATA_KEY, Artifact, Calibrator, Precision, Quantized, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import GraphModule, Node
    from torchao.quantization.pt2e.quantizer import QuantizationConfig, Quantizer

    from ..models.graph import Layer

_HEADER = struct.Struct("<4s4s4sIQQQ")  # root offset, "ET12", "eh00", header length, program, segments: start, size
_FLOAT32 = 6  # torch's scalar type number


CALIBRATORS = (Calibrator.MSE, Calibrator.PERCENTILE, Calibrator.MINMAX)
_IMAGES = {"conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "upsample_nearest2d", "upsample_bilinear2d"}
_MOVES = {"view", "reshape", "_unsafe_view", "permute", "transpose", "flatten", "unflatten"}
_PADS = {"pad", "constant_pad_nd"}
_PORTABLE = "XNNPACK did not take its 8-bit form"
_PADDED = "XNNPACK has no dynamic kernel for a convolution behind a padding of its own"
_DEPTHWISE = "XNNPACK has no dynamic kernel for a depthwise convolution"
_MOVED = "XNNPACK cannot lay out, for a dynamic kernel, what a reshape gives"
_NOT_2D = "XNNPACK has no dynamic kernel for a convolution that is not two-dimensional"


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Export, quantize where asked, hand what XNNPACK can run to it, save."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from ..models.graph import capture

    def lowered(program: ExportedProgram) -> Any:
        return to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: ""}
        )

    quantized = None
    if draft.precision.is_quantized:
        program, layers, reasons = _quantize(module, draft, calibration)
        edge = lowered(program)
        quantized = _count(edge.exported_program(), layers, reasons)
    else:
        edge = lowered(capture(module, draft.spec))
    artifact = dataclasses.replace(draft, quantized=quantized)
    # the count is known only now, and lowering twice would double the time; there is no public way to set a method
    edge._config_methods[METADATA_KEY] = artifact.to_json()
    artifact.path.write_bytes(edge.to_executorch().buffer)
    return artifact


def _quantize(
    module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None
) -> tuple[ExportedProgram, tuple[Layer, ...], dict[str, str]]:
    """Quantize convolutions and linears only: with residual additions too, a small ViT falls from 32.7 to 12.6 dB.

    Returns the program, its layers, and why some were left float.
    """
    import torch

    from ._torch_program import exported, layer_nodes, name_of, named, observed
    from ._torch_quantize import LayerQuantizer, eight_bits, four_bits_dynamic

    wanted, static = draft.quantization, draft.precision is Precision.W8A8
    if draft.precision is Precision.W4 and wanted.group_size % 32:
        raise BadInput(f"XNNPACK's groups of 4-bit weights are multiples of 32, not {wanted.group_size}.")
    graph, layers = named(module, draft.spec)
    reasons = {str(name_of(node)): why for node in layer_nodes(graph.graph) if (why := _no_kernel(node, static))}
    reasons |= wanted.keep
    names = {layer.name for layer in layers} - reasons.keys()
    if static:
        config = eight_bits(torch.int8, wanted.calibrator or CALIBRATORS[0])
        return exported(observed(graph, draft.spec, _static(names, config), calibration), draft.spec), layers, reasons
    _separate_inputs(graph, names)
    four = _in_four_bits(layers, names, draft) if draft.precision is Precision.W4 else set()
    if draft.precision is Precision.W4 and not four:
        raise CheckFailed(
            f"{draft.display_name}: none of its {len(layers)} layers is a linear one whose rows divide into groups of "
            f"{wanted.group_size}, and XNNPACK has 4-bit weights for those alone; export w8a8-dynamic."
        )
    graph = observed(graph, draft.spec, LayerQuantizer(names - four, eight_bits(torch.int8, None)), None)
    four_bits_dynamic(graph, four, wanted.group_size)
    return exported(graph, draft.spec), layers, reasons


def _static(names: set[str], config: QuantizationConfig) -> Quantizer:
    """XNNPACK's own quantizer for the layers named: it takes their activation functions along."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import XNNPACKQuantizer

    from ._torch_program import layer_nodes, name_of

    class Named(XNNPACKQuantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            unnamed = {node for node in layer_nodes(model.graph) if name_of(node) not in names}
            self.set_filter_function(lambda node: node not in unnamed)
            return super().annotate(model)

    quantizer = Named()
    for operator in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
        quantizer.set_operator_type(operator, config)
    return quantizer


def _separate_inputs(module: GraphModule, names: set[str]) -> None:
    """Put a copy, dropped later, before each convolution, so that no two share what is quantized at run time.

    XNNPACK computes the ranges for the one of them and reads them wrongly in the other where their strides differ, as
    at the start of a stage: a small RegNet falls from 34 to 7 dB.
    """
    import torch

    from ..models.graph import operator
    from ._torch_program import layer_nodes, name_of

    for node in layer_nodes(module.graph):
        if name_of(node) in names and operator(node) == "conv2d" and len(node.all_input_nodes[0].users) > 1:
            shared = node.all_input_nodes[0]
            with module.graph.inserting_before(node):
                copied = module.graph.call_function(torch.ops.aten.clone.default, (shared,))
            copied.meta = {"val": shared.meta["val"]}
            node.replace_input_with(shared, copied)
    module.recompile()


def _no_kernel(node: Node, static: bool) -> str | None:
    """Why XNNPACK cannot run this layer on integers, None where it can."""
    from ..models.graph import operator
    from ._torch_quantize import KINDS, NOT_A_LAYER

    if operator(node) not in KINDS:
        return NOT_A_LAYER
    if static or operator(node) == "linear":
        return None
    if operator(node) != "conv2d":
        return _NOT_2D
    if node.all_input_nodes[1].meta["val"].shape[1] == 1:
        return _DEPTHWISE
    # TensorFlow's "same" under a stride: XNNPACK takes the two, and cannot propagate shapes through them
    if any(operator(given) in _PADS for given in node.all_input_nodes):
        return _PADDED
    return None if _channels_last(node.all_input_nodes[0]) else _MOVED


def _channels_last(node: Node) -> bool:
    """Whether XNNPACK has this tensor with channels last, as what comes from a convolution or a pooling.

    Where it does not, it puts a copy before a convolution; if that one is dynamic, it looks for the place by following
    first inputs to the start of the program, and fails at the first that is no image.
    """
    from ..models.graph import operator

    if node.op == "placeholder" or operator(node) in _IMAGES:
        return True
    alike = [given for given in node.all_input_nodes if given.meta["val"].ndim == 4]
    return operator(node) not in _MOVES and any(map(_channels_last, alike))


def _in_four_bits(layers: tuple[Layer, ...], names: set[str], draft: Artifact) -> set[str]:
    """Linears whose rows divide into groups; XNNPACK has no other kernels for 4 bits."""
    from ._torch_quantize import better_in_eight

    linears = {layer.name for layer in layers if layer.kind == "linear" and layer.name in names}
    whole = {layer.name for layer in layers if layer.shape[-1] % draft.quantization.group_size == 0}
    return (linears & whole) - better_in_eight(layers, draft.classes)


def _count(program: ExportedProgram, layers: tuple[Layer, ...], reasons: dict[str, str]) -> Quantized:
    """Count the layers in the parts handed to XNNPACK: the portable kernels compute the rest in float."""
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    from ._torch_program import count, quantized_layers

    integers: dict[str, bool] = {}
    for _, part, _ in get_lowered_submodules(program.graph_module):
        integers |= quantized_layers(part.original_module)
    return count(layers, integers, reasons, _PORTABLE)


class _ExecuTorchRunner(FileRunner):
    """A loaded method, loaded again whenever the process-wide thread pool it was built on has been replaced."""

    _alive: ClassVar[weakref.WeakSet[_ExecuTorchRunner]] = weakref.WeakSet()

    def __init__(self, artifact: Artifact, threads: int) -> None:
        super().__init__(artifact, threads, self._execute)
        self._path = artifact.path
        self._method: Any = None
        self._alive.add(self)

    def method(self) -> Any:
        """Return the network, on a pool of this runner's threads."""
        from executorch.extension.pybindings import portable_lib

        if portable_lib._threadpool_get_thread_count() != self.threads:
            for (
                runner
            ) in self._alive:  # a loaded network may point to the pool that is about to go: the call is named unsafe
                runner._method = None
            portable_lib._unsafe_reset_threadpool(self.threads)
        if self._method is None:
            self._method = _program(self._path).load_method("forward")
        return self._method

    def _execute(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        import torch

        try:
            return self.method().execute((torch.from_numpy(image),))[0].numpy()
        except RuntimeError as e:  # a program that was accepted when it was made and when it was loaded
            raise CheckFailed(f"ExecuTorch loads {self._path} and cannot run it ({e}).") from e


def open_runner(artifact: Artifact, threads: int) -> Runner:
    """Load the program on a thread pool of this size."""
    with damage_reported(artifact.path, "ExecuTorch"):
        runner = _ExecuTorchRunner(artifact, threads)
        about = runner.method().metadata
        if (about.num_inputs(), about.num_outputs()) != (1, 1):
            raise BadInput(f"{artifact.path} does not map one image to one logits tensor; export it again.")
        image, logits = about.input_tensor_meta(0), about.output_tensor_meta(0)
    if image.dtype() != _FLOAT32 or logits.dtype() != _FLOAT32:
        raise BadInput(f"{artifact.path} does not take and return float32; export it again.")
    check_shapes(artifact, image.sizes(), logits.sizes())
    return runner


def embedded(path: Path) -> str:
    """Return the JSON from the constant method; the network itself is not loaded."""
    with damage_reported(path, "ExecuTorch"):
        program = _program(path)
        if METADATA_KEY not in program.method_names:
            raise NotOurs(path)
        text = program.load_method(METADATA_KEY).execute(())[0]
    if not isinstance(text, str):
        raise NotOurs(path)
    check_metadata_size(path, len(text))
    return text


def _program(path: Path) -> Any:
    """Open a program after checking that the file is as long as its header says; the runtime maps it unchecked."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[4:6] != b"ET" or head[8:10] != b"eh":
        raise BadInput(f"{path} is not a readable ExecuTorch file (no header); export it again.")
    *_, program_size, segments, segment_size = _HEADER.unpack(head)
    if max(program_size, segments + segment_size) > size:
        raise BadInput(f"{path} is not a readable ExecuTorch file (cut off at {size} bytes); export it again.")
    from executorch.runtime import Runtime

    return Runtime.get().load_program(path)


TARGETS.add(
    "executorch",
    Target(
        name="executorch",
        suffix=".pte",
        precisions={
            Precision.FP32: "XNNPACK, float32",
            Precision.W8A8: "PT2E static with XNNPACKQuantizer, per channel, convolutions and linears",
            Precision.W8A8_DYNAMIC: "PT2E dynamic, per channel, linears and convolutions",
            Precision.W4: "linears with 4-bit weights in groups and dynamic 8-bit activations; convolutions, the "
            "classifier and small linears as in w8a8-dynamic",
        },
        calibrators=CALIBRATORS,
        packages=("executorch", "torchao"),
        extra="executorch",
        write=write,
        open=open_runner,
        embedded=embedded,
    ),
)
