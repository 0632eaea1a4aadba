"""From a model to a Program: exported by PyTorch, constants computed, compound operators spelt out, moves merged."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import OutputKind
from torch.fx import Node

from ...errors import BadInput
from ...models import Model, deployable
from .moves import merge_moves
from .program import Builder, Op, Program, aten, mapped, rewrite
from .rearrange import Rearrangement, Unaligned

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# operators whose result is their input
_NOTHING = {
    "clone", "alias", "dropout", "contiguous", "detach", "lift_fresh_copy", "feature_dropout",
}  # fmt: skip
_CASTS = {"_to_copy", "to", "type_as"}
_CONTEXTS = {"wrap_with_autocast", "wrap_with_set_grad_enabled"}  # around a graph that runs in any case
_MOST_CONSTANT = 1 << 27  # elements of a constant that is computed here: 512 MB
_ADDED_MASK = -1e4  # to a score that a mask hides: its exponential is zero, and fp16 can hold it


def capture(model: Model) -> Program:
    """The program of a model without its normalisation, for one image of its size.

    Raises BadInput, naming the module, for what torch.export cannot follow, control flow, operators from outside
    PyTorch, and shapes that depend on the image.
    """
    module = deployable(model).module
    program = _exported(module, model)
    for node in program.graph.nodes:
        _check(node, model)
    reader = _Reader(program.run_decompositions({}))
    try:
        return merge_moves(_without_expansions(reader.read()))
    except BadInput as e:
        raise BadInput(f"{model.name} cannot be rewritten: {e} The model is as it was.") from e


def _exported(module: nn.Module, model: Model) -> ExportedProgram:
    """Export, and know which module was running where that fails."""
    running: list[str] = []

    def leaves(*_: object) -> None:
        running.pop()

    for name, part in module.named_modules():
        part.register_forward_pre_hook(lambda _, __, name=name: running.append(name))
        part.register_forward_hook(leaves)
    try:
        with torch.no_grad():
            return torch.export.export(module, (torch.zeros(1, *model.spec.size),))
    except Exception as e:  # whatever the model's own code or the exporter's raises
        where = f"module '{running[-1]}'" if running and running[-1] else "the model's own code"
        reason = next((line.strip() for line in str(e).splitlines() if line.strip()), type(e).__name__)
        raise BadInput(
            f"{model.name} cannot be rewritten: torch.export does not get through {where}, which may branch on "
            f"what is in the image or call code it cannot follow ({type(e).__name__}: {reason[:160]}). The model is "
            "as it was."
        ) from e


def _check(node: Node, model: Model) -> None:
    if node.op != "call_function" or node.target is operator.getitem:
        return
    where = f"module '{path}'" if (path := _path(node)) else "the model's own code"
    kind = getattr(node.target, "namespace", None)
    name = str(node.target)
    if str(node.target) in _CONTEXTS:
        return
    if kind == "higher_order" or isinstance(node.target, torch._ops.HigherOrderOperator):
        raise BadInput(
            f"{model.name} cannot be rewritten: {where} has control flow ({name}), whose branches the pass does not "
            "see through. Take one branch in the model's code; the model is as it was."
        )
    if kind not in (None, "aten", "prims", "_operator"):
        raise BadInput(
            f"{model.name} cannot be rewritten: {where} calls the custom operator {name}, which the pass does not see "
            "through. Write it with PyTorch's own operators; the model is as it was."
        )
    if _is_random(node):
        raise BadInput(
            f"{model.name} cannot be rewritten: {where} draws random numbers ({name}) whether it trains or not. The "
            "model is as it was."
        )
    values = node.meta.get("val")
    for value in values if isinstance(values, list | tuple) else [values]:
        if isinstance(value, Tensor) and not all(isinstance(side, int) for side in value.shape):
            raise BadInput(
                f"{model.name} cannot be rewritten: what {where} gives ({name}) has a shape that depends on the "
                "image, and the Neural Engine runs fixed shapes. The model is as it was."
            )


def _is_random(node: Node) -> bool:
    """True for an operator that draws random numbers; dropout does not where it is off."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    name = _operator(node)
    if name.endswith("dropout"):
        return bool(node.args[2] if len(node.args) > 2 else node.kwargs.get("train", True))
    dropout = node.args[4] if len(node.args) > 4 else node.kwargs.get("dropout_p", 0.0)
    return name != "scaled_dot_product_attention" or bool(dropout)


def _kind(node: Any) -> Any:
    """The type of what a node gives."""
    return getattr(node.meta.get("val"), "dtype", None)


def _path(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()))[0]) if stack else ""


class _Reader:
    """Reads the exported graph in order; values are Ops, constant tensors, or lists of them."""

    def __init__(self, program: ExportedProgram) -> None:
        self.exported = program
        self.builder = Builder()
        self.values: dict[Node, Any] = {}
        self.path = ""

    def read(self) -> Program:
        signature = self.exported.graph_signature
        stored = {**self.exported.state_dict, **self.exported.constants}
        sources = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        result: Any = None
        with torch.no_grad():
            for node in self.exported.graph.nodes:
                if node.op == "placeholder":
                    if node.name in sources:
                        self.values[node] = stored[sources[node.name]].detach()
                    else:
                        self.values[node] = self.builder.image(tuple(node.meta["val"].shape))
                elif node.op == "output":
                    result = self._result(node)
                elif node.op == "get_attr":
                    self.values[node] = getattr(self.exported.graph_module, str(node.target))
                else:
                    self.path = _path(node)
                    self.values[node] = self._call(node)
        return Program(self.builder.ops, result).without_unused()

    def _result(self, node: Node) -> Op:
        """What the model gives; what it writes into its own buffers is dropped."""
        specs = self.exported.graph_signature.output_specs
        kinds = [spec.kind is OutputKind.USER_OUTPUT for spec in specs]
        given = [self.values.get(one) for one, kept in zip(node.args[0], kinds, strict=True) if kept]  # type: ignore
        if len(given) != 1 or not isinstance(given[0], Op) or given[0].shape is None:
            raise BadInput("it does not return one tensor that depends on the image; give it a classifier head.")
        return given[0]

    def _call(self, node: Node) -> Any:
        args = torch.fx.node.map_arg(node.args, self.values.__getitem__)
        kwargs = torch.fx.node.map_arg(node.kwargs, self.values.__getitem__)
        args, kwargs = _plain(args), _plain(dict(kwargs))
        name = _operator(node)
        if name.startswith("_assert"):
            return None
        if str(node.target) in _CONTEXTS:
            return self._inside(node)
        if not _reads_an_op((args, kwargs)):
            return self._constant(node, args, kwargs)
        if node.target is operator.getitem:
            return self._item(*args)
        if name in _NOTHING or (name in _CASTS and _kind(node) == _kind(node.args[0])):
            return args[0]
        handler: Callable[..., Any] | None = getattr(self, f"_do_{name}", None)
        if handler is not None:
            with suppress(Unaligned):
                found = handler(*args, **kwargs)
                if found is not None:
                    return found
        return self._op(node.target, *args, **kwargs)

    def _inside(self, node: Node) -> list[Any]:
        """The results of a graph within the graph."""
        inner = next(i for i, a in enumerate(node.args) if isinstance(a, Node) and a.op == "get_attr")
        graph = self.values[node.args[inner]].graph  # type: ignore[index]
        given = iter(node.args[inner + 1 :])
        results: list[Any] = []
        for step in graph.nodes:
            if step.op == "placeholder":
                self.values[step] = self.values[next(given)]  # type: ignore[index]
            elif step.op == "output":
                results = [self.values[one] for one in step.args[0]]
            else:
                self.values[step] = self._call(step)
        return results

    def _constant(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found = node.target(*args, **kwargs)  # type: ignore[operator]
        if isinstance(found, Tensor) and found.numel() > _MOST_CONSTANT:
            raise BadInput(f"module '{self.path}' computes a constant of {found.numel()} elements.")
        return found

    def _op(self, target: Any, *args: Any, **kwargs: Any) -> Op:
        kwargs.pop("path", None)  # of an einsum: a hint in which order to multiply
        return self.builder.call(target, *args, path=self.path, **kwargs)

    def _move(self, x: Op, how: Callable[[Rearrangement], Rearrangement]) -> Op:
        return self.builder.move(x, how(Rearrangement.identity(x.sides)), self.path)

    def _item(self, several: Any, index: int) -> Any:
        return several[index] if isinstance(several, list | tuple) else self._op(operator.getitem, several, index)

    # -- what only moves data -------------------------------------------------------------------------------------

    def _do_view(self, x: Op, shape: Sequence[int]) -> Op:
        return self._move(x, lambda r: r.reshape(_whole(shape, math.prod(x.sides))))

    _do_reshape = _do__unsafe_view = _do_view

    def _do_flatten(self, x: Op, start: int = 0, end: int = -1) -> Op:
        start, end = start % len(x.sides), end % len(x.sides)
        return self._do_view(x, (*x.sides[:start], math.prod(x.sides[start : end + 1]), *x.sides[end + 1 :]))

    def _do_unflatten(self, x: Op, axis: int, sizes: Sequence[int]) -> Op:
        axis %= len(x.sides)
        return self._do_view(x, (*x.sides[:axis], *_whole(sizes, x.sides[axis]), *x.sides[axis + 1 :]))

    def _do_permute(self, x: Op, axes: Sequence[int]) -> Op:
        return self._move(x, lambda r: r.permute([axis % len(x.sides) for axis in axes]))

    def _do_transpose(self, x: Op, a: int, b: int) -> Op:
        rank = len(x.sides)
        axes = list(range(rank))
        axes[a % rank], axes[b % rank] = b % rank, a % rank
        return self._do_permute(x, axes)

    def _do_t(self, x: Op) -> Op:
        return self._do_permute(x, list(reversed(range(len(x.sides)))))

    def _do_movedim(self, x: Op, source: Any, destination: Any) -> Op:
        numbered = torch.empty(list(range(len(x.sides))), device="meta")  # each axis as long as its number
        return self._do_permute(x, numbered.movedim(source, destination).shape)

    def _do_unsqueeze(self, x: Op, axis: int) -> Op:
        axis %= len(x.sides) + 1
        return self._do_view(x, (*x.sides[:axis], 1, *x.sides[axis:]))

    def _do_squeeze(self, x: Op, axes: Any = None) -> Op:
        named = range(len(x.sides)) if axes is None else [axes] if isinstance(axes, int) else axes
        gone = {axis % len(x.sides) for axis in named}
        return self._do_view(x, [side for axis, side in enumerate(x.sides) if axis not in gone or side != 1])

    def _do_expand(self, x: Op, shape: Sequence[int], implicit: bool = False) -> Op | None:
        lead = len(shape) - len(x.sides)
        wanted = [side if given == -1 else given for given, side in zip(shape[lead:], x.sides, strict=True)]
        if math.prod(wanted) != math.prod(x.sides) or math.prod(shape[:lead]) != 1:
            return None
        return self._do_view(x, (*shape[:lead], *wanted))

    def _do_select(self, x: Op, axis: int, index: int) -> Op:
        return self._move(x, lambda r: r.select(axis % len(x.sides), index))

    def _do_narrow(self, x: Op, axis: int, start: int, length: int) -> Op | None:
        if length == 0:
            return None
        return self._move(x, lambda r: r.keep(axis % len(x.sides), start % x.sides[axis], length))

    def _do_slice(self, x: Op, axis: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
        axis %= len(x.sides)
        first, last, _ = slice(start, end).indices(x.sides[axis])
        if step == 1:
            return self._move(x, lambda r: r.keep(axis, first, last - first)) if last > first else None
        if first >= step or last != x.sides[axis] or x.sides[axis] % step:
            return None
        split = (*x.sides[:axis], x.sides[axis] // step, step, *x.sides[axis + 1 :])
        return self._move(x, lambda r: r.reshape(split).select(axis + 1, first))

    def _do_unbind(self, x: Op, axis: int = 0) -> list[Op]:
        return [self._do_select(x, axis, i) for i in range(x.sides[axis])]

    def _do_split_with_sizes(self, x: Op, sizes: Sequence[int], axis: int = 0) -> list[Any] | None:
        if 0 in sizes:
            return None
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [self._do_narrow(x, axis, start, size) for start, size in zip(starts, sizes, strict=True)]

    def _do_split(self, x: Op, size: int, axis: int = 0) -> list[Any] | None:
        side = x.sides[axis]
        return self._do_split_with_sizes(x, [min(size, side - start) for start in range(0, side, size)], axis)

    def _do_chunk(self, x: Op, chunks: int, axis: int = 0) -> list[Any] | None:
        return self._do_split(x, -(-x.sides[axis] // chunks), axis)

    # -- what is spelt out ----------------------------------------------------------------------------------------

    def _do_scaled_dot_product_attention(
        self, q: Op, k: Op, v: Op, mask: Any = None, dropout: float = 0.0, causal: bool = False, **options: Any
    ) -> Op | None:
        mask = options.get("attn_mask", mask)
        constant = not all(isinstance(one, Op) for one in (q, k, v))  # as queries that are learnt
        chosen = isinstance(mask, Op) and mask.dtype == torch.bool
        if causal or options.get("enable_gqa") or dropout or constant or chosen:
            return None
        scale = options.get("scale")
        q = self._op(aten.mul.Tensor, q, q.sides[-1] ** -0.5 if scale is None else float(scale))
        scores = self._op(aten.matmul.default, q, self._do_transpose(k, -1, -2))
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            mask = torch.where(mask, 0.0, _ADDED_MASK)
        if mask is not None:
            scores = self._op(aten.add.Tensor, scores, mask)
        return self._op(aten.matmul.default, self._op(aten.softmax.int, scores, -1), v)

    def _do_conv2d(
        self,
        x: Op,
        weight: Any,
        bias: Any = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Op | None:
        """Padding by name as numbers, where it is the same on both sides; a computed bias as an addition."""
        if isinstance(bias, Op):
            plain = self._op(aten.conv2d.default, x, weight, None, stride, padding, dilation, groups)
            return self._op(aten.add.Tensor, plain, self._do_view(bias, (1, -1, 1, 1)))
        if not isinstance(padding, str):
            return None
        gaps = [dilation] * 2 if isinstance(dilation, int) else list(dilation) * (2 // len(dilation))
        whole = [
            gap * (side - 1) if padding == "same" else 0 for gap, side in zip(gaps, weight.shape[2:], strict=True)
        ]
        if any(side % 2 for side in whole):
            return None
        sides = [side // 2 for side in whole]
        steps = [stride] * 2 if isinstance(stride, int) else list(stride)
        return self._op(aten.conv2d.default, x, weight, bias, steps, sides, gaps, groups)

    def _do_linear(self, x: Any, weight: Any, bias: Any = None) -> Op | None:
        if not isinstance(bias, Op):
            return None
        return self._op(aten.add.Tensor, self._op(aten.linear.default, x, weight), bias)

    def _do__softmax(self, x: Op, axis: int, half: bool = False) -> Op:
        return self._op(aten.softmax.int, x, axis)

    def _do_addmm(self, bias: Tensor, x: Op, weight: Any, **scales: Any) -> Op | None:
        if scales or not (isinstance(weight, Tensor) and isinstance(bias, Tensor) and isinstance(x, Op)):
            return None
        if bias.ndim != 1:
            return None
        return self._op(aten.linear.default, x, weight.T.contiguous(), bias)

    def _do_mm(self, x: Any, y: Any) -> Op:
        return self._do_matmul(x, y) or self._op(aten.matmul.default, x, y)

    _do_bmm = _do_mm

    def _do_matmul(self, x: Any, y: Any) -> Op | None:
        if isinstance(x, Op) and isinstance(y, Tensor) and y.ndim == 2:
            return self._op(aten.linear.default, x, y.T.contiguous())
        return None

    def _do_native_layer_norm(self, x: Op, shape: Any, weight: Any, bias: Any, eps: float) -> list[Op]:
        return [self._op(aten.layer_norm.default, x, list(shape), weight, bias, eps)]

    def _do__native_batch_norm_legit_no_training(
        self, x: Op, weight: Any, bias: Any, mean: Tensor, var: Tensor, momentum: float, eps: float
    ) -> list[Op]:
        return [self._op(aten.batch_norm.default, x, weight, bias, mean, var, False, momentum, eps, False)]

    def _do_mean(self, x: Op, axes: Any = None, keepdim: bool = False, **other: Any) -> Op | None:
        return self._reduced(aten.mean.dim, x, axes, keepdim, other)

    def _do_sum(self, x: Op, axes: Any = None, keepdim: bool = False, **other: Any) -> Op | None:
        return self._reduced(aten.sum.dim_IntList, x, axes, keepdim, other)

    def _do_amax(self, x: Op, axes: Any = None, keepdim: bool = False) -> Op | None:
        return self._reduced(aten.amax.default, x, axes, keepdim, {})

    def _reduced(self, target: Any, x: Op, axes: Any, keepdim: bool, other: dict[str, Any]) -> Op | None:
        if other or not axes:
            return None
        axes = [axes] if isinstance(axes, int) else list(axes)
        kept = self._op(target, x, [axis % len(x.sides) for axis in axes], True)
        return kept if keepdim else self._do_squeeze(kept, axes)


def _without_expansions(program: Program) -> Program:
    """Leave out what repeats a value for arithmetic that broadcasts it anyway, as F.normalize does."""
    readers = program.readers()

    def broadcasts(reader: Op, op: Op) -> bool:
        pointwise = torch.Tag.pointwise in getattr(reader.target, "tags", ())
        others = (other for other in reader.inputs if other.target is not aten.expand.default)
        return pointwise and any(other.shape == reader.shape for other in others)

    def visit(builder: Builder, op: Op, new: Callable[[Op], Any]) -> Op:
        spare = op.target is aten.expand.default and len(op.inputs[0].sides) == len(op.sides)
        if spare and op is not program.result and all(broadcasts(reader, op) for reader in readers[op]):
            return new(op.inputs[0])
        return builder.again(op, new)

    return rewrite(program, visit)


def _whole(shape: Sequence[int], count: int) -> tuple[int, ...]:
    """The shape with the side that is left open."""
    known = math.prod(side for side in shape if side != -1)
    return tuple(count // known if side == -1 else side for side in shape)


def _operator(node: Node) -> str:
    """Name without namespace and overload; an in-place form counts as the plain one."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.split("::")[-1] if schema is not None else getattr(node.target, "__name__", str(node.target))
    return name if name.startswith("_") or not name.endswith("_") else name[:-1]


def _plain(value: Any) -> Any:
    """Without torch.fx's immutable kinds."""
    if isinstance(value, list | tuple):
        return (list if isinstance(value, list) else tuple)(_plain(item) for item in value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _reads_an_op(value: Any) -> bool:
    found: list[Op] = []
    mapped(value, found.append)
    return bool(found)
