"""Today's forms: eager, torchao's and PT2E's dynamic int8, torch.compile of each, ExecuTorch."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..artifacts import Verification, export, export_name, load
from ..targets import TARGETS
from ..types import Precision
from .subject import Form, Made, Step, Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

DYNAMIC = Precision.W8A8_DYNAMIC
_DYNAMIC_WORDS = "linear layers in int8, ranges of activations taken at run time"


def _eager(subject: Subject) -> Made:
    return Made(runner=subject.reference, how="the model in PyTorch, as it is")


def _torchao_module(subject: Subject) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    module = subject.module()
    # its settings for inductor would stay in the process, and are for GPUs
    quantize_(module, Int8DynamicActivationInt8WeightConfig(set_inductor_config=False))
    return module


def _torchao(subject: Subject) -> Made:
    module = _torchao_module(subject)
    return Made(
        runner=subject.runner(f"torchao:{DYNAMIC}", module),
        how=f"quantize_ with Int8DynamicActivationInt8Weight: {_DYNAMIC_WORDS}",
        quantized=subject.count(module, _has_torchao_weight),
    )


def _has_torchao_weight(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and type(module.weight).__module__.startswith("torchao")


def _exported(subject: Subject, target: str, precision: Precision) -> Verification:
    """The form's file, made and proven once, however many forms are made from it."""
    path = subject.folder / export_name(subject.model.name, precision, TARGETS.get(target))
    return export(
        subject.model,
        target,
        path,
        precision,
        images=subject.images,
        reference=subject.logits,
        threads=subject.threads,
    )


def _pt2e(subject: Subject) -> Made:
    found = _exported(subject, "torch_export", DYNAMIC)
    return Made(
        runner=subject.runner(f"pt2e:{DYNAMIC}", torch.export.load(found.artifact.path).module()),
        how=TARGETS.get("torch_export").precisions[DYNAMIC],
        path=found.artifact.path,
        quantized=found.artifact.quantized,
    )


def _compiled(subject: Subject, form: str, module: Callable[[Tensor], Tensor], of: str) -> Made:
    """Compile with the weights frozen, and pay for it with one image."""
    from torch._inductor import config

    runner = subject.runner(form, torch.compile(module))
    start = time.perf_counter()
    # as an option of torch.compile it would come too late for the int8 patterns; one process: no helpers stay behind
    with config.patch(freezing=True, compile_threads=1):
        runner(subject.images.verification[:1])
    return Made(runner=runner, how=f"inductor, frozen weights, of {of}", first_call_s=time.perf_counter() - start)


def _compile_float(subject: Subject) -> Made:
    return _compiled(subject, "compile:fp32", subject.module(), "the float model")


def _compile_torchao(subject: Subject) -> Made:
    return _compiled(subject, f"compile-torchao:{DYNAMIC}", _torchao_module(subject), "torchao's int8 model")


def _compile_pt2e(subject: Subject) -> Made:
    path = subject.folder / export_name(subject.model.name, DYNAMIC, TARGETS.get("torch_export"))
    if not path.exists():  # it could not be made before; the same reason is given again
        _exported(subject, "torch_export", DYNAMIC)
    module = torch.export.load(path).module()
    return _compiled(subject, f"compile-pt2e:{DYNAMIC}", module, "PT2E's int8 program")


def _executorch(subject: Subject, precision: Precision) -> Made:
    found = _exported(subject, "executorch", precision)
    return Made(
        runner=load(found.artifact.path, subject.threads),
        how=TARGETS.get("executorch").precisions[precision],
        path=found.artifact.path,
        quantized=found.artifact.quantized,
    )


ORIGINAL = Form(target="eager", precision=Precision.FP32, step=Step.ORIGINAL, make=_eager)
FORMS = (
    Form(target="torchao", precision=DYNAMIC, step=Step.QUANTIZED, make=_torchao),
    Form(target="pt2e", precision=DYNAMIC, step=Step.QUANTIZED, make=_pt2e),
    Form(target="compile", precision=Precision.FP32, step=Step.OPTIMISED, make=_compile_float),
    Form(target="compile-torchao", precision=DYNAMIC, step=Step.OPTIMISED, make=_compile_torchao),
    Form(target="compile-pt2e", precision=DYNAMIC, step=Step.OPTIMISED, make=_compile_pt2e),
    Form(
        target="executorch",
        precision=Precision.FP32,
        step=Step.LITE,
        make=lambda subject: _executorch(subject, Precision.FP32),
    ),
    Form(target="executorch", precision=DYNAMIC, step=Step.LITE, make=lambda subject: _executorch(subject, DYNAMIC)),
)
