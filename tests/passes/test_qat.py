"""Quantization-aware training: it rounds on the exporters' grids, learns from it, and leaves a plain checkpoint."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from pocketvit.artifacts import export
from pocketvit.data import open_data
from pocketvit.errors import BadInput
from pocketvit.measure.accuracy import accuracy
from pocketvit.models import EagerRunner, Model, create, save, weights_sha256
from pocketvit.passes import qat
from pocketvit.targets import TARGETS
from pocketvit.targets._gptq import four_bits
from pocketvit.targets._torch_quantize import FourBits
from pocketvit.train import Distillation, TrainConfig, fit
from pocketvit.train.checkpoint import FILE
from pocketvit.types import InputSpec, Precision, group_of

SMALL = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
GENTLE = TrainConfig(
    threads=1,
    epochs=2,
    warmup_epochs=0,
    warmup_lr=0,
    min_lr=0,
    batch_size=32,
    lr=2e-3,
    drop_path=0,
    repeated_aug=1,
    rand_augment=None,
    crop_scale=(0.9, 1.0),
    hflip=0,
    mixup=0,
    cutmix=0,
    random_erasing=0,
    distillation=Distillation.SOFT,
    alpha=0.9,
)


def passing_for_trained(name: str, **arguments: object) -> Model:
    """Random weights, which is all that exactness needs."""
    return dataclasses.replace(create(name, **arguments), trained=True)


def images_for(model: Model, count: int = 4) -> np.ndarray:
    return np.random.default_rng(0).random((count, *model.spec.size), dtype=np.float32)


@pytest.fixture(scope="module")
def digits():
    return open_data("digits", "train").take(128), open_data("digits", "val").take(60)


@pytest.fixture(scope="module")
def deit() -> Model:
    return passing_for_trained("pocket_deit_distilled_patch4_32", num_classes=10, **SMALL)


# the grids


@pytest.mark.parametrize("inputs", [64, 80], ids=["whole groups", "a shorter last group"])
def test_w4_is_the_grid_of_onnx_runtime(inputs: int) -> None:
    """MatMulNBits itself, run on the unit vectors, gives back the weights it holds."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    weight = torch.randn(8, inputs, generator=torch.Generator().manual_seed(0))
    weight[0, :32] = 0
    rounded = qat.GroupedWeight(32)(weight)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 8])],
        [numpy_helper.from_array(weight.T.contiguous().numpy(), "w")],
    )
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        block_size=32,
        is_symmetric=False,
    )
    quantizer.process()
    model: onnx.ModelProto = quantizer.model.model
    assert [node.op_type for node in model.graph.node] == ["MatMulNBits"]
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    held = torch.from_numpy(session.run(None, {"x": np.eye(inputs, dtype=np.float32)})[0]).T
    worst = (held - rounded).abs().max().item()
    step = (weight.max() - weight.min()).item() / 15
    # rounding a tie the other way would be a whole step; the arithmetic alone is 1e-6 of it
    assert worst < 1e-4 * step, f"largest difference {worst:.2e}, a step of the grid is {step:.2e}"


@pytest.mark.parametrize("quantizer", [qat.GroupedWeight(32), qat.ChannelWeight()], ids=["w4", "8 bits"])
def test_what_is_on_the_grid_stays(quantizer: nn.Module) -> None:
    weight = torch.randn(16, 96, generator=torch.Generator().manual_seed(1))
    once = quantizer(weight)
    assert (once - weight).abs().max() > 0
    assert (quantizer(once) - once).abs().max() < 1e-6 * weight.abs().max()


@pytest.mark.parametrize("inputs", [80, 112, 128])
def test_what_is_on_the_grid_stays_in_a_file(inputs: int) -> None:
    weight = torch.randn(16, inputs, generator=torch.Generator().manual_seed(2))
    size = group_of(inputs, 32)
    assert inputs % size == 0
    rounded = qat.GroupedWeight(size)(weight)
    grouped = four_bits(rounded.numpy(), size)
    levels = grouped.levels.astype(np.float32) - grouped.zeros[..., None]
    onnx_holds = torch.from_numpy((levels * grouped.scales[..., None]).reshape(16, -1)[:, :inputs])
    moved = ((onnx_holds - rounded).norm() / rounded.norm()).item()
    assert moved < 1e-6, f"the groups of ONNX files move it by {moved:.1e}"
    moved = ((FourBits(rounded, 32)() - rounded).norm() / rounded.norm()).item()
    # scales of 8 bits: off by at most 1/512, as are the offsets, which are up to 15 steps
    assert moved < 0.01, f"the groups of torch programs move it by {moved:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize("target", ["onnx", "openvino", "coreml"])
def test_a_finished_model_gives_a_file_of_its_own_weights(target: str, tmp_path: Path) -> None:
    """A width that 32 does not divide; scales in fp16 and 8-bit ends leave 40 dB, another grid 25."""
    model = passing_for_trained("pocket_deit_patch4_32", num_classes=10, embed_dim=80, depth=2)
    finished = qat.finish(qat.prepare(model, Precision.W4))
    path = tmp_path / f"m{TARGETS.get(target).suffix}"
    made = export(finished, target, path, Precision.W4)
    assert made.agreement.sqnr_db > 33, f"{made.agreement.sqnr_db:.1f} dB"


def test_a_weight_that_is_no_number_reaches_the_trainer() -> None:
    weight = torch.randn(4, 32)
    weight[0, 0], weight[1] = torch.nan, 1e-44
    rounded = qat.GroupedWeight(32)(weight)
    assert rounded[0].isnan().any()
    assert rounded[2:].isfinite().all()


def test_8_bit_weights_have_a_scale_for_each_channel() -> None:
    weight = torch.randn(4, 3, 2, 2, generator=torch.Generator().manual_seed(2)) * torch.tensor([1, 1e-3, 10, 0]).view(
        4, 1, 1, 1
    )
    steps = weight.abs().amax((1, 2, 3), keepdim=True) / 127
    rounded = qat.ChannelWeight()(weight)
    assert ((rounded - weight).abs() <= steps * 0.5001).all()
    assert torch.equal(rounded[3], weight[3])  # zeros


@pytest.mark.parametrize("quantizer", [qat.GroupedWeight(16), qat.ChannelWeight(), qat.RunningRange()])
def test_gradients_pass_straight_through_the_rounding(quantizer: nn.Module) -> None:
    if isinstance(quantizer, qat.RunningRange):
        quantizer.momentum = 1.0
    values = torch.randn(8, 32, generator=torch.Generator().manual_seed(3)).requires_grad_()
    (quantizer(values) * torch.arange(32)).sum().backward()
    passed = (values.grad == torch.arange(32).expand(8, 32)).float().mean().item()
    assert passed > 0.95, f"{passed:.1%} of the gradients passed; only those cut off at the end of the range may not"


def test_a_running_range_follows_training_and_stands_still_otherwise() -> None:
    quantizer = qat.RunningRange()
    quantizer.momentum = 1.0
    quantizer(torch.tensor([-1.0, 3.0]))
    quantizer.momentum = 0.25
    quantizer(torch.tensor([-2.0, 3.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.25, 3.0)
    quantizer.eval()
    rounded = quantizer(torch.tensor([-9.0, 0.0, 1.0, 9.0]))
    step = 4.25 / 255
    assert rounded[1] == 0, "zero, with which convolutions pad, must be exact"
    assert (rounded - torch.tensor([-1.25, 0.0, 1.0, 3.0])).abs().max() <= step, rounded
    assert quantizer.high.item() == 3.0


# the pair


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        *[("pocket_deit_distilled_patch4_32", precision) for precision in qat.PRECISIONS],
        ("pocket_mobilevit_32", Precision.W8A8),
        ("pocket_moat_48", Precision.W4),
    ],
)
def test_prepared_and_finished(name: str, precision: Precision, tmp_path) -> None:
    """Every layer rounds; the float model is untouched; what comes out is saved and loaded as any checkpoint."""
    model = passing_for_trained(name)
    before, images = weights_sha256(model.module), images_for(model)
    prepared = qat.prepare(model, precision, images=images)
    weighted = [part for part in model.module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    assert sum(map(qat.is_rounded, prepared.module.modules())) == len(weighted)
    expected, rounded = (EagerRunner(each, 1)(images) for each in (model, prepared))
    noise_db = 10 * np.log10((expected**2).sum() / ((expected - rounded) ** 2).sum())
    assert precision.floor_db < noise_db < 60, f"{noise_db:.1f} dB"

    finished = qat.finish(prepared)
    assert [type(part) for part in finished.module.modules()] == [type(part) for part in model.module.modules()]
    assert list(finished.module.state_dict()) == list(model.module.state_dict())
    assert not any(part._forward_pre_hooks for part in finished.module.modules())
    save(finished, tmp_path / "finished")
    loaded = create(str(tmp_path / "finished"))
    plain = EagerRunner(loaded, 1)(images)
    if precision is Precision.W4:  # only weights round, and they are rounded
        assert np.array_equal(plain, rounded)
    assert weights_sha256(model.module) == before
    assert np.array_equal(EagerRunner(prepared, 1)(images), rounded), "finishing changed the prepared model"


def test_what_cannot_be_rounded_stays_float_and_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self, linear: bool) -> None:
            super().__init__()
            self.up = nn.ConvTranspose2d(3, 4, 2, 2)
            self.table = nn.Parameter(torch.randn(16, 16))
            self.head = nn.Linear(4, 5) if linear else nn.Identity()

        def forward(self, x):
            return self.head((self.up(x) @ self.table).mean((2, 3)))

    odd, none = (
        Model(
            name="odd",
            module=Odd(linear),
            spec=InputSpec(size=(3, 8, 8)),
            trained=True,
            classes=5 if linear else 4,
        )
        for linear in (True, False)
    )
    found = qat.coverage(odd, Precision.W4)
    assert (str(found), set(found.kept)) == ("1/3", {"up", "table"}), found
    prepared = qat.prepare(odd, Precision.W4)
    assert [type(part).__name__ for part in prepared.module.children()] == ["ConvTranspose2d", "ParametrizedLinear"]
    with pytest.raises(BadInput, match="None of the 2 layers of odd can be rounded"):
        qat.prepare(none, Precision.W4)


def test_what_does_not_fit_is_refused(deit: Model) -> None:
    prepared = qat.prepare(deit, Precision.W4)
    for call, sentence in [
        (lambda: qat.prepare(dataclasses.replace(deit, trained=False), Precision.W4), "is untrained"),
        (lambda: qat.prepare(deit, Precision.W8), "is for w4, w8a8-dynamic, w8a8; not for w8."),
        (lambda: qat.prepare(deit, Precision.W4, group_size=7), "group_size must be a power of two"),
        (lambda: qat.prepare(deit, Precision.W8A8), "needs images of 3 x 32 x 32"),
        (lambda: qat.prepare(deit, Precision.W8A8, images=np.zeros((2, 3, 16, 16), np.float32)), "needs images of"),
        (lambda: qat.prepare(prepared, Precision.W4), "is prepared for quantization-aware training already"),
        (lambda: qat.finish(deit), "was not prepared"),
    ]:
        with pytest.raises(BadInput, match=re.escape(sentence)):
            call()


# training


class Stopped(Exception):
    pass


def stop_at(step: int):
    def progress(task: str, done: int, total: int) -> None:
        if done == step:
            raise Stopped

    return progress


@pytest.mark.parametrize("precision", qat.PRECISIONS)
def test_stopped_and_resumed_it_ends_with_the_same_weights(
    precision: Precision, deit: Model, digits, tmp_path
) -> None:
    """With averaged weights and bf16, on a student with a token taught by the same model in float."""
    config = dataclasses.replace(GENTLE, ema_decay=0.8, amp="bf16")
    prepared = qat.prepare(deit, precision, images=images_for(deit))
    straight = fit(prepared, *digits, config, tmp_path / "straight", teacher=deit)
    with pytest.raises(Stopped):
        fit(prepared, *digits, config, tmp_path / "work", teacher=deit, progress=stop_at(6))  # 4 steps an epoch
    again = qat.prepare(deit, precision, images=images_for(deit))
    resumed = fit(again, *digits, config, tmp_path / "work", teacher=deit)
    assert weights_sha256(resumed.model.module) == weights_sha256(straight.model.module)
    finished = qat.finish(resumed.model)
    assert weights_sha256(finished.module) != weights_sha256(qat.finish(prepared).module), "nothing was learnt"


def test_trainings_of_other_precisions_are_never_mixed_up(deit: Model, digits, tmp_path) -> None:
    config = dataclasses.replace(GENTLE, epochs=1)
    fit(qat.prepare(deit, Precision.W4), *digits, config, tmp_path, teacher=deit)
    content = (tmp_path / FILE).read_bytes()
    images = images_for(deit)
    others = [qat.prepare(deit, precision, images=images) for precision in qat.PRECISIONS[1:]]
    for other in (deit, qat.prepare(deit, Precision.W4, group_size=16), *others):
        with pytest.raises(BadInput, match="belongs to another training: it differs in architecture"):
            fit(other, *digits, config, tmp_path, teacher=deit)
    assert (tmp_path / FILE).read_bytes() == content


@pytest.mark.slow
def test_it_wins_back_what_rounding_costs(monkeypatch, tmp_path) -> None:
    """Digits do not notice 4 bits, nor 2; so groups have only their least and greatest value."""
    train, val, test = (open_data("digits", split) for split in ("train", "val", "test"))
    config = dataclasses.replace(
        GENTLE, epochs=12, warmup_epochs=1, lr=3e-2, distillation=Distillation.NONE, alpha=None
    )
    start = create("pocket_deit_patch4_32", num_classes=10, **(SMALL | {"embed_dim": 64}))
    float_model = fit(start, train, val, config, tmp_path / "float").model

    def top1(model: Model) -> float:
        return accuracy(EagerRunner(model, 1), test).top1

    monkeypatch.setattr(qat, "_TOP", 1)
    prepared = qat.prepare(float_model, Precision.W4)
    gentle = dataclasses.replace(GENTLE, epochs=3, lr=1e-2)
    finished = qat.finish(fit(prepared, train, val, gentle, tmp_path / "qat", teacher=float_model).model)
    reached = {"float": top1(float_model), "rounded": top1(prepared), "trained": top1(finished)}
    print({name: f"{value:.1%}" for name, value in reached.items()})
    lost = reached["float"] - reached["rounded"]
    assert lost > 0.05, f"rounding cost too little to see anything: {reached}"
    assert reached["trained"] > reached["rounded"] + lost / 2, f"less than half of the loss came back: {reached}"
