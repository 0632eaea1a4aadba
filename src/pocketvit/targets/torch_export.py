"""PyTorch 2 archives (.pt2) from torch.export, run by PyTorch itself; metadata in the archive's extra files."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..types import METADATA_KEY, Artifact, Precision, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from torch.export import ExportedProgram


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Export, quantize with PT2E where asked, strip what is not the network, save."""
    import torch

    from ..models.graph import capture
    from ._torch_program import cast, count_quantized

    if draft.precision.is_quantized:
        program = _quantize(module, draft, calibration)
    elif draft.precision is Precision.BF16:
        program = capture(cast(module, "bfloat16"), draft.spec)
    else:
        program = capture(module, draft.spec)
    quantized = count_quantized(program) if draft.precision.is_quantized else None
    artifact = dataclasses.replace(draft, quantized=quantized)
    archive = io.BytesIO()  # saved by path, the archive would carry the name of the path
    torch.export.save(_bare(program), archive, extra_files={METADATA_KEY: artifact.to_json()})
    artifact.path.write_bytes(archive.getvalue())
    return artifact


def _quantize(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> ExportedProgram:
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        X86InductorQuantizer,
        get_default_x86_inductor_quantization_config,
    )

    from ._torch_program import quantize

    dynamic = draft.precision is Precision.W8A8_DYNAMIC
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_dynamic=dynamic))
    return quantize(module, draft.spec, quantizer, None if dynamic else calibration)


def _bare(program: ExportedProgram) -> ExportedProgram:
    """Remove, in place, what only the exporting machine needs: stack traces, sample inputs (a pickle), guards."""
    for graph_module in program.graph_module.modules():
        graph_module.meta = {}
    for node in program.graph.nodes:
        node.meta = {"val": node.meta["val"]} if "val" in node.meta else {}
    program._example_inputs = None
    program._guards_code = []
    return program


def open_runner(artifact: Artifact, threads: int) -> Runner:
    """Check that loading runs no code, load, and run without gradients on `threads` of PyTorch's threads."""
    import torch
    from torch.ao.quantization.fx import _decomposed  # noqa: F401  (registers the quantize and dequantize operators)

    from ._pt2_guard import check_archive

    with damage_reported(artifact.path, "torch.export"):
        check_archive(artifact.path)
        program = torch.export.load(artifact.path)
        module = program.module()
        _check_interface(artifact, program)

    @torch.inference_mode()
    def run_one(image: NDArray[np.float32]) -> NDArray[np.float32]:
        if torch.get_num_threads() != threads:  # one setting for the whole process: other candidates may differ
            torch.set_num_threads(threads)
        return module(torch.from_numpy(image)).numpy()

    return FileRunner(artifact, threads, run_one)


def _check_interface(artifact: Artifact, program: ExportedProgram) -> None:
    import torch

    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    signature = program.graph_signature
    ends = [values.get(str(name)) for name in (*signature.user_inputs, *signature.user_outputs)]
    tensors = [end for end in ends if isinstance(end, torch.Tensor) and end.dtype == torch.float32]
    if (len(ends), len(tensors)) != (2, 2):
        raise BadInput(f"{artifact.path} does not map one float32 image to float32 logits; export it again.")
    check_shapes(artifact, tensors[0].shape, tensors[1].shape)


def embedded(path: Path) -> str:
    """Return the JSON from the archive's extra files; unpacks nothing else and does not import torch."""
    with damage_reported(path, "torch.export"), zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.endswith(f"/extra/{METADATA_KEY}"):
                check_metadata_size(path, member.file_size)
                return archive.read(member).decode()
        raise NotOurs(path)


TARGETS.add(
    "torch_export",
    Target(
        name="torch_export",
        suffix=".pt2",
        precisions={
            Precision.FP32: "torch.export",
            Precision.BF16: "weights and arithmetic in bfloat16",
            Precision.W8A8: "PT2E static with X86InductorQuantizer, per channel, convolutions and linears; stored as "
            "integers, computed in float until torch.compile fuses them",
            Precision.W8A8_DYNAMIC: "PT2E dynamic with X86InductorQuantizer, per channel, convolutions and linears; "
            "stored as integers, computed in float until torch.compile fuses them",
        },
        packages=("torch", "torchao"),
        extra="torch",
        write=write,
        open=open_runner,
        embedded=embedded,
    ),
)
