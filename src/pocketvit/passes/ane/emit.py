"""From a program and its layouts to a module: convolutions and norms under the names of the layers they were.

B batch, C channels, S tokens, M and N the tokens of keys and queries.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from ...errors import BadInput
from .layouts import Layout, conversion, in_place, reads_swapped, stored
from .program import REDUCTIONS, Op, Program, aten, part, swap
from .rearrange import Shape
from .steps import MAX_RANK, Permute, Plan, Reshape, Slice

_TABLES = "constants"
ROWS, CHANNELS_FIRST = Layout.ROWS, Layout.CHANNELS_FIRST


class ChannelNorm(nn.Module):
    """Layer norm over the channels of (B, C, 1, S), without scale or shift unless they could not be folded.

    Spelt out as in Apple's LayerNormANE, which Core ML's converter knows and makes one operation of; a shift comes
    before the scale for the same reason.
    """

    def __init__(self, eps: float, scale: Tensor | None, shift: Tensor | None) -> None:
        super().__init__()
        self.eps = eps
        self.scale: nn.Parameter | None = None
        if scale is None and shift is not None:
            scale = torch.ones_like(shift)
        if scale is not None:
            self.scale = nn.Parameter(scale.reshape(1, -1, 1, 1).clone())
            offset = torch.zeros_like(scale) if shift is None else shift
            self.shift = nn.Parameter((offset / scale).reshape(1, -1, 1, 1))

    def forward(self, x_BC1S: Tensor) -> Tensor:
        """The same shape, with mean 0 and variance 1 over axis 1."""
        centred = x_BC1S - x_BC1S.mean(1, keepdim=True)
        variance = (centred * centred).mean(1, keepdim=True)
        normed = centred * (variance + self.eps).rsqrt()
        return normed if self.scale is None else (normed + self.shift) * self.scale


class Rewritten(nn.Module):
    """A program as a module. Its graph is for one image; a batch runs image by image."""

    def __init__(self, body: GraphModule) -> None:
        super().__init__()
        self.body = body
        self.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes) of normalised images (B, C, H, W)."""
        if image.shape[0] == 1:
            return self.body(image)
        return torch.cat([self.body(one) for one in image.split(1)])


def emit(program: Program, layouts: Mapping[Op, Layout], *, key_first: bool = False) -> Rewritten:
    """The module that computes a program with every operation in its layout. key_first: as in Preference."""
    return Rewritten(_Emitter(program, layouts, key_first).emit())


class _Emitter:
    def __init__(self, program: Program, layouts: Mapping[Op, Layout], key_first: bool) -> None:
        self.program = program
        self.key_first = key_first
        self.layouts = layouts
        self.graph = Graph()
        self.root = nn.Module()
        self.tables = nn.Module()  # constants, apart from the layers so that no name of theirs is taken
        self.root.add_module(_TABLES, self.tables)
        self.owners: dict[tuple[str, ...], tuple[nn.Module, str]] = {(): (self.root, "")}
        self.values: dict[tuple[Op, Layout], Node] = {}
        self.parts: dict[tuple[Op, int, Layout], Node] = {}
        self.constants: dict[tuple[Any, ...], Node] = {}
        self.kept: list[Tensor] = []  # so that no other tensor takes the identity of one that was stored

    def emit(self) -> GraphModule:
        image = self.program.image
        self.values[image, ROWS] = self.graph.placeholder("image")
        for op in self.program.ops[1:]:
            layout = self.layouts[op]
            self.values[op, layout] = self._emit(op, layout)
        self.graph.output(self._value(self.program.result, ROWS))
        module = GraphModule(self.root, self.graph, class_name="Graph")
        module.graph.eliminate_dead_code()
        module.recompile()
        module.eval()
        return module

    # -- values ---------------------------------------------------------------------------------------------------

    def _value(self, op: Op, layout: Layout) -> Node:
        """What an operation gives, in a layout; copied where it is in the other."""
        if op.shape is None:
            layout = ROWS
        if (op, layout) not in self.values:
            other = self.layouts[op]
            self.values[op, layout] = self._steps(in_place(op.sides, other, layout), self.values[op, other])
        return self.values[op, layout]

    def _steps(self, how: Plan, x: Node) -> Node:
        for step in how.steps:
            match step:
                case Reshape(shape):
                    x = self.graph.call_method("reshape", (x, shape))
                case Permute(axes):
                    x = self.graph.call_method("permute", (x, axes))
                case Slice(axis, start, _, every):
                    x = self.graph.call_function(aten.slice.Tensor, (x, axis, start, step.end, every))
        return x

    def _constant(self, tensor: Tensor, op: Op, layout: Layout = ROWS) -> Node:
        """A tensor as a buffer, named after the module that it is used in; one for all uses of the same numbers."""
        shape = tuple(tensor.shape)
        key = (
            tensor.data_ptr(),
            shape,
            tensor.stride(),
            str(tensor.dtype),
            op.sides if layout is CHANNELS_FIRST else (),
        )
        if key not in self.constants:
            self.kept.append(tensor)
            stem = "_".join(filter(None, (*op.path.split("."), _role(op))))
            name = next(n for i in count() if not hasattr(self.tables, n := f"{stem}{i or ''}"))
            stored_as = _channels_first(tensor, op.sides) if layout is CHANNELS_FIRST and shape else tensor
            self.tables.register_buffer(name, stored_as.detach().clone())
            self.constants[key] = self.graph.get_attr(f"{_TABLES}.{name}")
        return self.constants[key]

    def _module(self, module: nn.Module, path: str) -> str:
        """Put a module where the layer it was stood, or beside it; return where."""
        *above, name = (path or "model").split(".")
        owner, where = self._owner(tuple(above))
        free = _free(owner, name)
        owner.add_module(free, module)
        return f"{where}{free}"

    def _owner(self, path: tuple[str, ...]) -> tuple[nn.Module, str]:
        """The module that stands for a path of the model, and its own path with a dot behind it."""
        if path not in self.owners:
            above, where = self._owner(path[:-1])
            inner, name = nn.Module(), _free(above, path[-1])
            above.add_module(name, inner)
            self.owners[path] = inner, f"{where}{name}."
        return self.owners[path]

    # -- operations -----------------------------------------------------------------------------------------------

    def _emit(self, op: Op, layout: Layout) -> Node:
        if op.is_rearrangement:
            return self._move(op, layout)
        if op.target is part:
            return self._part(op, layout)
        if op.target is swap:
            return self.graph.call_method("transpose", (self._value(op.args[0], ROWS), -1, -2))
        if op.target is aten.matmul.default and isinstance(op.args[0], Op) and isinstance(op.args[1], Op):
            return self._product(op, layout)
        if layout is CHANNELS_FIRST:
            return self._channels_first(op)
        if op.target is aten.linear.default and isinstance(op.args[1], Tensor):
            return self._linear(op)
        if op.target is aten.conv2d.default and isinstance(op.args[1], Tensor):
            return self._convolution(op)
        return self._as_it_was(op)

    def _as_it_was(self, op: Op) -> Node:
        if any(len(shape) > MAX_RANK for shape in _shapes(op)):
            return self._of_lower_rank(op)
        args = self._arguments(op, op.args)
        return self.graph.call_function(op.target, args, self._arguments(op, op.kwargs))  # type: ignore[arg-type]

    def _arguments(self, op: Op, value: Any) -> Any:
        if isinstance(value, Op):
            return self._value(value, ROWS)
        if isinstance(value, Tensor):
            return self._constant(value, op)
        if isinstance(value, list | tuple):
            return type(value)(self._arguments(op, item) for item in value)
        if isinstance(value, dict):
            return {key: self._arguments(op, item) for key, item in value.items()}
        return value

    def _of_lower_rank(self, op: Op) -> Node:
        """An operation on tensors of a rank above 5, whose first axes are one in memory: value by value it does not
        matter, and nothing else is expected there.
        """
        alike = all(source.shape == op.shape for source in op.inputs)
        if not alike or torch.Tag.pointwise not in getattr(op.target, "tags", ()):
            raise BadInput(
                f"{op.where} computes {_role(op)} on tensors of rank {max(map(len, _shapes(op)))}, which Core "
                "ML does not take; write it with 5 axes at most. The model is as it was."
            )

        def lowered(value: Any) -> Any:
            if isinstance(value, Op):
                return self._value(value, ROWS)
            if isinstance(value, Tensor) and value.ndim:
                return self._constant(value.expand(op.sides).reshape(stored(op.sides, ROWS)), op)
            return value

        args = tuple(lowered(argument) for argument in op.args)
        kwargs = {key: lowered(value) for key, value in op.kwargs.items()}
        return self.graph.call_function(op.target, args, kwargs)  # type: ignore[arg-type]

    def _move(self, op: Op, layout: Layout) -> Node:
        source, wanted = op.args
        before = self.layouts[source]
        how = conversion(wanted, before, layout)
        if how is not None:
            return self._steps(how, self.values[source, before])
        x = self._value(source, ROWS)
        middle = conversion(wanted, ROWS, ROWS)
        assert middle is not None
        return self._steps(in_place(op.sides, ROWS, layout), self._steps(middle, x))

    def _part(self, op: Op, layout: Layout) -> Node:
        source, axis, sizes, index = op.args
        if layout is CHANNELS_FIRST:
            axis = _axis(axis, len(op.sides))
        key = source, axis, layout
        if key not in self.parts:
            x = self._value(source, layout)
            self.parts[key] = self.graph.call_function(torch.split, (x, list(sizes), axis))
        return self.graph.call_function(operator.getitem, (self.parts[key], index))

    def _product(self, op: Op, layout: Layout) -> Node:
        """Channels first, (x y)^T = y^T x^T: the operands trade places, and neither is copied."""
        x, y = op.args
        if layout is ROWS:
            return self.graph.call_function(torch.matmul, (self._operand(op, x, ROWS), self._operand(op, y, ROWS)))
        product = self.graph.call_function(
            torch.matmul, (self._operand(op, y, CHANNELS_FIRST), self._operand(op, x, CHANNELS_FIRST))
        )
        return self.graph.call_method("unsqueeze", (product, 2))

    def _operand(self, product: Op, op: Op, layout: Layout) -> Node:
        """A matrix of a product; one in the other layout is read with its axes swapped, which moves nothing."""
        swapped = not self.key_first and reads_swapped(product, op) and (op, layout) not in self.values
        own = self.layouts[op] if swapped else layout
        x = self._value(op, own)
        if own is CHANNELS_FIRST:
            x = self.graph.call_method("squeeze", (x, 2))
        return x if own is layout else self.graph.call_method("transpose", (x, -1, -2))

    def _linear(self, op: Op) -> Node:
        x, weight, *rest = op.args
        bias = rest[0] if rest else None
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
        return self._layer(layer, weight, bias, op, self._value(x, ROWS))

    def _convolution(self, op: Op) -> Node:
        given = (None, 1, 0, 1, 1)
        x, weight, bias, stride, padding, dilation, groups = list(op.args) + list(given[len(op.args) - 2 :])
        layer = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            _pair(stride),
            padding if isinstance(padding, str) else _pair(padding),
            _pair(dilation),
            groups,
            bias=bias is not None,
        )
        return self._layer(layer, weight, bias, op, self._value(x, ROWS))

    def _layer(self, layer: nn.Module, weight: Tensor, bias: Tensor | None, op: Op, x: Node) -> Node:
        state = {"weight": weight} | ({} if bias is None else {"bias": bias})
        layer.load_state_dict(state)
        return self.graph.call_module(self._module(layer, op.path), (x,))

    def _channels_first(self, op: Op) -> Node:
        rank = len(op.sides)
        if op.target is aten.linear.default:
            x, weight, *rest = op.args
            bias = rest[0] if rest else None
            layer = nn.Conv2d(weight.shape[1], weight.shape[0], 1, bias=bias is not None)
            return self._layer(layer, weight[:, :, None, None], bias, op, self._value(x, CHANNELS_FIRST))
        if op.target is aten.layer_norm.default:
            given = (None, None, 1e-5)
            x, _, scale, shift, eps, *_ = list(op.args) + list(given[len(op.args) - 2 :])
            name = self._module(ChannelNorm(eps, scale, shift), op.path)
            return self.graph.call_module(name, (self._value(x, CHANNELS_FIRST),))
        args = list(op.args)
        if op.target is aten.softmax.int:
            args[1] = _axis(args[1], rank)
        elif op.target is aten.cat.default:
            args[1:] = [_axis(args[1] if len(args) > 1 else 0, rank)]
        elif op.target in REDUCTIONS:
            args[1] = sorted({_axis(axis, rank) for axis in args[1]})
        args = [self._argument(op, argument) for argument in args]
        kwargs = {key: self._argument(op, value) for key, value in op.kwargs.items()}
        return self.graph.call_function(op.target, tuple(args), kwargs)  # type: ignore[arg-type]

    def _argument(self, op: Op, value: Any) -> Any:
        if isinstance(value, Op):
            return self._value(value, CHANNELS_FIRST)
        if isinstance(value, list):
            return [self._argument(op, item) for item in value]
        if isinstance(value, Tensor):
            return self._constant(value, op, CHANNELS_FIRST)
        return value


def _channels_first(constant: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A constant that broadcasts to `shape`, so that it broadcasts to it in memory."""
    full = constant.reshape((1,) * (len(shape) - constant.ndim) + tuple(constant.shape))
    if len(shape) == 4 and full.shape[1:3] not in (shape[1:3], (1, 1)):
        full = full.expand(full.shape[0], *shape[1:3], full.shape[3])
    return full.movedim(-1, 1).reshape(full.shape[0], full.shape[-1], 1, -1).contiguous()


def _axis(axis: int, rank: int) -> int:
    """Where an axis of rows lies in (B, C, 1, S)."""
    axis %= rank
    return 0 if axis == 0 else 1 if axis == rank - 1 else 3


def _free(owner: nn.Module, name: str) -> str:
    """A name that a module has no use for yet."""
    return next(n for i in count() if not hasattr(owner, n := f"{name}_{i}" if i else name))


def _shapes(op: Op) -> list[Shape]:
    """Of what an operation reads and writes."""
    return [one.shape for one in (op, *op.inputs) if one.shape is not None]


def _pair(value: Any) -> Any:
    return tuple(value) * (2 // len(value)) if isinstance(value, list | tuple) else value


def _role(op: Op) -> str:
    """The operator's name, for constants it reads and for messages."""
    schema = getattr(op.target, "_schema", None)
    return "constant" if schema is None else schema.name.split("::")[-1]
