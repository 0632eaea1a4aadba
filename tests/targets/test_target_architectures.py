"""Attention, distillation tokens, shifted windows and convolutions: the operators that converters trip over."""

from __future__ import annotations

import pytest

from pocketvit.targets import TARGETS, read_artifact
from pocketvit.types import Precision

MODELS = {
    # two tokens, two heads, averaged
    "deit_tiny_distilled_patch16_224": (
        32,
        {"img_size": 32, "patch_size": 8, "depth": 1, "embed_dim": 64, "num_heads": 2},
    ),
    # rolled windows and `alias`, which coremltools lacks
    "swin_tiny_patch4_window7_224": (
        56,
        {"img_size": 56, "depths": (2, 2), "embed_dim": 32, "num_heads": (2, 4), "window_size": 7},
    ),
    # depthwise convolutions, layer norm over channels and cross-covariance attention
    "edgenext_xx_small": (64, {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48), "heads": (2, 2, 2, 2)}),
}
ALSO = [  # shares everything but the quantizer with what the contract tests run on the ViT
    ("onnx", Precision.FP32),
    ("onnx", Precision.W8A8),
    ("coreml", Precision.W8),
    ("openvino", Precision.W8A8),
    ("torch_export", Precision.W8A8),
    ("executorch", Precision.FP32),
    ("executorch", Precision.W8A8),
    ("executorch", Precision.W8A8_DYNAMIC),
]


ALL = [(name, *also) for name in MODELS for also in [("onnx", Precision.W8A8_DYNAMIC), *ALSO]]
QUICK = ("edgenext_xx_small", "onnx", Precision.W8A8_DYNAMIC)


@pytest.mark.parametrize(
    ("name", "target_name", "precision"),
    [pytest.param(*one, marks=() if one == QUICK else pytest.mark.slow) for one in ALL],
)
def test_other_architectures_survive(name, target_name, precision, tiny, digits, draft, logits_of, sqnr_db, tmp_path):
    size, arguments = MODELS[name]
    model, images = tiny(name, **arguments), digits(16, size)
    target = TARGETS.get(target_name)
    made = target.export(model, draft(tmp_path / f"m{target.suffix}", target_name, precision, size), images[4:])
    found = sqnr_db(logits_of(model, images[:4]), target.load(read_artifact(made.path), 2)(images[:4]))
    print(f"{name} {target_name}:{precision} {found:.1f} dB, quantized {made.quantized}")
    assert found >= precision.floor_db, f"{name} as {target_name}:{precision} is {found:.1f} dB"
