"""The forms of the tutorial itself (TorchScript, eager-mode dynamic int8, PyTorch Mobile), as far as this build goes.

They are retired, and which of them a build of PyTorch still has differs: what is missing raises with its own words.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import BadInput
from ..types import Precision, Quantized
from .current import DYNAMIC
from .settings import on_one_line, quantized_engine
from .subject import Form, Made, Step, Subject

if TYPE_CHECKING:
    from torch.jit import ScriptModule

SERVER_ENGINES = ("x86", "fbgemm")  # names of one and the same kernels where a build has both
PHONE_ENGINES = ("qnnpack",)


def _scripted(subject: Subject, module: nn.Module) -> tuple[ScriptModule, str]:
    """The module in TorchScript, scripted or else traced, and which of the two, in words."""
    how = "scripted"
    try:
        # the normalisation around the network is plain arithmetic and is traced; control flow is in the network
        network: Any = torch.jit.script(module.get_submodule("module"))
        module.module = network
    except Exception as e:
        how = f"traced, as it cannot be scripted ({on_one_line(e)})"
    return torch.jit.trace(module, subject.example), how


def _saved(subject: Subject, form: str, save: Callable[[str], Any], suffix: str) -> Path:
    path = subject.folder / f"{form}{suffix}"
    save(str(path))
    return path


def _torchscript(subject: Subject) -> Made:
    module, how = _scripted(subject, subject.module())
    path = _saved(subject, "torchscript_fp32", module.save, ".pt")
    # torch.jit.load can run what a file says: it is given nothing but the file just written
    return Made(runner=subject.runner("torchscript:fp32", torch.jit.load(path)), how=how, path=path)


def _engine(wanted: tuple[str, ...]) -> str:
    has = torch.backends.quantized.supported_engines
    found = next((engine for engine in wanted if engine in has), None)
    if found is None:
        raise BadInput(f"this build of PyTorch has no engine {' or '.join(wanted)}; it has {', '.join(has)}")
    return found


def _quantized(subject: Subject, engine: str) -> tuple[ScriptModule, str, Quantized]:
    """The tutorial's recipe: quantize_dynamic over nn.Linear, then TorchScript; call it with the engine set."""
    from torch.ao.nn.quantized.dynamic import Linear
    from torch.ao.quantization import quantize_dynamic

    swapped = quantize_dynamic(subject.module(), qconfig_spec={nn.Linear}, dtype=torch.qint8)
    counted = subject.count(swapped, lambda module: isinstance(module, Linear))
    module, how = _scripted(subject, swapped)
    return module, f"quantize_dynamic on {engine}, {how}", counted


def _quantized_for(target: str, engines: tuple[str, ...], subject: Subject) -> Made:
    engine = _engine(engines)
    with quantized_engine(engine):  # weights are packed for an engine when they are quantized, and again when loaded
        module, how, counted = _quantized(subject, engine)
        path = _saved(subject, f"{target}_{DYNAMIC}", module.save, ".pt")
        loaded = torch.jit.load(path)
    return Made(runner=subject.runner(f"{target}:{DYNAMIC}", loaded), how=how, path=path, quantized=counted)


def _mobile(subject: Subject) -> Made:
    from torch.utils.mobile_optimizer import optimize_for_mobile

    engine = _engine(PHONE_ENGINES)
    with quantized_engine(engine):
        module, how, counted = _quantized(subject, engine)
        optimised = optimize_for_mobile(module)
        path = _saved(subject, f"mobile_{DYNAMIC}", optimised.save, ".pt")
        loaded = torch.jit.load(path)
    how = f"{how}, optimize_for_mobile"
    return Made(runner=subject.runner(f"mobile:{DYNAMIC}", loaded), how=how, path=path, quantized=counted)


def _lite(subject: Subject) -> Made:
    from torch.jit.mobile import _load_for_lite_interpreter
    from torch.utils.mobile_optimizer import optimize_for_mobile

    engine = _engine(PHONE_ENGINES)
    with quantized_engine(engine):
        module, how, counted = _quantized(subject, engine)
        try:
            module = optimize_for_mobile(module)
            how = f"{how}, optimize_for_mobile"
        except Exception:  # why it cannot be is in the row of that form
            # as the optimiser does first: what scripting leaves in a module cannot be saved in this format
            module = torch.jit.freeze(module)
            how = f"{how}, frozen in place of optimize_for_mobile"
        path = _saved(subject, f"mobile-lite_{DYNAMIC}", module._save_for_lite_interpreter, ".ptl")
        loaded = _load_for_lite_interpreter(str(path))
    how = f"{how}, lite interpreter"
    return Made(runner=subject.runner(f"mobile-lite:{DYNAMIC}", loaded), how=how, path=path, quantized=counted)


FORMS = (
    Form(target="torchscript", precision=Precision.FP32, step=Step.ORIGINAL, make=_torchscript),
    Form(
        target="torchscript-x86",
        precision=DYNAMIC,
        step=Step.QUANTIZED,
        make=lambda subject: _quantized_for("torchscript-x86", SERVER_ENGINES, subject),
    ),
    Form(
        target="torchscript-qnnpack",
        precision=DYNAMIC,
        step=Step.QUANTIZED,
        make=lambda subject: _quantized_for("torchscript-qnnpack", PHONE_ENGINES, subject),
    ),
    Form(target="mobile", precision=DYNAMIC, step=Step.OPTIMISED, make=_mobile),
    Form(target="mobile-lite", precision=DYNAMIC, step=Step.LITE, make=_lite),
)
