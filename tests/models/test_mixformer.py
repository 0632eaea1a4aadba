"""MixFormer: the published figures, the paper's formulas, timm's manners, training and every target."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from pocketvit.artifacts import export, proof_images
from pocketvit.data import batches, open_data
from pocketvit.errors import BadInput
from pocketvit.measure.cost import count
from pocketvit.models import Model, create
from pocketvit.models.mixformer import MixFormer

from .mixformer_reference import Reference

# isort: split
import timm
from timm.layers import ConvNormAct


@dataclass(frozen=True, kw_only=True, slots=True)
class Published:
    """The paper's tables. millions: parameters; giga: its FLOPs at 224 px, which are multiply-accumulates."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    drop_path: float
    millions: int
    giga: float


PUBLISHED = {
    "b0": Published(width=24, depths=(1, 2, 6, 6), heads=(3, 6, 12, 24), drop_path=0.0, millions=5, giga=0.4),
    "b1": Published(width=32, depths=(1, 2, 6, 6), heads=(2, 4, 8, 16), drop_path=0.0, millions=8, giga=0.7),
    "b2": Published(width=32, depths=(2, 2, 8, 8), heads=(2, 4, 8, 16), drop_path=0.05, millions=10, giga=0.9),
    "b3": Published(width=48, depths=(2, 2, 8, 6), heads=(3, 6, 12, 24), drop_path=0.1, millions=17, giga=1.9),
    "b4": Published(width=64, depths=(2, 2, 8, 8), heads=(4, 8, 16, 32), drop_path=0.2, millions=35, giga=3.6),
    "b5": Published(width=96, depths=(1, 2, 8, 6), heads=(6, 12, 24, 48), drop_path=0.3, millions=62, giga=6.8),
    "b6": Published(width=96, depths=(2, 4, 16, 12), heads=(6, 12, 24, 48), drop_path=0.5, millions=119, giga=12.7),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Counted:
    """macs: as measure.cost counts; products: those of them in matrices and convolutions. model: without weights."""

    row: Published
    model: MixFormer
    macs: int
    products: int


@pytest.fixture(scope="module", params=PUBLISHED)
def variant(request: pytest.FixtureRequest) -> Counted:
    """Every variant, counted at 224 px without computing anything."""
    with torch.device("meta"):
        model = timm.create_model(f"mixformer_{request.param}").eval()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(torch.zeros(1, 3, 224, 224, device="meta"))
    macs = count(model, (3, 224, 224)).macs
    return Counted(row=PUBLISHED[request.param], model=model, macs=macs, products=counter.get_total_flops() // 2)


def products(row: Published) -> int:
    """Multiply-accumulates at 224 px, added up by hand from the configuration."""
    half = row.width // 2
    total = 112**2 * half * (27 + 2 * 9 * half) + 56**2 * half * row.width * 4  # stem
    for stage, depth in enumerate(row.depths):
        C, tokens = row.width * 2**stage, (56 // 2**stage) ** 2
        D = C // 2
        block = tokens * (C * D + C * C)  # into the branches
        block += tokens * (3 * D * D + 2 * 49 * D)  # queries, keys and values; the two products of attention
        block += tokens * (9 * C + C * D)  # depthwise convolution, to half the width
        block += C * (C // 8) + (C // 8) * D + tokens * (D * (C // 16) + C // 16)  # the two gates
        block += tokens * (C * C + 8 * C * C)  # projection, feed-forward network
        total += depth * block
        if stage < 3:
            total += (tokens // 4) * 4 * C * 2 * C  # to the next stage
    return total + 49 * 8 * row.width * 1280 + 1280 * 1000


def test_parameters_and_operations_are_the_published(variant: Counted) -> None:
    """Within 2% of some number that rounds to the printed one."""
    row = variant.row
    millions = sum(p.numel() for p in variant.model.parameters()) / 1e6
    assert 0.98 * (row.millions - 0.5) <= millions <= 1.02 * (row.millions + 0.5), f"{millions:.2f} M"
    giga = variant.macs / 1e9
    assert 0.98 * (row.giga - 0.05) <= giga <= 1.02 * (row.giga + 0.05), f"{giga:.3f} G, published {row.giga}"


def test_products_are_those_added_up_by_hand(variant: Counted) -> None:
    assert variant.products == products(variant.row)


def test_stochastic_depth_grows_to_the_rate_of_the_variant(variant: Counted) -> None:
    rates = [getattr(part.drop_path, "drop_prob", 0.0) for stage in variant.model.stages for part in stage.blocks]
    steps = [variant.row.drop_path * i / (len(rates) - 1) for i in range(len(rates))]
    assert rates == pytest.approx(steps, abs=1e-6)


def small(window: tuple[int, int] | int = 7, **kwargs: object) -> MixFormer:
    """A narrow form of the family, whose norms and statistics are as training leaves them, in double precision."""
    torch.manual_seed(0)
    depths, heads = kwargs.pop("depths", (1, 1, 2, 1)), (1, 2, 2, 4)
    model = MixFormer(embed_dim=16, depths=depths, num_heads=heads, window_size=window, num_classes=5, **kwargs)
    for name, tensor in model.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 1.5)
        elif tensor.is_floating_point() and tensor.ndim == 1:
            tensor.add_(torch.randn_like(tensor) * 0.2)
        elif name.endswith(".table"):
            tensor.normal_()
        elif tensor.ndim == 2:
            tensor.mul_(5)  # 0.02 of the initialisation leaves attention and gates without contrast
    return model.double().eval()


@pytest.mark.parametrize(
    ("window", "size"),
    [((2, 2), (64, 32)), ((7, 7), (56, 84)), ((7, 7), (37, 50)), ((3, 5), (64, 64)), ((7, 7), (5, 3))],
    ids=["nothing-padded", "padded-later", "odd-sides", "oblong-window", "smaller-than-a-patch-row"],
)
def test_it_computes_the_papers_formulas(window: tuple[int, int], size: tuple[int, int]) -> None:
    model = small(window)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    before = image.clone()
    reference = Reference(model.state_dict(), (1, 1, 2, 1), (1, 2, 2, 4), window)
    with torch.inference_mode():
        stages = model.forward_intermediates(image, intermediates_only=True)
        logits = model(image)
    assert torch.equal(image, before), "the caller's images were edited"
    for found, wanted in zip([*stages, logits], [*reference.features(image), reference.logits(image)], strict=True):
        wanted = wanted.permute(0, 3, 1, 2) if wanted.ndim == 4 else wanted
        assert found.shape == wanted.shape
        # sums of a few thousand terms in double precision, five blocks deep
        worst = float((found - wanted).abs().max() / wanted.abs().max())
        assert worst < 1e-11, f"{worst:.2g} of the largest at {tuple(wanted.shape)}"


@pytest.mark.parametrize("part", ["channel_gate.1", "spatial_gate.1", "attention.relative"])
def test_the_comparison_would_see_a_missing(part: str) -> None:
    """Each moves the output by far more than the 1e-11 that the comparison allows."""
    attention = small().stages[1].blocks[0].attn
    x = torch.randn(1, 14, 14, 32, dtype=torch.float64)
    with torch.no_grad():
        there = attention(x)
        for parameter in attention.get_submodule(part).parameters():
            parameter.zero_()
        change = float((attention(x) - there).norm() / there.norm())
    assert change > 1e-4, f"{change:.2g}"


@pytest.mark.parametrize("size", [(64, 64), (224, 224), (52, 77)])
def test_features_at_four_strides(size: tuple[int, int]) -> None:
    model = timm.create_model("mixformer_b0", features_only=True).eval()
    assert model.feature_info.channels() == [24, 48, 96, 192]
    assert model.feature_info.reduction() == [4, 8, 16, 32]
    assert model.feature_info.module_name() == [f"stages.{i}" for i in range(4)]
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, *size))
    sides = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (4, 8, 16, 32)]
    assert [tuple(m.shape) for m in maps] == [(1, c, *s) for c, s in zip((24, 48, 96, 192), sides, strict=True)]


def test_chosen_features_are_those_of_the_whole_and_leave_the_rest_out() -> None:
    image = torch.randn(1, 3, 64, 64)
    whole = timm.create_model("mixformer_b0").eval()
    last, every = whole.forward_intermediates(image, norm=True)
    assert torch.equal(last, whole.forward_features(image))
    for wanted in ([0, 2], [-1], 2):
        some = timm.create_model("mixformer_b0", features_only=True, out_indices=wanted).eval()
        some.load_state_dict({f"model.{k}": v for k, v in whole.state_dict().items()}, strict=False)
        found = some(image)
        indices = [0, 2] if wanted == [0, 2] else [3] if wanted == [-1] else [2, 3]
        raw = whole.forward_intermediates(image, indices=indices, intermediates_only=True, stop_early=True)
        for a, b in zip(found, raw, strict=True):
            assert torch.equal(a, b)
        left = {name.split(".")[2] for name in some.state_dict() if name.startswith("model.stages")}
        assert left == {str(i) for i in range(max(indices) + 1)}
        assert not any(name.startswith(("model.head", "model.widen")) for name in some.state_dict())
    assert torch.allclose(every[-1].mean(1), torch.zeros(1, 2, 2), atol=1e-5), "the last is not normed"


def test_the_head_goes_and_comes_back() -> None:
    image = torch.randn(2, 3, 64, 64)
    model = timm.create_model("mixformer_b0", num_classes=0).eval()
    assert model(image).shape == (2, model.head_hidden_size) == (2, 1280)
    features = model.forward_features(image)
    assert features.shape == (2, model.num_features, 2, 2)
    assert torch.allclose(model.forward_head(features, pre_logits=True), features.mean((2, 3)), atol=1e-6)
    model.reset_classifier(7)
    assert model(image).shape == (2, 7) == (2, model.num_classes)
    assert model.get_classifier().out_features == 7
    model.reset_classifier(0, "")
    assert torch.equal(model(image), features)
    grey = timm.create_model("mixformer_b0", in_chans=1, num_classes=3, global_pool="max", drop_rate=0.1)
    assert grey.eval()(image[:, :1]).shape == (2, 3)
    assert grey.head.drop.p == 0.1


def test_a_width_that_does_not_divide_is_refused() -> None:
    for width, heads in ((24, 5), (8, 1)):
        with pytest.raises(BadInput, match=rf"{width} wide cannot give half of its channels to {heads} attention"):
            MixFormer(embed_dim=width, depths=(1,), num_heads=(heads,))


def test_training_reaches_every_parameter() -> None:
    created = create("mixformer_b0", num_classes=10)
    model = created.module.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    digits = open_data("digits", "train").take(16, seed=0)
    ((pixels, labels),) = batches(digits, dataclasses.replace(created.spec, size=(3, 32, 32)), 16)
    losses = []
    for _ in range(2):
        loss = F.cross_entropy(model(torch.from_numpy(pixels) * 2 - 1), torch.from_numpy(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # a shift before a batch norm is taken out again by it: only rounding, or nothing, is left of its gradient
    shifts = {f"{n}.conv.bias" for n, part in model.named_modules() if isinstance(part, ConvNormAct)}
    gradients = {name: p.grad for name, p in model.named_parameters()}
    unmoved = {name for name, g in gradients.items() if g is None or not g.isfinite().all() or not g.any()}
    assert unmoved <= shifts, unmoved - shifts
    assert losses[1] < losses[0], losses


def test_checkpointing_gives_the_same_gradients() -> None:
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    found: list[list[Tensor]] = []
    for enable in (False, True):
        model = small(4).train()
        model.set_grad_checkpointing(enable)
        model(images).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for plain, again in zip(*found, strict=True):
        assert torch.allclose(plain, again, rtol=1e-9, atol=1e-12)


def test_groups_of_parameters(variant: Counted) -> None:
    """Position tables do not decay; every parameter has a place in the order from the image to the classifier."""
    from timm.models import group_parameters

    model = variant.model
    assert len(model.no_weight_decay()) == sum(variant.row.depths)
    groups = group_parameters(model, model.group_matcher(), reverse=False)
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=False)
    assert len(coarse) == 1 + 4 + 1
    assert len(groups) > len(coarse)


class Ranks(TorchDispatchMode):
    """Remembers the number of axes of every tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Compute as ever, and look at the result."""
        out = func(*args, **(kwargs or {}))
        self.seen += [t.ndim for t in (out if isinstance(out, tuple | list) else [out]) if isinstance(t, Tensor)]
        return out


def test_no_tensor_has_more_than_five_axes() -> None:
    """Core ML's limit; the slow tests convert."""
    with Ranks() as ranks, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        small()(torch.zeros(2, 3, 60, 64, dtype=torch.float64))
    assert len(ranks.seen) > 100
    assert max(ranks.seen) == 5, "windows are cut with a transpose of rank 5"


FILES = [
    *[(target, "fp32") for target in ("onnx", "openvino", "executorch", "torch_export", "coreml")],
    *[("coreml", "fp16"), ("coreml", "w8"), ("onnx", "w8a8-dynamic"), ("openvino", "w8a8"), ("executorch", "w8a8")],
]
SUFFIXES = {"onnx": "onnx", "openvino": "xml", "executorch": "pte", "torch_export": "pt2", "coreml": "mlpackage"}


def prove(model: Model, target: str, precision: str, directory: Path) -> None:
    """Export; every file clears the floor of its precision, or export raises. The bounds here are what was reached."""
    images = proof_images(model.spec, calibration=16, verification=8)
    found = export(model, target, directory / f"b0.{SUFFIXES[target]}", precision, images=images).agreement
    assert found.sqnr_db > {"fp32": 100, "fp16": 45}.get(precision, 15), found


@pytest.mark.slow
@pytest.mark.parametrize(("target", "precision"), FILES, ids=[":".join(pair) for pair in FILES])
def test_it_exports_and_is_proven(target: str, precision: str, tmp_path: Path) -> None:
    # quantizing for ExecuTorch takes minutes for each dozen blocks
    shape = {"depths": (1, 1, 1, 1)} if precision.startswith("w8") else {}
    prove(create("mixformer_b0", num_classes=100, **shape), target, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("target", SUFFIXES)
def test_padded_windows_export_too(target: str, tmp_path: Path) -> None:
    size = {"input_size": (3, 60, 88)}  # maps of 15x22, 8x11, 4x6, 2x3
    model = create("mixformer_b0", num_classes=10, depths=(1, 1, 1, 1), pretrained_cfg_overlay=size)
    prove(model, target, "fp32", tmp_path)
