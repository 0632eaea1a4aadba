"""The authors' TensorFlow checkpoints of MOAT, read and turned into ours (arXiv 2210.01820; needs the extra 'tf')."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ..errors import BadInput
from .checkpoint import load_strictly
from .moat import VARIANTS, Moat
from .moat_blocks import HEAD_DIM, MoatBlock
from .resolve import create

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .model import Model

EMA = "/ExponentialMovingAverage"
_STEM = "stem/conv_0/kernel"
_TABLE = "relative_position_embedding"
_TABLE_MAX = 255  # windows of 128 tokens a side, four times the largest published map
_HEAD = ("logits_head/kernel", "logits_head/bias")


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion:
    """A converted model, and what became of the variables of its checkpoint.

    used: variable to the tensor of ours that it became. unused: variables with no place in an inference model, such
    as the step counter, an optimizer's slots, and whichever of weights and moving averages was not chosen. ema:
    whether the moving averages were taken. new_head: the checkpoint had no classifier, so ours is random.
    """

    model: Model
    architecture: str
    position: str
    ema: bool
    new_head: bool
    used: Mapping[str, str]
    unused: tuple[str, ...]


class Variables:
    """The variables of a checkpoint: names and shapes at once, values on demand."""

    def __init__(self, path: Path) -> None:
        tensorflow = _tensorflow()
        self.path = _prefix(path)
        # its reader raises Python's own errors for some kinds of damage
        self._errors = (tensorflow.errors.OpError, ValueError, RuntimeError, IndexError)
        try:
            self._reader = tensorflow.train.load_checkpoint(str(self.path))
            self.shapes: dict[str, tuple[int, ...]] = {
                name: tuple(shape) for name, shape in self._reader.get_variable_to_shape_map().items()
            }
        except self._errors as e:
            raise BadInput(f"{path} is not a readable TensorFlow checkpoint ({_first_line(e)}).") from e

    def shape(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of a variable that must be there and have `rank` axes, none of them empty."""
        found = self.shapes.get(name)
        if found is None:
            raise BadInput(f"{self.path} lacks {name}, which every MOAT has.")
        if len(found) != rank or 0 in found:
            raise BadInput(f"{name} of {self.path} has the shape {found}, which is none for it.")
        return found

    def values(self, name: str) -> NDArray[np.float32]:
        """Finite numbers of one variable, as float32 whatever float they are stored as."""
        try:
            value = np.asarray(self._reader.get_tensor(name))
        except self._errors as e:
            raise BadInput(f"{self.path} cannot give {name} ({_first_line(e)}); the file is damaged.") from e
        if value.dtype.kind != "f" and value.dtype.name != "bfloat16":
            raise BadInput(f"{name} of {self.path} holds {value.dtype}, not floating point numbers.")
        value = value.astype(np.float32)
        if not np.isfinite(value).all():
            raise BadInput(f"{name} of {self.path} holds numbers that are not finite.")
        return value

    def check_size(self, names: Collection[str]) -> None:
        """Raise BadInput unless the files are large enough to hold what they say; shapes are mere claims."""
        stored = sum(file.stat().st_size for file in self.path.parent.glob(f"{self.path.name}.data-*"))
        least = 2 * sum(math.prod(self.shapes[name]) for name in names)  # two bytes a number, if they are half floats
        if stored < least:
            raise BadInput(f"{self.path} holds {stored} bytes for variables of {least} or more; it is incomplete.")


def convert_moat(path: Path, *, ema: bool | None = None, **model_args: Any) -> Conversion:
    """Turn a TensorFlow MOAT checkpoint into a model that gives the same logits.

    path: the checkpoint's prefix (`model.ckpt`), one of its files, or a directory that holds one. ema: take the
    exponential moving averages; None takes them where there are any. The architecture, the number of classes, the
    presence and base size of the position tables are read off the shapes; model_args (img_size, attention,
    window_size, pool_size...) say the rest, which no checkpoint holds: left out, they are the architecture's own.
    position is "relative" or, to leave the tables out, "none".

    Raises BadInput without TensorFlow, and for a file that is not a MOAT's, is damaged, or lacks what was asked for.
    """
    variables = Variables(path)
    scope = _scope(variables)
    architecture = _architecture(variables, scope)
    ema = _take_ema(variables, scope, ema)
    model_args = _arguments(variables, scope, architecture, model_args)
    new_head = not any(scope + name in variables.shapes for name in _HEAD)
    if not new_head:
        model_args["num_classes"] = variables.shape(scope + _HEAD[1], rank=1)[0]

    with torch.device("meta"):  # all shapes are compared before any memory is taken
        planned = create(architecture, **model_args).module
    assert isinstance(planned, Moat)
    plan: dict[str, tuple[str, _Layout]] = {}
    for ours, variable, layout in _names(planned):
        if new_head and variable in _HEAD:
            continue
        name = scope + variable + (EMA if ema and _averaged(variable) else "")
        found, wanted = variables.shapes.get(name), layout.shape(planned.state_dict()[ours].shape)
        if found is None:
            hint = "; take the weights themselves with --no-ema" if name.endswith(EMA) else ""
            raise BadInput(f"{variables.path} lacks {name}, which {architecture} needs{hint}.")
        if found != wanted:
            raise BadInput(f"{name} of {variables.path} is {found}, not {wanted} as in {architecture}.")
        plan[ours] = name, layout
    variables.check_size([name for name, _ in plan.values()])

    model = create(architecture, **model_args)
    state = dict(model.module.state_dict())
    random = {n for n in state.keys() - plan.keys() if not n.endswith("num_batches_tracked")}
    assert new_head or not random, f"{sorted(random)} would stay random"
    for ours, (name, layout) in plan.items():
        state[ours] = torch.from_numpy(np.ascontiguousarray(layout.ours(variables.values(name))))
    load_strictly(model.module, state, str(path))
    used = {name: ours for ours, (name, _) in plan.items()}
    return Conversion(
        model=replace(model, name=f"{architecture} from {variables.path.name}", trained=not new_head),
        architecture=architecture,
        position=str(planned.position),
        ema=ema,
        new_head=new_head,
        used=used,
        unused=tuple(sorted(variables.shapes.keys() - used.keys())),
    )


@dataclass(frozen=True, slots=True)
class _Layout:
    """How TensorFlow lays a tensor out: its shape there, given ours, and the way from there."""

    shape: Callable[[Sequence[int]], tuple[int, ...]]
    ours: Callable[[NDArray[np.float32]], NDArray[np.float32]]


_PLAIN = _Layout(tuple, lambda a: a)
# convolutions are (height, width, in, out) there, depthwise ones (height, width, channels, 1), ours (out, in, ...)
_CONV = _Layout(lambda s: (s[2], s[3], s[1], s[0]), lambda a: a.transpose(3, 2, 0, 1))
_DEPTHWISE = _Layout(lambda s: (s[2], s[3], s[0], s[1]), lambda a: a.transpose(2, 3, 0, 1))
_DENSE = _Layout(lambda s: (1, 1, s[1], s[0]), lambda a: a[0, 0].T)
# q, k and v map channels to (heads, channels of a head), o maps them back
_TO_HEADS = _Layout(lambda s: (s[1], s[0] // HEAD_DIM, HEAD_DIM), lambda a: a.reshape(a.shape[0], -1).T)
_HEADS_BIAS = _Layout(lambda s: (s[0] // HEAD_DIM, HEAD_DIM), lambda a: a.reshape(-1))
_FROM_HEADS = _Layout(lambda s: (s[1] // HEAD_DIM, HEAD_DIM, s[0]), lambda a: a.reshape(-1, a.shape[-1]).T)

_Names = Iterator[tuple[str, str, _Layout]]


def _names(module: Moat) -> _Names:
    """Each tensor of ours, the variable that becomes it, and how that is laid out."""
    yield from _conv("stem.0", "stem/conv_0")
    yield from _norm("stem.1", "stem/norm_0")
    yield from _conv("stem.3", "stem/conv_1")
    for s, stage in enumerate(module.stages.children()):
        for b, block in enumerate(stage.children()):
            yield from _block(block, f"stages.{s}.{b}", f"block_{s:02d}_{b:02d}")
    yield from _norm("head.norm", "final_layer_norm", moving=False)
    yield "head.fc.weight", "logits_head/kernel", _DENSE
    yield "head.fc.bias", "logits_head/bias", _PLAIN


def _block(block: nn.Module, ours: str, theirs: str) -> _Names:
    mbconv = block.mbconv if isinstance(block, MoatBlock) else block
    inner = f"{ours}.mbconv" if isinstance(block, MoatBlock) else ours
    if not isinstance(mbconv.shortcut, nn.Identity):
        yield from _conv(f"{inner}.shortcut", f"{theirs}/shortcut_conv")
    for norm in ("pre_norm", "expand_norm", "depthwise_norm"):
        yield from _norm(f"{inner}.{norm}", f"{theirs}/{norm}")
    yield f"{inner}.expand.weight", f"{theirs}/expand_conv/kernel", _CONV
    yield f"{inner}.depthwise.weight", f"{theirs}/depthwise_conv/depthwise_kernel", _DEPTHWISE
    yield from _conv(f"{inner}.shrink", f"{theirs}/shrink_conv")
    if not isinstance(mbconv.se, nn.Identity):
        yield from _conv(f"{inner}.se.fc1", f"{theirs}/se/reduce_conv2d")
        yield from _conv(f"{inner}.se.fc2", f"{theirs}/se/expand_conv2d")
    if isinstance(block, MoatBlock):
        yield from _norm(f"{ours}.norm", f"{theirs}/attention_norm", moving=False)
        for name in "qkv":
            yield f"{ours}.attn.{name}.weight", f"{theirs}/attention/{name}/weight", _TO_HEADS
            yield f"{ours}.attn.{name}.bias", f"{theirs}/attention/{name}/bias", _HEADS_BIAS
        yield f"{ours}.attn.proj.weight", f"{theirs}/attention/o/weight", _FROM_HEADS
        yield f"{ours}.attn.proj.bias", f"{theirs}/attention/o/bias", _PLAIN
        for name, _ in block.attn.named_parameters():
            if name.endswith("table"):
                yield f"{ours}.attn.{name}", f"{theirs}/attention/{_TABLE}", _PLAIN


def _conv(ours: str, theirs: str) -> _Names:
    yield f"{ours}.weight", f"{theirs}/kernel", _CONV
    yield f"{ours}.bias", f"{theirs}/bias", _PLAIN


def _norm(ours: str, theirs: str, moving: bool = True) -> _Names:
    yield f"{ours}.weight", f"{theirs}/gamma", _PLAIN
    yield f"{ours}.bias", f"{theirs}/beta", _PLAIN
    if moving:
        yield f"{ours}.running_mean", f"{theirs}/moving_mean", _PLAIN
        yield f"{ours}.running_var", f"{theirs}/moving_variance", _PLAIN


def _averaged(variable: str) -> bool:
    """True for what was trained; a norm's moving statistics are averages already and have no second one."""
    return not variable.endswith(("moving_mean", "moving_variance"))


def _scope(variables: Variables) -> str:
    """What stands before the names of the model's variables: "moat/" in the published checkpoints."""
    found = sorted(name.removesuffix(_STEM) for name in variables.shapes if name.endswith(_STEM))
    if len(found) > 1:
        raise BadInput(f"{variables.path} holds more than one MOAT: {', '.join(found)}.")
    if not found:
        raise BadInput(f"{variables.path} is not a MOAT checkpoint: it has no variable moat/{_STEM}.")
    return found[0]


def _architecture(variables: Variables, scope: str) -> str:
    """Name the variant whose widths and depths the checkpoint has."""
    blocks = [re.fullmatch(re.escape(scope) + r"block_(\d{2})_(\d{2})/pre_norm/gamma", n) for n in variables.shapes]
    depths = Counter(int(match[1]) for match in blocks if match)
    stages = sorted(depths)
    counts = tuple(depths[stage] for stage in stages)
    widths = tuple(variables.shape(f"{scope}block_{stage:02d}_00/shrink_conv/bias", rank=1)[0] for stage in stages)
    stem = variables.shape(scope + _STEM, rank=4)[-1]
    for name, variant in VARIANTS.items():
        if (stem, counts, widths) == (variant.stem_size, variant.depths, variant.widths):
            return name
    raise BadInput(
        f"{variables.path} is a MOAT of {counts} blocks and widths {widths}, which is none of {', '.join(VARIANTS)}."
    )


def _take_ema(variables: Variables, scope: str, ema: bool | None) -> bool:
    has = scope + _STEM + EMA in variables.shapes
    if ema and not has:
        raise BadInput(f"{variables.path} has no exponential moving averages; take its weights with --no-ema.")
    return has if ema is None else ema


def _arguments(variables: Variables, scope: str, architecture: str, given: dict[str, Any]) -> dict[str, Any]:
    """The model's arguments: those given, and what the checkpoint says of its position tables."""
    known = {"img_size", "attention", "window_size", "global_last", "output_stride", "pool_size", "split_heads"}
    known |= {"position", "drop_rate", "drop_path_rate"}
    if unknown := sorted(given.keys() - known):
        raise BadInput(f"{architecture} is converted with {', '.join(sorted(known))}, not {unknown[0]}.")
    sizes = _table_size(variables, scope)
    position = given.get("position", "relative" if sizes else "none")
    if position not in ("relative", "none"):
        raise BadInput(f"Published MOATs have relative positions or none; {position} would start from random numbers.")
    if position == "none":
        return {**given, "position": "none"}
    if sizes is None:
        raise BadInput(f"{variables.path} has no position tables, so its model has no position embedding.")
    return {**given, "position": "relative", "table_size": sizes}


def _table_size(variables: Variables, scope: str) -> tuple[int, int] | None:
    """Tokens along the side of each attention stage's position table, None where there are no tables."""
    names = [f"{scope}block_{stage:02d}_00/attention/{_TABLE}" for stage in (2, 3)]
    if not any(name in variables.shapes for name in names):
        return None
    sides = []
    for name in names:
        _, rows, columns = variables.shape(name, rank=3)
        if rows != columns or rows % 2 == 0 or rows > _TABLE_MAX:
            raise BadInput(
                f"{name} of {variables.path} is {rows} x {columns}; tables are square, odd, at most {_TABLE_MAX} wide."
            )
        sides.append((rows + 1) // 2)
    return sides[0], sides[1]


def _prefix(path: Path) -> Path:
    """The prefix of a checkpoint's files, whichever of them, or their directory, was named."""
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if len(found) != 1:
            raise BadInput(f"{path} holds {len(found)} TensorFlow checkpoints; name one, as {path}/model.ckpt.")
        path = found[0]
    name = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    if not path.with_name(name + ".index").is_file():
        raise BadInput(f"There is no TensorFlow checkpoint {path}: {name}.index is missing beside it.")
    return path.with_name(name)


def _tensorflow() -> Any:
    # its native part greets everyone on standard error when it is imported
    before = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    try:
        import tensorflow
    except ImportError as e:
        raise BadInput("Reading a TensorFlow checkpoint needs TensorFlow: pip install 'pocketvit[tf]'.") from e
    except (
        RuntimeError,
        TypeError,
        AttributeError,
    ) as e:  # what its compiled parts raise beside others they clash with
        raise BadInput(f"TensorFlow is installed and cannot be imported ({_first_line(e)}).") from e
    finally:
        if before is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    return tensorflow


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
