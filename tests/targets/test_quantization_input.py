"""What a quantizer is given: images that can set ranges, a float model, options that exist; refused before work."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.errors import BadInput
from pocketvit.targets import TARGETS
from pocketvit.types import ASKED, Calibrator, Precision, Quantization

NEED_IMAGES = [
    (name, precision)
    for name in TARGETS
    for precision in TARGETS.get(name).precisions
    if TARGETS.get(name).needs_calibration(precision)
]


@pytest.fixture
def refused(vit, tmp_path, draft):
    """refused(target, precision, images, module, quantization): the sentence, after which nothing is left."""

    def call(name, precision, images, module=vit, quantization=Quantization()):
        target = TARGETS.get(name)
        wanted = replace(draft(tmp_path / f"m{target.suffix}", name, precision), quantization=quantization)
        with pytest.raises(BadInput) as found:
            target.export(module, wanted, images)
        assert list(tmp_path.iterdir()) == []
        return str(found.value)

    return call


@pytest.mark.parametrize(("name", "precision"), NEED_IMAGES)
def test_images_that_cannot_set_ranges(name, precision, refused, images):
    normalised = (images - 0.45) / 0.225
    assert "give RGB in [0, 1], as the normalisation is inside the model" in refused(name, precision, normalised)
    assert "give RGB in [0, 1]" in refused(name, precision, images * 255)
    broken = images.copy()
    broken[1, 0, 3, 3] = np.nan
    assert "give RGB in [0, 1]" in refused(name, precision, broken)
    assert "Every pixel of the calibration images is 0" in refused(name, precision, np.zeros_like(images))
    assert "(3, 16, 32)" in refused(name, precision, images[:, :, :16])
    assert "needs images to calibrate on, and got none" in refused(name, precision, None)


@pytest.mark.parametrize("name", list(TARGETS))
def test_a_model_that_is_quantized_already(name, refused, images, vit):
    import copy

    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    module = copy.deepcopy(vit)
    quantize_(module, Int8WeightOnlyConfig())
    assert "is quantized already (it holds" in refused(name, Precision.W8A8, images, module)
    packed = nn.Sequential(vit, torch.ao.nn.quantized.Linear(10, 10))
    assert "is quantized already" in refused(name, Precision.W8A8, images, packed)


@pytest.mark.parametrize("name", list(TARGETS))
def test_options_that_do_not_exist(name, refused, images):
    said = refused(name, Precision.W8A8, images, quantization=Quantization(keep={"blocks.0.attn.qvk": ASKED}))
    assert "no layer" in said
    assert "Did you mean" in said
    target = TARGETS.get(name)
    for missing in set(Calibrator) - set(target.calibrators):
        said = refused(name, Precision.W8A8, images, quantization=Quantization(calibrator=missing))
        assert f"{name} has no calibrator {missing}; it has {target.calibrators[0]}" in said


@pytest.mark.parametrize("size", [0, 8, 24, 33])
def test_group_sizes_that_no_format_holds(size):
    with pytest.raises(BadInput, match="power of two from 16 to 4096"):
        Quantization(group_size=size)
