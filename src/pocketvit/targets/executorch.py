"""ExecuTorch programs (.pte) for XNNPACK, the CPU of phones; metadata in a constant method of the program."""

from __future__ import annotations

import dataclasses
import struct
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import BadInput, CheckFailed
from ..types import METADATA_KEY, Artifact, Precision, Quantized, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import Node

_HEADER = struct.Struct("<4s4s4sIQQQ")  # root offset, "ET12", "eh00", header length, program, segments: start, size
_FLOAT32 = 6  # torch's scalar type number


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Export, quantize with PT2E where asked, hand what XNNPACK can run to it, save."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    from ..models.graph import capture

    program = capture(module, draft.spec)
    if draft.precision.is_quantized:
        program = _quantize(module, draft, calibration)
    edge = to_edge_transform_and_lower(
        program, partitioner=[XnnpackPartitioner()], constant_methods={METADATA_KEY: ""}
    )
    quantized = _count(edge.exported_program()) if draft.precision.is_quantized else None
    artifact = dataclasses.replace(draft, quantized=quantized)
    # the count is known only now, and lowering twice would double the time; there is no public way to set a method
    edge._config_methods[METADATA_KEY] = artifact.to_json()
    artifact.path.write_bytes(edge.to_executorch().buffer)
    return artifact


def _quantize(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> ExportedProgram:
    """Quantize convolutions and linears only: with residual additions too, a small ViT falls from 32.7 to 12.6 dB."""
    import torch
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )

    from ._torch_program import quantize

    dynamic = draft.precision is Precision.W8A8_DYNAMIC
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic)
    quantizer = XNNPACKQuantizer()
    for operator in (torch.ops.aten.linear.default, torch.ops.aten.conv2d.default):
        quantizer.set_operator_type(operator, config)
    if dynamic:
        quantizer.set_filter_function(_not_after_padding)
    return quantize(module, draft.spec, quantizer, None if dynamic else calibration)


def _not_after_padding(node: Node) -> bool:
    """Whether XNNPACK can run this layer with dynamic ranges: not behind a padding of its own."""
    # TensorFlow's "same" under a stride: XNNPACK takes the two, and cannot propagate shapes through them
    return not any(getattr(given.target, "__name__", "").startswith("pad.") for given in node.all_input_nodes)


def _count(program: ExportedProgram) -> Quantized:
    """Count over the parts handed to XNNPACK, where integers are computed with, and the float rest."""
    from executorch.exir.lowered_backend_module import get_lowered_submodules

    from ._torch_program import count_quantized

    inside = [count_quantized(part.original_module) for _, part, _ in get_lowered_submodules(program.graph_module)]
    outside = count_quantized(program)  # left to the portable kernels, which compute in float
    return Quantized(layers=sum(part.layers for part in inside), of=sum(part.of for part in (*inside, outside)))


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
            Precision.W8A8_DYNAMIC: "PT2E dynamic with XNNPACKQuantizer, per channel, linears and convolutions",
        },
        packages=("executorch", "torchao"),
        extra="executorch",
        write=write,
        open=open_runner,
        embedded=embedded,
    ),
)
