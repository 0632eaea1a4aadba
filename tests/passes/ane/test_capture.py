"""A captured program computes what the model does; what cannot be captured is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pocketvit.errors import BadInput
from pocketvit.models import Model, create, weights_sha256
from pocketvit.passes.ane import Ane, ane
from pocketvit.passes.ane.capture import capture

from .subjects import Attention, Function, error, expected, images, kinds, lively, on_tokens, tiny, tokens

REARRANGED = {
    "windows": lambda x: x.reshape(1, 3, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(4, -1),
    "unflatten and movedim": lambda x: x.unflatten(2, (2, 4)).movedim((2, -1), (0, 1)).flatten(),
    "movedim backwards": lambda x: x.movedim(3, 1),
    "squeeze and unsqueeze": lambda x: x.unsqueeze(-2).squeeze(0).squeeze(-2).unsqueeze(0),
    "select and narrow": lambda x: x.select(1, -1).narrow(-1, 2, 4),
    "slices": lambda x: x[:, 1:, -6:-1],
    "every second": lambda x: x[:, :, 1::2, ::2],
    "every third": lambda x: x[:, :, ::3],
    "split": lambda x: torch.cat(x.split(3, -1)[::-1], -1),
    "chunk": lambda x: torch.cat(x.chunk(3, 2)[::-1], 2),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1]),
    "expand of nothing": lambda x: x.expand(1, -1, 8, 8),
    "expand": lambda x: x.mean(1, keepdim=True).expand(-1, 5, -1, -1),
    "6 as 2 x 3 and again": lambda x: x[..., :6].unflatten(-1, (2, 3)).transpose(-1, -2).reshape(1, 3, 8, 2, 3).mT,
    "a matrix": lambda x: x.flatten(1).reshape(8, 24).t(),
}


@pytest.mark.parametrize("name", REARRANGED)
def test_moves_of_every_kind_are_torchs_own(name: str) -> None:
    def run(m: nn.Module, x: Tensor) -> Tensor:
        return REARRANGED[name](x + 1).flatten().relu()[None]

    model = tiny(run)
    assert (found := error(capture(model), model)) == 0, f"{name} is off by {found:.1e}"


def test_moves_in_a_row_are_one() -> None:
    program = capture(
        tiny(lambda m, x: x.reshape(1, 3, 2, 4, 2, 4).permute(0, 2, 4, 3, 5, 1).reshape(4, 16, 3).relu())
    )
    assert kinds(program) == {"image": 1, "rearrange": 1, "relu": 1}


def _attention(mask: Tensor | None) -> Callable[[nn.Module, Tensor], Tensor]:
    def attend(m: nn.Module, x: Tensor) -> Tensor:
        q, k, v = x.flatten(1).reshape(1, 3, 2, 16, 2).unbind(1)
        return nn.functional.scaled_dot_product_attention(q, k, v, mask, scale=0.3).flatten(1)

    return attend


@pytest.mark.parametrize("masked", ["no mask", "added", "of booleans"])
def test_attention_is_spelt_out(masked: str) -> None:
    mask = {"no mask": None, "added": torch.randn(16, 16), "of booleans": torch.rand(16, 16) > 0.3}[masked]
    model = tiny(_attention(mask), (3, 8, 8))
    program = capture(model)
    assert kinds(program)["matmul"] == 2
    assert kinds(program)["softmax"] == 1
    assert (found := error(program, model)) < 2e-6, f"{masked}: off by {found:.1e}"


def test_norms_products_and_means_are_written_one_way() -> None:
    weight = torch.randn(8, 5)

    def run(m: nn.Module, x: Tensor) -> Tensor:
        y = m.norm(torch.addmm(torch.ones(5), x.flatten(0, 2), weight)) @ weight.T
        return m.batch(y.reshape(1, 3, 8, 8)).sum((1, 2)) + x.mean((1, 2)) + x.amax((1, 2))

    model = tiny(run, norm=nn.LayerNorm(5), batch=nn.BatchNorm2d(3))
    program = capture(model)
    assert {"linear", "layer_norm", "batch_norm"} <= set(kinds(program))
    assert not {"addmm", "mm", "native_layer_norm"} & set(kinds(program))
    assert (found := error(program, model)) < 2e-6, f"off by {found:.1e}"


def test_constants_are_computed_here() -> None:
    table, index = torch.randn(5, 8), torch.arange(8) % 5
    program = capture(tiny(lambda m, x: (x + table[index].relu()).flatten(1)))
    assert kinds(program) == {"image": 1, "add": 1, "rearrange": 1}


@pytest.mark.parametrize("name", ["test_vit", "test_efficientnet", "test_convnext", "test_resnet", "test_mambaout"])
def test_small_models_of_timm_compute_the_same(name: str) -> None:
    model = lively(name)
    before = weights_sha256(model.module)
    assert (found := error(capture(model), model)) <= 2e-6, f"{name} is off by {found:.1e}"
    assert weights_sha256(model.module) == before


def test_the_module_of_every_operation_is_known() -> None:
    paths = {op.path for op in capture(create("test_vit")).ops}
    assert {"patch_embed.proj", "blocks.0.attn.qkv", "blocks.5.mlp.fc2", "blocks.0.attn", "head"} <= paths, paths


# -- what is refused ----------------------------------------------------------------------------------------------


@torch.library.custom_op("pocketvit_tests::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return 2 * x


@twice.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


REFUSED = {
    "control flow": (
        lambda m, x: torch.cond(x.sum() > 0, lambda y: y.relu(), lambda y: -y, (x,)),
        "control flow",
    ),
    "a branch on the image": (lambda m, x: x.relu() if x.sum() > 0 else -x, "torch.export does not get through"),
    "a custom operator": (lambda m, x: torch.ops.pocketvit_tests.twice(x), "custom operator pocketvit_tests.twice"),
    "as many as are positive": (lambda m, x: x * x[x > 0].sum(), "a shape that depends on the image"),
    "places of what is positive": (lambda m, x: x * x.nonzero().sum(), "a shape that depends on the image"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_pass_does_not_see_through_is_refused_by_module(name: str) -> None:
    function, says = REFUSED[name]
    model = tiny(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Function(function)), nn.Flatten()))
    hash_before, x = weights_sha256(model.module), images(model, 2)[1:]
    before = expected(model, x)
    with pytest.raises(BadInput) as refused:
        ane(model)
    text = str(refused.value)
    assert says in text, text
    assert "module '1.1'" in text, text
    assert "model is as it was" in text, text
    assert weights_sha256(model.module) == hash_before
    assert torch.equal(expected(model, x), before)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.module.modules())


def test_code_of_the_model_itself_is_called_that() -> None:
    with pytest.raises(BadInput, match="the model's own code calls the custom operator"):
        capture(tiny(lambda m, x: torch.ops.pocketvit_tests.twice(x).flatten(1)))


def test_a_rewritten_model_is_refused() -> None:
    model = tiny(on_tokens(lambda m, x: m.attn(x)), **tokens(attn=Attention()))
    once = ane(model)
    before, x = weights_sha256(once.module), images(model)
    logits = expected(once, x)
    for wrapped in (once, replace(once, module=nn.Sequential(once.module))):
        with pytest.raises(BadInput, match=r"tiny\+ane is rewritten already; rewrite the model"):
            ane(wrapped, Ane(heads=False))
    assert weights_sha256(once.module) == before
    assert torch.equal(expected(once, x), logits)


def test_an_autocast_around_a_part_is_seen_through() -> None:
    """Swin v2's code switches autocast off around parts of it."""

    def run(m: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            y = m.conv(x.float())
        return y.relu().flatten(1)

    model = tiny(run, conv=nn.Conv2d(3, 4, 3))
    program = capture(model)
    assert kinds(program)["conv2d"] == 1, kinds(program)
    assert (found := error(program, model)) <= 1e-6, f"off by {found:.1e}"


def test_a_model_of_one_name_is_named_in_the_refusal() -> None:
    model: Model = replace(tiny(lambda m, x: x if x.sum() > 0 else -x), name="my_vit")
    with pytest.raises(BadInput, match=r"^my_vit cannot be rewritten"):
        capture(model)
