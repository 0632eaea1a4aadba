"""Every block through ONNX and Core ML as a user exports it: no tensor of rank above 5, and the same logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pocketvit.layers import Attention, pad_channels, pad_to_windows, window_partition, window_reverse
from pocketvit.layers.folding import fold
from pocketvit.targets import TARGETS
from pocketvit.types import Artifact, Golden, InputSpec, Precision

DIM, HEADS, SIDE, CLASSES = 24, 3, 32, 10
MAP = SIDE // 4
# Measured: 122 to 140 dB in fp32, 56 to 69 in fp16; a mirrored table, kernel or weight, or a lost scale, leaves 31.
FLOOR_DB = {Precision.FP32: 105.0, Precision.FP16: 48.0}


class Windowed(nn.Module):
    """Attention over windows of a map (B, C, H, W), on a shortcut; the map is padded where they do not fit."""

    def __init__(self, window: tuple[int, int], **options: object) -> None:
        super().__init__()
        self.window = window
        self.attention = Attention(DIM, HEADS, window=window, **options)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        H, W = x_BCHW.shape[2:]
        padded, bias = pad_to_windows(x_BCHW.permute(0, 2, 3, 1), self.window)
        tokens = self.attention(window_partition(padded, self.window).flatten(1, 2), bias)
        joined = window_reverse(tokens.unflatten(1, self.window), self.window, tuple(padded.shape[1:3]))
        return x_BCHW + joined[:, :H, :W].permute(0, 3, 1, 2)


def _bottleneck() -> nn.Sequential:
    return pad_channels(
        nn.Sequential(
            nn.Conv2d(DIM, 40, 1), nn.BatchNorm2d(40), nn.GELU(), nn.Conv2d(40, 40, 3, padding=1, groups=40),
            nn.BatchNorm2d(40), nn.GELU(), nn.Conv2d(40, DIM, 1),
        )
    )  # fmt: skip


FITS, RAGGED = (4, 2), (3, 5)
# name -> what builds it, how many softmaxes it has
BLOCKS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "none": (lambda: Windowed(FITS), 1),
    "none fused padded": (lambda: Windowed(RAGGED, qkv="fused"), 1),
    "absolute split": (lambda: Windowed(FITS, position="absolute", split_heads=True), HEADS),
    "relative padded": (lambda: Windowed(RAGGED, position="relative"), 1),
    "relative split resized": (
        lambda: Windowed(FITS, position="relative", position_base=(7, 7), split_heads=True),
        HEADS,
    ),
    "single head split padded": (
        lambda: Windowed(RAGGED, position="relative_single_head", split_heads=True),
        HEADS,
    ),
    "lepe padded": (lambda: Windowed(RAGGED, position="lepe", qkv="fused"), 1),
    "lepe fused": (lambda: Windowed(FITS, position="lepe_fused"), 1),
    "lepe fused split padded": (lambda: Windowed(RAGGED, position="lepe_fused", split_heads=True), HEADS),
    "padded channels": (_bottleneck, 0),
}


# Together they have every way to cut windows, to project, to attend and to add a position to scores or channels.
SOME = ("relative split resized", "lepe padded", "padded channels")


def _network(*blocks: str) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, DIM, 4, 4),
        *(BLOCKS[name][0]() for name in blocks),
        nn.Flatten(),  # no mean: what is in the wrong place must show
        nn.Linear(DIM * MAP * MAP, CLASSES),
    )
    for name, parameter in network.named_parameters():
        if ".attention." in name:
            nn.init.normal_(parameter, std=1.0 if name.endswith(("table", "lepe.weight")) else 0.4)
    return network.eval().requires_grad_(False)


def _onnx_graph(artifact: Artifact) -> tuple[list[tuple[int, ...]], int]:
    """Shapes of all tensors, and how many softmaxes there are."""
    import onnx

    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.path), strict_mode=True).graph
    inferred = {value.name: value.type.tensor_type.shape for value in (*graph.value_info, *graph.output)}
    assert {name for node in graph.node for name in node.output} <= set(inferred), "a tensor has no shape"
    shapes = [tuple(side.dim_value for side in shape.dim) for shape in inferred.values()]
    shapes += [tuple(tensor.dims) for tensor in graph.initializer]
    return shapes, sum(node.op_type == "Softmax" for node in graph.node)


def _core_ml_graph(artifact: Artifact) -> tuple[list[tuple[int, ...]], int]:
    from pocketvit.targets.coreml.package import read_package
    from pocketvit.targets.coreml.program import read_program

    operations = list(read_program(read_package(artifact.path)).block.walk())
    shapes = [tuple(output.type.shape) for op in operations for output in op.outputs]
    return shapes, sum(op.kind == "softmax" for op in operations)


GRAPHS = {"onnx": _onnx_graph, "coreml": _core_ml_graph}


def _check_export(network, softmaxes, target, precision, metadata, tmp_path) -> None:
    target = TARGETS.get(target)
    draft = replace(
        metadata,
        path=tmp_path / f"model{target.suffix}",
        target=target.name,
        precision=precision,
        classes=CLASSES,
        spec=InputSpec(size=(3, SIDE, SIDE)),
        golden=Golden(images=(), sha256="", logits=()),
        quantized=None,
    )
    artifact = target.export(network, draft)
    shapes, found = GRAPHS[target.name](artifact)
    assert max(map(len, shapes)) <= 5, f"{target.name}: {[s for s in shapes if len(s) > 5]}"
    assert found == softmaxes, f"{target.name} has {found} softmaxes, not {softmaxes}"
    images = np.random.default_rng(0).random((2, 3, SIDE, SIDE), dtype=np.float32)
    expected = network(torch.from_numpy(images)).numpy().astype(np.float64)
    noise = np.square(target.load(artifact, 1)(images) - expected).sum()
    decibel = 10 * np.log10(np.square(expected).sum() / noise) if noise else np.inf
    print(f"{target.name} {precision}: {decibel:.0f} dB")
    assert decibel >= FLOOR_DB[precision], f"{target.name} {precision}: {decibel:.1f} dB from the network"


def test_the_exported_program_has_rank_5_at_most_before_it_is_folded():
    program = torch.export.export(_network(*BLOCKS), (torch.zeros(1, 3, SIDE, SIDE),))
    tensors = {n.name: n.meta["val"] for n in program.graph.nodes if isinstance(n.meta.get("val"), Tensor)}
    assert max(t.ndim for t in tensors.values()) == 5, {n: t.shape for n, t in tensors.items() if t.ndim > 5}


@pytest.mark.parametrize("target", GRAPHS)
def test_some_blocks_one_after_the_other_export_folded(target, metadata, tmp_path):
    network = _network(*SOME)
    fold(network)
    softmaxes = sum(BLOCKS[name][1] for name in SOME)
    _check_export(network, softmaxes, target, Precision.FP32, metadata, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", FLOOR_DB)
@pytest.mark.parametrize("target", GRAPHS)
@pytest.mark.parametrize("block", BLOCKS)
def test_each_block_exports_as_it_is_trained(block, target, precision, metadata, tmp_path):
    _check_export(_network(block), BLOCKS[block][1], target, precision, metadata, tmp_path)
