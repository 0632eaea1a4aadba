"""PyTorch's own quantization: where torchao alone gets the network wrong, layers kept by name, weights alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.models import create, deployable
from pocketvit.models.graph import capture, layers
from pocketvit.targets import TARGETS, read_artifact
from pocketvit.targets._torch_program import exported as export_again
from pocketvit.targets._torch_program import layer_nodes, name_of, named, observed
from pocketvit.targets._torch_quantize import EightBits, FourBits, LayerQuantizer, PercentileObserver, eight_bits
from pocketvit.types import ASKED, Calibrator, InputSpec, Precision, Quantization

MODELS = ("pocket_deit_distilled_patch4_32", "pocket_mobilevit_32", "pocket_moat_48")


class Branching(nn.Module):
    """A convolution that a shortcut and a norm both read, as at the start of a MOAT."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)
        self.norm.running_mean.uniform_(-2, 2)
        self.norm.running_var.uniform_(4, 9)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.stem(image)
        return self.head((x + self.expand(self.norm(x))).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["executorch", "torch_export"])
def test_a_norm_is_not_folded_into_what_a_shortcut_reads(backend: str) -> None:
    torch.manual_seed(0)
    module = Branching().eval().requires_grad_(False)
    images = torch.rand(16, 3, 16, 16)
    spec = InputSpec(size=(3, 16, 16))
    graph, _ = named(module, spec)
    run = export_again(observed(graph, spec, _quantizer(backend), images.numpy()), spec).module()
    wanted = module(images)
    found = torch.cat([run(image[None]) for image in images])
    noise = (wanted - found).square().sum() / wanted.square().sum()
    decibels = float(-10 * torch.log10(noise))
    # 8-bit integers keep some 35 dB of so small a network; with the norm folded into the shortcut it is -1
    assert decibels > 20, f"{decibels:.1f} dB"


def _quantizer(backend: str) -> object:
    if backend == "executorch":
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )

        return XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    return LayerQuantizer({"stem", "expand", "head"}, eight_bits(torch.uint8, Calibrator.MSE))


class Mixed(nn.Module):
    """Every kind of layer: plain, depthwise and transposed convolutions, linear, a product with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.mixer = nn.Parameter(torch.randn(16, 64) / 4)
        self.odd = nn.Linear(64, 99)
        self.wide = nn.Linear(99, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.up(torch.relu(self.depthwise(self.stem(image)))).flatten(2).mT @ self.mixer
        return self.head(self.wide(torch.relu(self.odd(x))).mean(1))


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("precision", "floor"),
    # 8-bit weights leave 40 dB in a layer, 4-bit ones 20, of which a few layers take some
    [(Precision.W8, 35.0), (Precision.W4, 18.0), (Precision.W8A8_DYNAMIC, 28.0), (Precision.W8A8, 25.0)],
)
def test_every_kind_of_layer(precision, floor, mixed, draft, digits, logits_of, sqnr_db, tmp_path):
    target, images = TARGETS.get("torch_export"), digits(16, 32)
    made = target.export(mixed, draft(tmp_path / "m.pt2", "torch_export", precision), images[8:])
    found = sqnr_db(logits_of(mixed, images[:8]), target.load(read_artifact(made.path), 1)(images[:8]))
    assert found > floor, f"{found:.1f} dB"
    assert made.quantized is not None
    not_linear = {"up", "mixer"} if precision in (Precision.W8A8, Precision.W8A8_DYNAMIC) else set()
    assert set(made.quantized.kept) == not_linear
    assert (made.quantized.layers, made.quantized.of) == (7 - len(not_linear), 7)


def test_a_layer_kept_is_float_bit_for_bit_and_said_to_be_asked_for(mixed, draft, digits, tmp_path):
    target, images = TARGETS.get("torch_export"), digits(8, 32)
    for precision in (Precision.W8, Precision.W4, Precision.W8A8, Precision.W8A8_DYNAMIC):
        path = tmp_path / f"{precision}.pt2"
        wanted = replace(
            draft(path, "torch_export", precision),
            quantization=Quantization(keep=dict.fromkeys(("wide", "depthwise"), ASKED)),
        )
        made = target.export(mixed, wanted, images)
        stored = torch.export.load(path).state_dict
        assert made.quantized is not None
        assert {made.quantized.kept[name] for name in ("wide", "depthwise")} == {ASKED}
        for layer in (mixed.wide, mixed.depthwise):
            held = [t for t in stored.values() if t.shape == layer.weight.shape and t.dtype == torch.float32]
            assert any(torch.equal(t, layer.weight) for t in held), f"{precision}: {sorted(stored)}"


def test_four_bits_take_half_the_room_of_eight(draft, digits, tmp_path):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 256), nn.ReLU(), nn.Linear(256, 512), nn.Linear(512, 10))
    wide, sizes = wide.eval().requires_grad_(False), {}
    for precision in (Precision.FP32, Precision.W8, Precision.W4):
        path = tmp_path / f"{precision}.pt2"
        keep = () if precision is Precision.FP32 else ("1",)  # the first layer would be 8 bits in either
        wanted = replace(
            draft(path, "torch_export", precision), quantization=Quantization(keep=dict.fromkeys(keep, ASKED))
        )
        TARGETS.get("torch_export").export(wide, wanted, digits(2, 32))
        sizes[precision] = path.stat().st_size - 4 * 3072 * 256
    # 256 x 512 weights of 1 byte, or 1/2 and two 16-bit numbers for 32 of them; and the graph, some kilobytes
    saved = sizes[Precision.W8] - sizes[Precision.W4]
    assert saved > 256 * 512 * (1 - 0.5 - 4 / 32) - 10_000, f"{saved} bytes less, {sizes}"


@pytest.mark.parametrize("shape", [(8, 9), (8, 27), (4, 16, 3, 3), (5, 37), (3, 64), (2, 1)])
def test_integers_give_back_their_weight(shape):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    for stored, bits in ((EightBits(weight), 8), (FourBits(weight, 32), 4)):
        back = stored()
        assert back.shape == weight.shape
        assert back.dtype == torch.float32
        peak = weight.flatten(1).amax(1) - weight.flatten(1).amin(1)
        error = (back - weight).flatten(1).abs().amax(1)
        # half a step of the row's range, 15% of which may be cut off at an end
        allowed = peak * (0.16 + 0.5 / 15) if bits == 4 else 2 * peak * (0.16 + 0.5 / 127) + 1e-6
        assert (error <= allowed + 2**-7 * weight.abs().max()).all(), f"{bits} bits: {error.max():.3g} of {peak.max()}"


def test_all_zero_weights_stay_zero_and_finite():
    for stored in (EightBits(torch.zeros(4, 8)), FourBits(torch.zeros(4, 8), 32)):
        assert torch.equal(stored(), torch.zeros(4, 8))


def test_the_percentile_leaves_an_outlier_out_and_nothing_else():
    values = torch.cat((torch.linspace(-1, 3, 100_001), torch.tensor([40.0])))
    observer = PercentileObserver(
        dtype=torch.uint8, quant_min=0, quant_max=255, qscheme=torch.per_tensor_affine, eps=2**-16
    )
    observer(values)
    scale, _ = observer.calculate_qparams()
    # from -1 to 3, to a bin of 41/2048 at either end
    assert 4 / 255 <= float(scale) <= (4 + 3 * 41 / 2048) / 255, f"range {255 * float(scale):.3f}"


def test_a_calibrator_chosen_is_the_one_used(mixed, draft, digits, tmp_path):
    target, images = TARGETS.get("torch_export"), digits(8, 32)
    logits = {}
    for chosen in (None, *target.calibrators):
        path = tmp_path / f"{chosen}.pt2"
        wanted = replace(draft(path, "torch_export", Precision.W8A8), quantization=Quantization(calibrator=chosen))
        target.export(mixed, wanted, images)
        logits[chosen] = target.load(read_artifact(path), 1)(images[:4])
    assert np.array_equal(logits[None], logits[target.calibrators[0]])
    assert len({logits[chosen].tobytes() for chosen in target.calibrators}) == 3


@pytest.mark.parametrize("name", [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_layers_are_found_by_name_exactly_once(name):
    model = create(name)
    module = deployable(model).requires_grad_(False)
    graph, found = named(module, model.spec)
    names = [name_of(node) for node in layer_nodes(graph.graph)]
    assert len(set(names)) == len(names) == len(found)
    assert names == [layer.name for layer in layers(capture(module, model.spec))]
    assert set(names) <= {name for name, _ in model.module.named_modules()} | {
        name for name, _ in model.module.named_parameters()
    }


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("name", [MODELS[0], *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_each_layer_can_be_kept_alone(name, dynamic):
    """Marked, observed and converted as for a file, with one layer kept: three by default, else every tenth.

    torchao takes 20 seconds for each program that has batch norms of their own, as the MOAT's.
    """
    from pocketvit.targets._torch_program import quantized_layers

    model = create(name)
    module = deployable(model).requires_grad_(False)
    images = np.full((1, *model.spec.size), 0.5, dtype=np.float32)
    _, found = named(module, model.spec)
    names = [layer.name for layer in found]
    config = eight_bits(torch.uint8, None if dynamic else Calibrator.MINMAX)
    for kept in (names[0], names[len(names) // 2], names[-1]) if name == MODELS[0] else names[::10]:
        graph, _ = named(module, model.spec)
        quantizer = LayerQuantizer(set(names) - {kept}, config)
        program = export_again(observed(graph, model.spec, quantizer, None if dynamic else images), model.spec)
        integers = quantized_layers(program)
        assert [name for name in names if not integers[name]] == [kept]
