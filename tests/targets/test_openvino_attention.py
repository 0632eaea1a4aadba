"""Attention over four keys, which OpenVINO's own fusion gets wrong, and over other numbers, which is left alone."""

from __future__ import annotations

import openvino
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets._openvino_attention import spell_out_four_keys
from pocketvit.types import Precision


class Attention(nn.Module):
    """Four heads of 28; how: "fused" by torch, "spelt" out, "masked", "hidden" keys (boolean mask), "causal"."""

    def __init__(self, keys: int, how: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.how = how
        self.qkv, self.proj = nn.Linear(112, 336), nn.Linear(112, 112)
        nn.init.normal_(self.qkv.weight, std=0.3)
        self.register_buffer("bias", torch.randn(4, keys, keys))
        self.register_buffer("seen", torch.rand(keys, keys) > 0.3)
        self.seen.fill_diagonal_(True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, 28).permute(2, 0, 3, 1, 4).unbind(0)
        if self.how == "spelt":
            y = (q @ k.transpose(-1, -2) * 0.2).softmax(-1) @ v
        elif self.how == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        else:
            mask = {"fused": None, "masked": self.bias, "hidden": self.seen}[self.how]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(y.transpose(1, 2).reshape(b, n, 112))


@pytest.mark.parametrize("how", ["fused", "spelt", "masked", "hidden", "causal"])
@pytest.mark.parametrize("keys", [4, 5])
def test_the_file_computes_what_the_module_does(keys: int, how: str, sqnr_db) -> None:
    module = Attention(keys, how).eval()
    x = torch.randn(4, keys, 112)
    model = openvino.convert_model(torch.export.export(module, (x,)))
    before = [op.get_type_name() for op in model.get_ordered_ops()]
    spell_out_four_keys(model)
    kinds = [op.get_type_name() for op in model.get_ordered_ops()]
    assert ("LogSoftmax" in kinds) == (keys == 4)
    if keys != 4:
        assert kinds == before
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    with torch.no_grad():
        found = sqnr_db(module(x).numpy(), next(iter(compiled([x.numpy()]).values())))
    assert found > 100, f"{found:.1f} dB; rounding alone leaves 120 to 135"


def test_openvino_itself_still_gets_four_keys_wrong(sqnr_db) -> None:
    """Skipped everywhere, OpenVINO is mended, and `_openvino_attention.py` can go."""
    module = Attention(4, "fused").eval()
    x = torch.randn(4, 4, 112)
    compiled = openvino.Core().compile_model(
        openvino.convert_model(torch.export.export(module, (x,))), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    with torch.no_grad():
        found = sqnr_db(module(x).numpy(), next(iter(compiled([x.numpy()]).values())))
    if found > 100:
        pytest.skip(f"{found:.1f} dB: this machine's OpenVINO has no such kernel, or it is mended")
    assert found < 40, f"{found:.1f} dB"


class Patches(nn.Module):
    """Attention over the patches of an image of 8x8, whose number only the size of the image tells."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attention, self.head = nn.Conv2d(3, 112, 4, 4), Attention(4, "fused"), nn.Linear(112, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.attention(self.embed(x).reshape(x.shape[0], 112, -1).transpose(1, 2)).mean(1))


def test_a_file_holds_it_too_where_only_the_image_says_how_many_keys_there_are(
    draft, digits, sqnr_db, tmp_path
) -> None:
    module = Patches().eval()
    images = digits(4, 8)
    openvino_ = TARGETS.get("openvino")
    made = openvino_.export(module, draft(tmp_path / "m.xml", "openvino", Precision.FP32, 8), None)
    with torch.no_grad():
        found = sqnr_db(module(torch.from_numpy(images)).numpy(), openvino_.load(read_artifact(made.path), 1)(images))
    assert found > 100, f"{found:.1f} dB"
