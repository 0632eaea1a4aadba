"""Finding what keeps a model from running well on the Neural Engine, and the rewrite that mends each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from .graph import LANES, Graph, OpRecord
from .simplify import MAX_RANK

LEAST_WASTE = 0.2  # of an operation's padded traffic; below that padding is not worth a finding
LARGE_SOFTMAX = 1 << 17  # bytes of the scores of all heads together
_MAX_WEIGHTS = 10**9  # bytes
# kinds that others saw leave the Neural Engine, and where they say so
HOLLANCE = "https://github.com/hollance/neural-engine/blob/master/docs/unsupported-layers.md"
_GATHER = "https://github.com/smpanaro/CoreMLInspect"
_RF_DETR = "https://github.com/roboflow/rf-detr/pull/1495"
_LEAVES = {
    "gather": _GATHER, "gather_nd": _GATHER, "gather_along_axis": _RF_DETR, "topk": _RF_DETR, "lstm": HOLLANCE,
    "gru": HOLLANCE, "rnn": HOLLANCE,
}  # fmt: skip


class Rewrite(StrEnum):
    """Changes that fix findings, as a table names them."""

    RELAY = "partition windows in 5-D steps"
    LOWER_RANK = "merge axes: rank 5 or less"
    FOLD_NORM = "fold the norm into its layer"
    CHANNEL_NORM = "a norm over channels only"
    SPLIT_SOFTMAX = "one softmax per head"
    PAD_CHANNELS = "channels a multiple of 32"
    KEEP_LAYOUT = "keep one layout"
    EINSUM = "keep one layout; einsum attention"
    LONG_AXIS_LAST = "put a long axis last"
    CONVOLUTION = "linear as 1x1 convolution"
    SPLIT_QKV = "separate Q, K and V"
    REPLACE_KIND = "replace the operation"
    CONCAT_SHIFT = "no shift, or slices and a concat"
    FIXED_SHAPE = "fixed or enumerated shapes"
    HALF = "convert in 16 bits"
    SMALLER = "compress or split the package"


class Severity(StrEnum):
    """What a finding means: conversion stops, bytes are wasted, the engine may be left, or advice."""

    BLOCKS = "blocks"
    WASTE = "waste"
    RISK = "risk"
    ADVICE = "advice"


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """One place where a rule applies: the operation to blame, None for the whole model.

    charged: the operations whose waste it answers for.
    """

    op: OpRecord | None
    what: str
    rewrite: Rewrite
    severity: Severity
    charged: tuple[OpRecord, ...] = ()


def off_engine(op: OpRecord) -> str:
    """Why this operation is predicted to run elsewhere than on the Neural Engine; empty where it is not."""
    tensors = (*op.inputs, *op.outputs)
    if op.highest_rank > MAX_RANK and not op.expandable:
        return f"rank {op.highest_rank}"
    if not all(tensor.is_fixed for tensor in tensors):
        return "a shape that is not fixed"
    if op.kind != "cast" and any(tensor.dtype in ("fp32", "fp64") for tensor in tensors):
        return "32-bit floats"
    if op.dilated:
        return "a dilated convolution"
    return op.kind if op.kind in _LEAVES else ""


def rank(graph: Graph) -> Iterator[Match]:
    """Tensors of rank above 5: expanded by the converter where it can, refused otherwise."""
    seen: set[str] = set()
    for op in graph.ops:
        if op.highest_rank <= MAX_RANK or op.name in seen:
            continue
        if not op.expandable:
            yield Match(
                op=op,
                what=f"rank {op.highest_rank}: the converter refuses it",
                rewrite=Rewrite.LOWER_RANK,
                severity=Severity.BLOCKS,
                charged=(op,),
            )
            continue
        chain = [op]
        while (after := graph.readers(chain[-1])) and len(after) == 1 and after[0].rank == op.rank:
            chain.append(after[0])
        seen |= {step.name for step in chain}
        yield Match(
            op=op,
            what=f"rank {op.rank}, expanded to {len(chain)} copies",
            rewrite=Rewrite.RELAY,
            severity=Severity.WASTE,
            charged=tuple(chain),
        )


def norm(graph: Graph) -> Iterator[Match]:
    """Norms that stay operations: those spelt out over groups, and batch norms with nothing to fold into."""
    spelt_out: set[str] = set()
    for op in graph.ops:
        if op.kind == "real_div" and (chain := _spelt_out_norm(graph, op)):
            spelt_out |= {part.name for part in chain}
            yield Match(
                op=op,
                what=f"norm spelt out in {len(chain)} operations",
                rewrite=Rewrite.CHANNEL_NORM,
                severity=Severity.WASTE,
                charged=chain,
            )
        elif op.kind == "batch_norm" and op.name not in spelt_out:
            around = [near for near in (*graph.sources(op), *graph.readers(op)) if near.is_layout_copy]
            forced = [near for near in around if near.kind in ("expand_dims", "squeeze")]
            yield Match(
                op=op,
                what="batch norm left as an operation",
                rewrite=Rewrite.FOLD_NORM,
                severity=Severity.WASTE,
                charged=(op, *forced),
            )


def _spelt_out_norm(graph: Graph, division: OpRecord) -> tuple[OpRecord, ...]:
    """The operations of (x - mean) / sqrt(mean of squares + eps) that end in this division, with the reshapes around
    them and the scale behind; none if it is not one.
    """
    chain = [division]
    for kind in ("sqrt", "add", "reduce_mean", "square", "sub", "reduce_mean"):
        before = [op for op in graph.sources(chain[-1]) if op.kind == kind]
        if len(before) != 1:
            return ()
        chain.append(before[0])
    chain += [op for op in graph.sources(chain[-1]) if op.kind == "reshape"]
    after = [op for op in graph.readers(division) if op.kind == "reshape"]
    scales = [op for reshape in after for op in graph.readers(reshape) if op.kind == "batch_norm"]
    return (*chain, *after, *scales)


def softmax(graph: Graph) -> Iterator[Match]:
    """Softmaxes over all heads at once whose scores are large."""
    for op in graph.ops:
        if op.kind != "softmax" or not op.inputs or len(op.inputs[0].shape) < 4:
            continue
        scores = op.inputs[0]
        heads = scores.shape[1] or 1
        if heads > 1 and op.axes and op.axes[0] > 1 and scores.padded_bytes >= LARGE_SOFTMAX:
            yield Match(
                op=op,
                what=f"one softmax over {heads} heads, {scores.padded_bytes / 1e3:.0f} kB",
                rewrite=Rewrite.SPLIT_SOFTMAX,
                severity=Severity.ADVICE,
                charged=(op,),
            )


def channels(graph: Graph) -> Iterator[Match]:
    """Layers other than the last whose width is not a multiple of 32; only in rows does that waste bytes."""
    feeding: set[str] = set()  # values that a later layer depends on: the width of a last layer is the task's
    for op in reversed(graph.ops):
        is_layer = op.kind in ("linear", "conv", "conv_transpose")
        if is_layer and any(put.name in feeding for put in op.outputs) and len(op.outputs[0].shape) > 1:
            in_rows = op.kind == "linear"
            channels = op.outputs[0].shape[-1 if in_rows else 1]
            if channels is not None and channels % LANES:
                yield Match(
                    op=op,
                    what=f"{channels} channels",
                    rewrite=Rewrite.PAD_CHANNELS,
                    severity=Severity.WASTE if in_rows else Severity.ADVICE,
                    charged=(op,) if in_rows else (),
                )
        if is_layer or any(put.name in feeding for put in op.outputs):
            feeding |= {tensor.name for tensor in op.inputs}


def copies(graph: Graph) -> Iterator[Match]:
    """Transposes, and reshapes that change the last axis."""
    for op in graph.ops:
        if op.is_layout_copy:
            shapes = f"{op.inputs[0]} to {op.outputs[0]}"
            yield Match(
                op=op,
                what=f"{op.kind} {shapes}",
                rewrite=Rewrite.EINSUM if _is_for_attention(graph, op) else Rewrite.KEEP_LAYOUT,
                severity=Severity.WASTE,
                charged=(op,),
            )


def _is_for_attention(graph: Graph, copy: OpRecord) -> bool:
    """True where what it copies goes into, or comes out of, a product of activations or a softmax."""
    return _meets_attention(copy, graph.readers) or _meets_attention(copy, graph.sources)


def _meets_attention(start: OpRecord, neighbours: Callable[[OpRecord], list[OpRecord]]) -> bool:
    """Follow the values one way, through nothing but other copies, views, cuts and scales."""
    seen: set[str] = set()
    ahead = [start]
    while ahead:
        for op in neighbours(ahead.pop()):
            if op.kind == "softmax" or (op.kind == "matmul" and len(op.inputs) > 1):
                return True
            passes = op.is_view or op.is_layout_copy or op.kind in ("split", "slice_by_index")
            if op.name not in seen and (passes or (op.kind == "mul" and len(op.inputs) == 1)):
                seen.add(op.name)
                ahead.append(op)
    return False


def padding(graph: Graph) -> Iterator[Match]:
    """Other operations with a fifth or more of their traffic in padding."""
    for op in graph.ops:
        if not op.is_layout_copy and op.wasted_bytes and op.wasted_bytes >= LEAST_WASTE * op.padded_bytes:
            worst = max((*op.inputs, *op.outputs), key=lambda tensor: tensor.padded_bytes - tensor.logical_bytes)
            yield Match(
                op=op,
                what=f"{op.kind}: last axis of {worst}",
                rewrite=Rewrite.LONG_AXIS_LAST,
                severity=Severity.WASTE,
                charged=(op,),
            )


def layout(graph: Graph) -> Iterator[Match]:
    """Linear layers on tokens, (B, S, C)."""
    for op in graph.ops:
        if op.kind == "linear" and len(op.outputs[0].shape) > 2:
            yield Match(op=op, what=f"linear on {op.inputs[0]}", rewrite=Rewrite.CONVOLUTION, severity=Severity.ADVICE)


def qkv(graph: Graph) -> Iterator[Match]:
    """Layers three times as wide as their input whose result is cut in three."""
    for op in graph.ops:
        if op.kind not in ("linear", "conv") or not op.inputs or not op.outputs[0].shape:
            continue
        axis = -1 if op.kind == "linear" else 1
        before, after = op.inputs[0].shape[axis], op.outputs[0].shape[axis]
        cut = any(
            reader.kind == "split" or (reader.kind == "reshape" and 3 in reader.outputs[0].shape)
            for reader in graph.readers(op)
        )
        if before and after == 3 * before and cut:
            yield Match(
                op=op, what=f"Q, K and V in one {op.kind}", rewrite=Rewrite.SPLIT_QKV, severity=Severity.ADVICE
            )


def kinds(graph: Graph) -> Iterator[Match]:
    """Operations that users saw leave the Neural Engine."""
    for op in graph.ops:
        if op.kind in _LEAVES:
            yield Match(
                op=op,
                what=f"{op.kind}{' (a shift)' if op.rolled else ''}: {_LEAVES[op.kind]}",
                rewrite=Rewrite.CONCAT_SHIFT if op.rolled else Rewrite.REPLACE_KIND,
                severity=Severity.RISK,
            )
        elif op.dilated:
            yield Match(
                op=op,
                what=f"dilated {op.kind}: {HOLLANCE}",
                rewrite=Rewrite.REPLACE_KIND,
                severity=Severity.RISK,
            )


def dynamic(graph: Graph) -> Iterator[Match]:
    """Shapes that are not fixed."""
    for op in graph.ops:
        unfixed = next((t for t in (*op.outputs, *op.inputs) if not t.is_fixed), None)
        if unfixed is not None:
            what = f"{op.kind} of {unfixed}{', one of several shapes' if unfixed.is_known else ''}"
            yield Match(op=op, what=what, rewrite=Rewrite.FIXED_SHAPE, severity=Severity.RISK)


def float32(graph: Graph) -> Iterator[Match]:
    """Operations in 32 bits."""
    for op in graph.ops:
        if op.kind != "cast" and any(t.dtype in ("fp32", "fp64") for t in (*op.inputs, *op.outputs)):
            yield Match(op=op, what=f"{op.kind} in 32 bits", rewrite=Rewrite.HALF, severity=Severity.RISK)


def weights(graph: Graph) -> Iterator[Match]:
    """Too many weights for one package."""
    total = sum(op.weight_bytes for op in graph.ops)
    if total >= _MAX_WEIGHTS:
        what = f"{total / 1e9:.2f} GB of weights in one package"
        yield Match(op=None, what=what, rewrite=Rewrite.SMALLER, severity=Severity.RISK)
