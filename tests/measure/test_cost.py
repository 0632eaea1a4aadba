"""The counter against cases computed by hand, and against the table that timm publishes.

timm's table comes from fvcore, which does not see recurrent layers: the exception `recurrent`. Where they are made
invisible, every figure must agree to the last printed digit.
"""

from __future__ import annotations

import copy
import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pocketvit.measure.cost import Cost, cost, count
from pocketvit.models import Model, create
from pocketvit.types import InputSpec

SIZE = (3, 16, 16)
LAST_DIGIT = 0.005 * (1 + 1e-9)
with (Path(__file__).parent / "timm_published.csv").open(newline="") as file:
    PUBLISHED = list(csv.DictReader(file))


class Applied(nn.Module):
    """A function as a model; its tensors are parameters, so that they are where the count takes place."""

    def __init__(self, function: Callable[..., object], *shapes: tuple[int, ...]) -> None:
        super().__init__()
        self.function = function
        self.tensors = nn.ParameterList([torch.ones(shape) for shape in shapes])

    def forward(self, image: Tensor) -> object:
        return self.function(*self.tensors)


@pytest.fixture(autouse=True)
def _leave_the_seed() -> object:
    with torch.random.fork_rng():
        yield


def test_macs_of_hand_computed_layers() -> None:
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    model = Model(name="hand", module=module, spec=InputSpec(size=SIZE), trained=False, classes=5)
    found = cost(model)
    assert found.macs == 16 * 16 * 8 * 3 * 9 + 8 * 5
    assert found.params == 8 * 27 + 8 + 8 * 5 + 5
    assert found.activations == 16 * 16 * 8 + 5


def test_attention_counts_its_two_matrix_products() -> None:
    tokens, dim, depth = 197, 192, 12
    linears = depth * tokens * dim * dim * 12  # qkv 3, proj 1, mlp 8
    attention = depth * 2 * tokens * tokens * dim
    patches = 196 * dim * 3 * 16 * 16
    norms = (2 * depth + 1) * 5 * tokens * dim
    model = create("deit_tiny_patch16_224")
    assert cost(model).macs == linears + attention + patches + norms + dim * 1000


QKV = ((1, 2, 6, 4), (1, 2, 5, 4), (1, 2, 5, 3))  # 2 heads, 6 queries, 5 keys, width 4 and 3
CASES = {  # the module, its multiply-accumulates, and the elements that its layers give out
    "grouped convolution": (
        lambda: nn.Conv2d(3, 12, 5, stride=2, padding=2, groups=3),
        64 * 12 * 25,
        64 * 12,
    ),
    "depthwise convolution": (lambda: nn.Conv2d(3, 3, 3, groups=3), 14 * 14 * 3 * 9, 14 * 14 * 3),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 4, 2, stride=2), 16 * 16 * 3 * 4 * 4, 32 * 32 * 4),
    "linear on tokens": (lambda: nn.Sequential(nn.Flatten(2), nn.Linear(256, 10)), 3 * 256 * 10, 3 * 10),
    "fused attention": (
        lambda: Applied(nn.functional.scaled_dot_product_attention, *QKV),
        2 * 6 * 5 * (4 + 3),
        2 * 6 * (5 + 3),
    ),
    "einsum": (
        lambda: Applied(lambda q, k: torch.einsum("bhid,bhjd->bhij", q, k), *QKV[:2]),
        2 * 6 * 5 * 4,
        2 * 6 * 5,
    ),
    "matrix by vector": (lambda: Applied(torch.matmul, (7, 9), (9,)), 63, 7),
    "vector by vector": (lambda: Applied(torch.matmul, (9,), (9,)), 9, 1),
    # 5 N log2 N operations for N complex values, two of which make one multiply-accumulate
    "complex transform": (lambda: Applied(lambda x: torch.fft.fft(x.cfloat()), (3, 8)), 3 * 5 * 8 * 3 // 2, 0),
    "transform of reals": (lambda: Applied(torch.fft.rfft, (3, 8)), 3 * 5 * 8 * 3 // 4, 0),
    "transform to reals": (lambda: Applied(lambda x: torch.fft.irfft(x, n=8), (3, 5)), 3 * 5 * 8 * 3 // 4, 0),
    "transform of planes": (lambda: Applied(torch.fft.rfft2, (2, 4, 8)), 2 * 5 * 32 * 5 // 4, 0),
    "padded transform": (lambda: Applied(lambda x: torch.fft.rfft(x, n=16), (1, 5)), 5 * 16 * 4 // 4, 0),
    "batch norm": (lambda: nn.BatchNorm2d(3), 2 * 3 * 256, 0),
    "batch norm without weights": (lambda: nn.BatchNorm2d(3, affine=False), 3 * 256, 0),
    "layer norm": (lambda: nn.LayerNorm(16), 5 * 3 * 256, 0),
    "layer norm without weights": (lambda: nn.LayerNorm(16, elementwise_affine=False), 4 * 3 * 256, 0),
    "group norm": (lambda: nn.GroupNorm(3, 3), 5 * 3 * 256, 0),
    "group norm without weights": (lambda: nn.GroupNorm(3, 3, affine=False), 4 * 3 * 256, 0),
    "elementwise work": (lambda: nn.Sequential(nn.GELU(), nn.AvgPool2d(2), nn.Softmax(1)), 0, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_layers_by_hand(case: str) -> None:
    module, macs, activations = CASES[case]
    found = count(module(), SIZE)
    assert (found.macs, found.activations) == (macs, activations)


class Fused(nn.Module):
    """Layers that torch would compute as one operation each; it may look at values, so that the weights are needed."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(48, 4, batch_first=True, bidirectional=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.looks = looks

    def forward(self, image: Tensor) -> Tensor:
        if self.looks and image.sum().item() != 0:
            raise AssertionError("the image is black")
        rows = self.rnn(image.permute(0, 2, 1, 3).flatten(2))[0]
        return self.attention(rows, rows, rows, need_weights=False)[0]


@pytest.mark.parametrize("looks", [False, True], ids=["without weights", "with weights"])
def test_recurrent_layers_and_attention_are_not_lost_in_fused_operations(looks: bool) -> None:
    # 16 rows of 3 x 16 values, 4 gates of width 4 that see the row and the state, in two directions
    recurrent = 2 * 16 * 4 * 4 * (48 + 4)
    # 16 tokens of width 8: four linears and two products
    attention = 16 * 8 * 8 * 4 + 2 * 16 * 16 * 8
    assert count(Fused(looks), SIZE).macs == recurrent + attention
    assert torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mkldnn.enabled


def test_counting_leaves_the_model_as_it_is() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    before = copy.deepcopy(module.state_dict())
    count(module, SIZE)
    assert all(part.training for part in module.modules())
    assert all(p.requires_grad and p.device.type == "cpu" for p in module.parameters())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0, msg=f"{name} changed")


def create_module(name: str) -> nn.Module:
    from pocketvit import models  # noqa: F401 - registers our own and makes timm importable

    # isort: split
    import timm

    return timm.create_model(name)


@pytest.mark.parametrize(
    "row",
    # every third is quick enough for each run
    [row if i % 3 == 0 else pytest.param(row, marks=pytest.mark.slow) for i, row in enumerate(PUBLISHED)],
    ids=[row["model"] for row in PUBLISHED],
)
def test_timms_published_table(row: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        module = create_module(row["model"]).eval()
    if row["exception"] == "recurrent":
        monkeypatch.setattr(nn.LSTM, "forward", _not_seen)
    found = count(module, (3, int(row["size"]), int(row["size"])))
    macs, published = found.macs / 1e9, float(row["gmacs"])
    told = f"{row['model']}: {_told(found)}; published {row['params_m']} M, {row['gmacs']} G, {row['macts']} M"
    assert abs(found.params / 1e6 - float(row["params_m"])) <= LAST_DIGIT, told
    assert abs(found.activations / 1e6 - float(row["macts"])) <= LAST_DIGIT, told
    assert abs(macs - published) <= LAST_DIGIT, told


def test_thirty_models_are_compared() -> None:
    assert len(PUBLISHED) >= 30
    assert all(row["source"] for row in PUBLISHED)


def _not_seen(self: nn.LSTM, x: Tensor) -> tuple[Tensor, None]:
    return x.new_empty(*x.shape[:-1], 2 * self.hidden_size), None


def _told(found: Cost) -> str:
    return f"{found.params / 1e6:.4f} M, {found.macs / 1e9:.4f} G, {found.activations / 1e6:.4f} M"
