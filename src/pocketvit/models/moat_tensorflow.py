"""The authors' TensorFlow checkpoints of MOAT, read and turned into ours (arXiv 2210.01820; needs the extra 'tf')."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
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

    def __call__(self, name: str) -> NDArray[np.float32]:
        """Value of one variable, as float32."""
        try:
            value = np.asarray(self._reader.get_tensor(name))
        except self._errors as e:
            raise BadInput(f"{self.path} cannot give {name} ({_first_line(e)}); the file is damaged.") from e
        if value.dtype.kind != "f":
            raise BadInput(f"{name} of {self.path} holds {value.dtype}, not floating point numbers.")
        return value.astype(np.float32)


def convert_moat(path: Path, *, ema: bool | None = None, **model_args: Any) -> Conversion:
    """Turn a TensorFlow MOAT checkpoint into a model that gives the same logits.

    path: the checkpoint's prefix (`model.ckpt`), one of its files, or a directory that holds one. ema: take the
    exponential moving averages; None takes them where there are any. The architecture, the number of classes, the
    presence and base size of the position tables are read off the shapes; model_args (img_size, attention,
    window_size, pool_size...) say the rest, which no checkpoint holds: left out, they are the architecture's own.

    Raises BadInput without TensorFlow, and for a file that is not a MOAT's, is damaged, or lacks what was asked for.
    """
    variables = Variables(path)
    scope = _scope(variables)
    architecture = _architecture(variables, scope)
    ema = _take_ema(variables, ema)
    table_size = _table_size(variables, scope)
    if table_size:
        model_args["table_size"] = table_size
    elif model_args.setdefault("position", "none") != "none":
        raise BadInput(f"{variables.path} has no position tables, so its model has no position embedding.")
    new_head = not all(scope + name in variables.shapes for name in _HEAD)
    classes = None if new_head else variables.shapes[scope + _HEAD[1]][0]
    model = create(architecture, num_classes=classes, **model_args)
    module = model.module
    if not isinstance(module, Moat):
        raise BadInput(f"{architecture} was not built as a MOAT.")

    state, used = dict(module.state_dict()), {}
    for ours, variable, layout in _names(module):
        if new_head and variable in _HEAD:
            continue
        name = scope + variable + (EMA if ema and _averaged(variable) else "")
        # shapes are compared before anything is read: a damaged file does not decide how much memory is taken
        found, wanted = variables.shapes.get(name), layout.shape(state[ours].shape)
        if found is None:
            raise BadInput(f"{variables.path} lacks {name}, which {architecture} needs.")
        if found != wanted:
            raise BadInput(f"{name} of {variables.path} is {found}, not {wanted} as in {architecture}.")
        state[ours] = torch.from_numpy(np.ascontiguousarray(layout.ours(variables(name))))
        used[name] = ours
    load_strictly(module, state, str(path))
    return Conversion(
        model=replace(model, name=f"{architecture} from {variables.path.name}", trained=not new_head),
        architecture=architecture,
        position=str(module.position),
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
    found = [name.removesuffix(_STEM) for name in variables.shapes if name.endswith(_STEM)]
    if len(found) != 1:
        raise BadInput(f"{variables.path} is not a MOAT checkpoint: it has no variable moat/{_STEM}.")
    return found[0]


def _architecture(variables: Variables, scope: str) -> str:
    """Name the variant whose widths and depths the checkpoint has."""
    blocks = [re.fullmatch(re.escape(scope) + r"block_(\d+)_(\d+)/pre_norm/gamma", n) for n in variables.shapes]
    depths = Counter(int(match[1]) for match in blocks if match)
    stem = variables.shapes[scope + _STEM][-1]
    counts = tuple(depths[s] for s in sorted(depths))
    widths = tuple(variables.shapes.get(f"{scope}block_{s:02d}_00/shrink_conv/bias", (0,))[0] for s in sorted(depths))
    for name, variant in VARIANTS.items():
        if (stem, counts, widths) == (variant.stem_size, variant.depths, variant.widths):
            return name
    raise BadInput(
        f"{variables.path} is a MOAT of {counts} blocks and widths {widths}, which is none of  {', '.join(VARIANTS)}."
    )


def _take_ema(variables: Variables, ema: bool | None) -> bool:
    has = any(name.endswith(EMA) for name in variables.shapes)
    if ema and not has:
        raise BadInput(f"{variables.path} has no exponential moving averages; take its weights with --no-ema.")
    return has if ema is None else ema


def _table_size(variables: Variables, scope: str) -> tuple[int, int] | None:
    """Tokens along the side of each attention stage's position table, None where there are no tables."""
    tables = [variables.shapes.get(f"{scope}block_{s:02d}_00/attention/{_TABLE}") for s in (2, 3)]
    if tables == [None, None]:
        return None
    sides = []
    for shape in tables:
        if shape is None or len(shape) != 3 or shape[1] != shape[2] or shape[1] % 2 == 0:
            raise BadInput(f"{variables.path} has position tables of shapes {tables}; they are (heads, 2n-1, 2n-1).")
        sides.append((shape[1] + 1) // 2)
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
    finally:
        if before is None:
            del os.environ["TF_CPP_MIN_LOG_LEVEL"]
    return tensorflow


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
