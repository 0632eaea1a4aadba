"""What the converter does to a graph before it writes it: folding, merging, and expanding what has too high a rank."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from .graph import Graph, OpRecord, Tensor

MAX_RANK = 5
Edit = Callable[[Graph, OpRecord], tuple[list[OpRecord], list[OpRecord]] | None]


def simplify(ops: Sequence[OpRecord]) -> tuple[OpRecord, ...]:
    """Fold norms and scales into convolutions, fuse norms over channels, merge reshapes and transposes in a row,
    expand high ranks.
    """
    for edit in (
        _fold_norm,
        _fuse_channel_norm,
        _merge_reshapes,
        _merge_transposes,
        _transpose_in_matmul,
        _expand_rank,
        _refuse_rank,
    ):
        ops = _apply(edit, ops)
    return tuple(ops)


def _apply(edit: Edit, ops: Sequence[OpRecord]) -> list[OpRecord]:
    """Edit until nothing changes. An edit names the operations to remove, and what stands in the last one's place."""
    result = list(ops)
    while True:
        graph = Graph(result)
        gone: set[int] = set()
        new: dict[int, list[OpRecord]] = {}
        for op in result:
            found = None if id(op) in gone else edit(graph, op)
            if found is None or any(id(old) in gone or id(old) in new for old in found[0]):
                continue
            gone |= {id(old) for old in found[0]}
            new[id(found[0][-1])] = found[1]
        if not new:
            return result
        result = [made for op in result for made in (new[id(op)] if id(op) in new else [] if id(op) in gone else [op])]


def _only_reader(graph: Graph, op: OpRecord) -> OpRecord | None:
    readers = graph.readers(op)
    return readers[0] if len(readers) == 1 and len(op.outputs) == 1 else None


def _fold_norm(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    reader = _only_reader(graph, op)
    if op.kind not in {"conv", "conv_transpose"} or reader is None:
        return None
    channels = op.outputs[0].shape[1] or 0
    scales = reader.kind == "mul" and len(reader.inputs) == 1 and 0 < reader.weight_bytes <= 2 * channels
    if reader.kind != "batch_norm" and not scales:
        return None
    return [op, reader], [replace(op, outputs=reader.outputs)]


def _fuse_channel_norm(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    """mean, difference, square, mean, epsilon, root, product over axis 1 of four, with a shift and a scale behind them
    or not, is one layer_norm (coremltools' fuse_layernorm_or_instancenorm, its first pattern).
    """
    x, mean = (op.inputs[0], op.outputs[0]) if op.inputs else (None, None)
    if op.kind != "reduce_mean" or x is None or mean is None or mean.shape != (*x.shape[:1], 1, *x.shape[2:]):
        return None
    chain = [op]
    for kind in ("sub", "mul", "reduce_mean", "add", "rsqrt", "mul"):
        readers = graph.readers(chain[-1])
        squared = chain[-1].kind == "sub" and kind == "mul"  # read twice: squared, and scaled in the end
        behind = [reader for reader in readers if reader.kind == kind and not (squared and len(reader.inputs) > 1)]
        if len(behind) != 1 or len(readers) != 1 + squared:
            return None
        chain.append(behind[0])
    squares_mean = chain[3].outputs[0].shape
    centred = chain[1].inputs == (x, mean) and chain[1].outputs[0] in chain[-1].inputs
    if len(x.shape) != 4 or not centred or squares_mean != mean.shape:
        return None
    shift = _only_reader(graph, chain[-1])
    if shift is not None and shift.kind == "add":
        scale = _only_reader(graph, shift)
        if len(shift.inputs) > 1 or scale is None or scale.kind != "mul" or len(scale.inputs) > 1:
            return None
        chain += [shift, scale]
    weights = sum(part.weight_bytes for part in chain)
    last = chain[-1]
    return chain, [replace(last, kind="layer_norm", inputs=(x,), axes=(1,), weight_bytes=weights)]


def _merge_reshapes(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    reader = _only_reader(graph, op)
    if op.kind != "reshape" or reader is None or reader.kind != "reshape":
        return None
    return [op, reader], [replace(reader, inputs=op.inputs)]


def _merge_transposes(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    reader = _only_reader(graph, op)
    if op.kind != "transpose" or reader is None or reader.kind != "transpose":
        return None
    axes = tuple(op.axes[axis] for axis in reader.axes)
    return [op, reader], [replace(reader, inputs=op.inputs, axes=axes)]


def _transpose_in_matmul(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    """A matmul can read either operand with its last two axes swapped."""
    reader = _only_reader(graph, op)
    rank = len(op.axes)
    swap = (*range(rank - 2), rank - 1, rank - 2)
    if op.kind != "transpose" or rank < 2 or op.axes != swap or reader is None or reader.kind != "matmul":
        return None
    inputs = tuple(op.inputs[0] if tensor == op.outputs[0] else tensor for tensor in reader.inputs)
    return [op, reader], [replace(reader, inputs=inputs)]


def _expand_rank(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    """reshape, transpose, reshape with a rank above 5 in between: axes that stay together become one; where that is
    not enough, the axes are brought to the front one at a time, each by a reshape and a transpose of rank 4.
    """
    transpose = _only_reader(graph, op)
    last = _only_reader(graph, transpose) if transpose is not None and transpose.kind == "transpose" else None
    if op.kind != "reshape" or transpose is None or last is None or last.kind != "reshape":
        return None
    inside, outside = op.outputs[0].shape, max(len(op.inputs[0].shape), len(last.outputs[0].shape))
    if len(inside) <= MAX_RANK or outside > MAX_RANK or None in inside:
        return None
    sides, axes = _together([side or 1 for side in inside], transpose.axes)
    start, end = op.inputs[0], last.outputs[0]
    rank = len(inside)
    shapes: list[tuple[int, ...]] = []  # of each reshape and transpose in turn
    if len(sides) <= MAX_RANK:
        shapes = [tuple(sides), tuple(sides[axis] for axis in axes)]
    else:
        done, left = 1, list(range(len(sides)))
        for axis in axes:
            at = left.index(axis)
            before = math.prod(sides[i] for i in left[:at])
            after = math.prod(sides[i] for i in left[at + 1 :])
            shapes += [(done, before, sides[axis], after), (done, sides[axis], before, after)]
            done *= sides[axis]
            left.remove(axis)
    names = [Tensor(f"{end.name}/expanded{i}", shape) for i, shape in enumerate(shapes)]
    chain = [start, *names, end]
    steps = [
        replace(
            transpose if i % 2 else op,
            kind="transpose" if i % 2 else "reshape",
            name=after.name,
            inputs=(before,),
            outputs=(after,),
            axes=(),
            rank=rank,
        )
        for i, (before, after) in enumerate(pairwise(chain))
    ]
    return [op, transpose, last], steps


def _together(sides: list[int], axes: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Merge the axes that follow each other before and after the permutation."""
    runs: list[list[int]] = []
    for axis in axes:
        if runs and runs[-1][-1] + 1 == axis:
            runs[-1].append(axis)
        else:
            runs.append([axis])
    order = sorted(range(len(runs)), key=lambda i: runs[i][0])
    return [math.prod(sides[axis] for axis in runs[i]) for i in order], [order.index(i) for i in range(len(runs))]


def _refuse_rank(graph: Graph, op: OpRecord) -> tuple[list[OpRecord], list[OpRecord]] | None:
    """What is left above rank 5 the converter refuses."""
    if not op.expandable or max(len(t.shape) for t in (*op.inputs, *op.outputs)) <= MAX_RANK:
        return None
    return [op], [replace(op, expandable=False)]
