"""A model in integers: nothing else between the quantizer and the dequantizer, bit-exact, trainable, or refused."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pocketvit.data import open_data
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.layers.integer import program
from pocketvit.models import Model, create, deployable, save
from pocketvit.passes.ivit import finish, integer, prepare
from pocketvit.train import Distillation, TrainConfig, fit

from .subjects import _SWIN, _VIT, SUBJECTS, images, subject, tiny

FLOOR_DB = 20.0  # tiny random models, 8 bits, nothing trained: 22 to 31 measured


class NoFloats(TorchDispatchMode):
    """Fails at the first operation that reads or makes a tensor that is not one of integers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor):
                assert not tensor.is_floating_point(), f"{func} touches {tensor.dtype}"
        return result


def _sqnr(exact: torch.Tensor, found: torch.Tensor) -> float:
    return (10 * torch.log10(exact.square().sum() / (exact - found).square().sum())).item()


@pytest.mark.parametrize("name", SUBJECTS)
def test_the_integer_form_is_the_model_and_the_training_form_is_the_integer_form(name: str) -> None:
    model, given = subject(name), images(48)
    before = {k: v.clone() for k, v in model.module.state_dict().items()}
    module = deployable(model)
    form = integer(module, given[:32])
    x = torch.from_numpy(given)
    with torch.no_grad():
        exact, found = module(x), form(x)
        trained = prepare(model, given[:32]).module.eval()
        simulated = trained(_normalised(model, given))
    assert _sqnr(exact, found) > FLOOR_DB, f"{_sqnr(exact, found):.1f} dB"
    steps = ((simulated - found).abs().max() / form.scale).item()
    assert steps < 0.5, f"the training form is {steps} steps from the integer form"
    assert all(torch.equal(v, before[k]) for k, v in model.module.state_dict().items()), "the input model was changed"


@pytest.mark.parametrize("name", ["deit", "swin, shifted windows and merging"])
def test_only_integer_tensors_between_the_quantizer_and_the_dequantizer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = integer(deployable(subject(name)), images(8))
    pixels = form.quantize(torch.from_numpy(images(2)))
    with NoFloats():
        logits = form.program(pixels)
    assert logits.dtype is torch.int32
    # the check sees one float addition among hundreds of steps
    monkeypatch.setitem(program.KINDS, "add", lambda a, b: (a.double() + b).to(a.dtype))
    assert torch.equal(form.program(pixels), logits)
    with pytest.raises(AssertionError, match=r"touches torch\.float64"), NoFloats():
        form.program(pixels)


def test_no_image_leaves_the_bounds_that_were_proven() -> None:
    """Every value of every step; the widest is what int32 still has to hold."""
    for name in ("deit", "swin, shifted windows and merging"):
        form = integer(deployable(subject(name)), images(8))
        noise = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32)) / 255
        stripes = np.indices((3, 32, 32)).sum(0)[None] % 2
        extreme = np.concatenate([np.zeros((1, 3, 32, 32)), np.ones((1, 3, 32, 32)), stripes, noise, images(2)])
        pixels = form.quantize(torch.from_numpy(extreme.astype(np.float32)))

        values = form.program.run(pixels, keep=range(len(form.program.steps)))
        again = _in_int64(form.program, pixels)
        for number, value in values.items():
            assert value.dtype is form.program.dtypes[number]
            assert torch.equal(value.long(), again[number]), f"step {number} overflowed: {form.program.steps[number]}"


def _in_int64(recorded: Any, pixels: torch.Tensor) -> dict[int, torch.Tensor]:
    """The program with every value in int64, where nothing of 32 bits can overflow."""
    values: dict[int, torch.Tensor] = {}
    for number, step in enumerate(recorded.steps):
        inputs = [values[i] for i in step.inputs]
        if step.kind == "input":
            values[number] = pixels.long()
        elif step.kind == "constant":
            values[number] = recorded.constant(number).long()
        elif step.kind == "cast":
            values[number] = inputs[0]
        elif step.kind == "product":
            values[number] = torch.matmul(inputs[0] - step.options[0], inputs[1])
        else:
            values[number] = program.KINDS[step.kind](*inputs, *step.options)
    return values


def test_a_stream_that_grows_block_by_block_is_not_cut_off() -> None:
    """Blocks that all add the same: each is small, their sum is not."""
    model = tiny("vit_tiny_patch16_224", {**_VIT, "depth": 12})
    with torch.no_grad():
        for block in model.module.blocks:
            block.mlp.fc2.weight *= 0.1
            block.mlp.fc2.bias.fill_(3.0)
            block.attn.proj.weight *= 0.1
            block.mlp.fc2.bias[::2] *= -1
    module = deployable(model)
    x = torch.from_numpy(images(8))
    with torch.no_grad():
        found = _sqnr(module(x), integer(module, images(8))(x))
    assert found > FLOOR_DB, f"{found:.1f} dB"


def test_the_result_does_not_depend_on_threads_or_on_the_batch() -> None:
    form = integer(deployable(subject("deit")), images(8))
    pixels = form.quantize(torch.from_numpy(images(16)))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([form.program(pixels[i : i + 1]) for i in range(16)])
        torch.set_num_threads(3)
        assert torch.equal(form.program(pixels), alone)
    finally:
        torch.set_num_threads(before)


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "norm of queries": ("vit_tiny_patch16_224", {**_VIT, "qk_norm": True}, r"blocks\.0\.attn has q_norm"),
    "gate": ("vit_tiny_patch16_224", {**_VIT, "mlp_layer": "SwiGLU"}, r"blocks\.0\.mlp is a SwiGLU"),
    "rotary": ("eva02_tiny_patch14_224", {"img_size": 28}, "is a Eva"),
    "convolutions": ("levit_128s", {}, "is a Levit"),
    "Swin v2": ("swinv2_tiny_window8_256", {}, "is a SwinTransformerV2"),
    "padding": (
        "swin_tiny_patch4_window7_224",
        {**_SWIN, "window_size": 7},
        r"layers\.0\.blocks\.0 cuts a map of 16x16",
    ),
    "pooling": ("vit_tiny_patch16_224", {**_VIT, "global_pool": "map"}, "pools by 'map'"),
    "any size": ("vit_tiny_patch16_224", {**_VIT, "dynamic_img_size": True}, "images of any size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_integer_form_is_refused_by_the_name_of_the_module(name: str) -> None:
    architecture, arguments, message = REFUSED[name]
    if arguments.get("mlp_layer") == "SwiGLU":
        from timm.layers import SwiGLU

        arguments = {**arguments, "mlp_layer": SwiGLU}
    model = tiny(architecture, arguments)
    for convert in (lambda: integer(deployable(model), images(4)), lambda: prepare(model, images(4))):
        with pytest.raises(BadInput, match=message):
            convert()


def test_a_part_that_computes_something_else_than_its_kind_does_is_found() -> None:
    model = subject("vit")
    model.module.blocks[1].attn.register_forward_hook(lambda part, args, out: out * 1.01)
    with pytest.raises(CheckFailed, match="leaves out"):
        integer(deployable(model), images(4))


BAD_IMAGES: dict[str, Callable[[], np.ndarray]] = {
    "none": lambda: images(4)[:0],
    "another size": lambda: images(4)[:, :, :16],
    "black": lambda: images(4) * 0,
    "normalised": lambda: images(4) * 4 - 2,
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_images_that_set_no_ranges_are_refused(kind: str) -> None:
    with pytest.raises(BadInput, match="images"):
        prepare(subject("vit"), BAD_IMAGES[kind]())


def test_dropout_and_a_second_finish_are_refused() -> None:
    model = tiny("vit_tiny_patch16_224", {**_VIT, "proj_drop_rate": 0.1})
    with pytest.raises(BadInput, match=r"dropout \(blocks\.0\.attn\.proj_drop\)"):
        prepare(model, images(4))
    with pytest.raises(BadInput, match="not an integer form"):
        finish(model)


def test_gradients_reach_every_parameter_and_point_as_those_of_the_float_model() -> None:
    for name in ("deit", "swin, shifted windows and merging"):
        model = subject(name)
        x, target = _normalised(model, images(16)), torch.arange(16) % 10
        trained, plain = prepare(model, images(16)).module, copy.deepcopy(model.module)
        for module in (trained, plain):
            nn.functional.cross_entropy(module(x), target).backward()
        for (path, a), b in zip(trained.named_parameters(), plain.parameters(), strict=True):
            assert a.grad is not None, path
            assert b.grad is not None, path
            cosine = nn.functional.cosine_similarity(a.grad.flatten(), b.grad.flatten(), 0).item()
            assert cosine > 0.7, f"{name} {path}: cosine {cosine:.3f}"


def _normalised(model: Model, given: np.ndarray) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (model.spec.mean, model.spec.std))
    return (torch.from_numpy(given) - mean) / std


def test_a_prepared_model_trains_and_comes_back_as_an_ordinary_checkpoint(tmp_path: Path) -> None:
    given = images(32)
    model = create("pocket_deit_distilled_patch4_32", depth=1, embed_dim=32, num_heads=2, patch_size=8)
    teacher = create("pocket_deit_patch4_32", depth=1, embed_dim=32, num_heads=2, patch_size=8)
    teacher = dataclasses.replace(teacher, trained=True)
    prepared = prepare(model, given)
    data = open_data("digits", "train").take(64, 0)
    config = TrainConfig(
        epochs=2, batch_size=32, warmup_epochs=0, warmup_lr=0, min_lr=0, lr=0.01, rand_augment=None, repeated_aug=1,
        drop_path=0.1, threads=1, distillation=Distillation.HARD,
    )  # fmt: skip
    result = fit(prepared, data, data, config, tmp_path / "work", teacher=teacher)
    before, after = prepared.module.integers.peaks, result.model.module.integers.peaks
    assert not torch.equal(before, after), "the ranges did not follow the training"
    plain = finish(result.model)
    assert type(plain.module) is type(model.module)
    assert plain.name == model.name
    save(plain, tmp_path / "checkpoint")
    again = create(str(tmp_path / "checkpoint"))
    assert again.trained
    assert again.spec.labels == plain.spec.labels
    for key, value in again.module.state_dict().items():
        assert torch.equal(value, plain.module.state_dict()[key]), key
    moved = [k for k, v in model.module.state_dict().items() if not torch.equal(v, again.module.state_dict()[k])]
    assert len(moved) == len(model.module.state_dict()), f"only {moved} were trained"
    x = torch.from_numpy(given)
    with torch.no_grad():
        found = _sqnr(deployable(again)(x), integer(deployable(again), given)(x))
    assert found > FLOOR_DB, f"{found:.1f} dB after training"
