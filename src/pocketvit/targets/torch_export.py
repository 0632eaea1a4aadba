"""PyTorch 2 archives (.pt2) from torch.export, run by PyTorch itself; metadata in the archive's extra files."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BadInput
from ..types import METADATA_KEY, Artifact, Calibrator, Precision, Quantized, Runner
from . import TARGETS, Target
from ._reading import NotOurs, check_metadata_size, check_shapes, damage_reported
from ._runner import FileRunner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn
    from torch.export import ExportedProgram

CALIBRATORS = (Calibrator.MSE, Calibrator.PERCENTILE, Calibrator.MINMAX)
_FLOAT_ARITHMETIC = "stored as integers, computed in float until torch.compile fuses them"
_FLOATS = {Precision.FP16: "float16", Precision.BF16: "bfloat16"}


def write(module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None) -> Artifact:
    """Export, quantize where asked, strip what is not the network, save."""
    import torch

    from ..models.graph import capture
    from ._torch_program import cast

    quantized = None
    if draft.precision.is_quantized:
        program, quantized = _quantize(module, draft, calibration)
    elif draft.precision is Precision.FP32:
        program = capture(module, draft.spec)
    else:
        program = capture(cast(module, _FLOATS[draft.precision]), draft.spec)
    artifact = dataclasses.replace(draft, quantized=quantized)
    archive = io.BytesIO()  # saved by path, the archive would carry the name of the path
    torch.export.save(_bare(program), archive, extra_files={METADATA_KEY: artifact.to_json()})
    artifact.path.write_bytes(archive.getvalue())
    return artifact


def _quantize(
    module: nn.Module, draft: Artifact, calibration: NDArray[np.float32] | None
) -> tuple[ExportedProgram, Quantized]:
    """Quantize every layer not kept; what is between them stays float."""
    import torch

    from ._torch_program import count, exported, named, observed, quantized_layers
    from ._torch_quantize import NOT_A_LAYER, LayerQuantizer, better_in_eight, eight_bits, weights_to_integers

    graph, layers = named(module, draft.spec)
    wanted, precision = draft.quantization, draft.precision
    reasons = wanted.keep
    names = {layer.name for layer in layers if layer.name not in reasons}
    if precision in (Precision.W8, Precision.W4):
        eight = names if precision is Precision.W8 else better_in_eight(layers, draft.classes)
        weights_to_integers(graph, {name: None if name in eight else wanted.group_size for name in names})
    else:
        dynamic = precision is Precision.W8A8_DYNAMIC
        config = eight_bits(torch.uint8, None if dynamic else wanted.calibrator or CALIBRATORS[0])
        graph = observed(graph, draft.spec, LayerQuantizer(names, config), None if dynamic else calibration)
    program = exported(graph, draft.spec)
    return program, count(layers, quantized_layers(program), reasons, NOT_A_LAYER)


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
            Precision.FP16: "weights and arithmetic in float16",
            Precision.BF16: "weights and arithmetic in bfloat16",
            Precision.W8: "weights of all layers in 8 bits, per channel; computed in float",
            Precision.W8A8: f"PT2E static (torchao), per channel, convolutions and linears; {_FLOAT_ARITHMETIC}",
            Precision.W8A8_DYNAMIC: f"PT2E dynamic (torchao), per channel, convolutions and linears; "
            f"{_FLOAT_ARITHMETIC}",
            Precision.W4: "weights in 4 bits, in groups; in 8 bits those of the first layer, the classifier and "
            "small layers; computed in float",
        },
        calibrators=CALIBRATORS,
        packages=("torch", "torchao"),
        extra="torch",
        write=write,
        open=open_runner,
        embedded=embedded,
    ),
)
