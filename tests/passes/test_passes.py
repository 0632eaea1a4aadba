"""The contract of every pass, and what each one does."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pocketvit.data import open_data, sample
from pocketvit.errors import BadInput
from pocketvit.models import EagerRunner, Model, create, weights_sha256
from pocketvit.passes import PASSES, apply, parse_passes, read_passes, same_function
from pocketvit.passes.ane import OFF, Ane
from pocketvit.passes.ane.positions import Position
from pocketvit.passes.prune import Prune, Scope
from pocketvit.types import InputSpec

NAMES = ["test_vit", "test_efficientnet"]


@pytest.fixture(scope="module", params=NAMES)
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return create(request.param, num_classes=10)


@pytest.mark.parametrize("name", list(PASSES))
def test_the_neutral_config_gives_an_equal_and_independent_model(name: str, model: Model) -> None:
    before = weights_sha256(model.module)
    images = sample(open_data("photos"), model.spec, 2)
    found = apply(model, [PASSES.get(name).identity], images)
    assert found.module is not model.module
    assert np.array_equal(EagerRunner(found)(images), EagerRunner(model)(images))
    with torch.no_grad():
        for parameter in found.module.parameters():
            parameter.add_(1)
    assert weights_sha256(model.module) == before, "the pass shares tensors with the model it was given"


@pytest.mark.parametrize("scope", list(Scope))
def test_prune_zeroes_the_smallest_weights(model: Model, scope: Scope) -> None:
    before = weights_sha256(model.module)
    found = apply(model, [Prune(sparsity=0.5, scope=scope)])
    assert weights_sha256(model.module) == before
    assert found.name == f"{model.name}+prune0.5"
    pairs = [
        (old.weight, new.weight)
        for old, new in zip(model.module.modules(), found.module.modules(), strict=True)
        if isinstance(new, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    zeros = sum(int((new == 0).sum()) for _, new in pairs)
    total = sum(new.numel() for _, new in pairs)
    assert abs(zeros / total - 0.5) < len(pairs) / total, f"{zeros} of {total} are zero"
    shares = {round(float((new == 0).float().mean()), 1) for _, new in pairs if new.numel() > 100}
    assert (len(shares) == 1) == (scope is Scope.LAYER), f"shares per layer: {shares}"
    for old, new in pairs:
        kept = new != 0
        assert torch.equal(new[kept], old[kept])
        if scope is Scope.LAYER and kept.any() and not kept.all():
            assert old[~kept].abs().max() <= old[kept].abs().min()


def test_a_model_without_layers_to_prune_is_refused() -> None:
    model = Model(name="pool", module=nn.AdaptiveAvgPool2d(1), spec=InputSpec(), trained=False, classes=3)
    with pytest.raises(BadInput, match="pool has no linear or convolution layer to prune"):
        apply(model, [Prune(sparsity=0.5)])


def test_a_sparsity_that_cannot_be_is_refused() -> None:
    with pytest.raises(BadInput, match="not 1"):
        Prune(sparsity=1.0)


def test_recipes_name_passes_and_misspelt_ones_get_a_hint() -> None:
    assert read_passes([{"pass": "prune", "sparsity": 0.3}], "r") == (Prune(sparsity=0.3),)
    with pytest.raises(BadInput, match=r"no pass called 'prun'\. Did you mean prune"):
        read_passes([{"pass": "prun"}], "r")
    with pytest.raises(BadInput, match=r"r\[0\] has no key 'sparsty'. Did you mean sparsity"):
        read_passes([{"pass": "prune", "sparsty": 0.3}], "r")
    with pytest.raises(BadInput, match="must be a mapping with a key 'pass'"):
        read_passes(["prune"], "r")


def test_passes_are_written_in_one_word_with_their_options() -> None:
    assert parse_passes(["ane"], "--pass") == (Ane(),)
    assert parse_passes([], "--pass") == ()
    found = parse_passes(["prune:sparsity=0.3,scope=layer", "ane:heads=false,position=lepe"], "--pass")
    assert found == (Prune(sparsity=0.3, scope=Scope.LAYER), Ane(heads=False, position=Position.LEPE)), "order is kept"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("anne", r"no pass called 'anne'\. Did you mean ane"),
        ("prune:sparsty=0.3", r"--pass\[0\] has no key 'sparsty'. Did you mean sparsity"),
        ("prune:0.3", r"--pass takes KEY=VALUE, not '0\.3'"),
        ("ane:position=single", "relative_single_head"),
        ("ane:heads=maybe", "heads"),
        ("ane:pass=prune", "pass"),
        ("", "no pass called ''"),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_can(text: str, says: str) -> None:
    with pytest.raises(BadInput, match=says):
        parse_passes([text], "--pass")


def test_a_pass_says_whether_outputs_stay_the_same() -> None:
    assert same_function([])
    assert same_function([Ane()])
    assert same_function([Ane(heads=False), OFF])
    assert not same_function([Prune(sparsity=0.5)])
    assert not same_function([Ane(position=Position.LEPE)])
    assert not same_function([Ane(), Prune(sparsity=0.5)]), "all of them must"
    with pytest.raises(BadInput, match="object is not the config of a pass"):
        same_function([object()])


CALIBRATED = [name for name in PASSES if PASSES.get(name).calibrated]


@pytest.mark.parametrize("name", CALIBRATED)
@pytest.mark.parametrize(
    ("images", "says"),
    [
        (None, "needs calibration images; it got none"),
        (np.zeros((0, 3, 160, 160), np.float32), "needs calibration images; it got none"),
        (
            np.zeros((2, 3, 32, 32), np.float32),
            r"Calibration images are \(3, 32, 32\), but the model takes \(3, 160, 160\)",
        ),
        (np.full((2, 3, 160, 160), -1, np.float32), r"run from -1 to -1; give RGB in \[0, 1\]"),
        (np.full((2, 3, 160, 160), np.nan, np.float32), "run from nan to nan"),
        (np.zeros((2, 3, 160, 160), np.float32), "Every pixel of the calibration images is 0"),
    ],
)
def test_a_pass_that_measures_refuses_what_it_cannot_measure_on(name: str, images: np.ndarray, says: str) -> None:
    step = PASSES.get(name)
    with pytest.raises(BadInput, match=says):
        apply(create("test_vit", num_classes=10), [step.identity], images)
    if images is None:
        with pytest.raises(BadInput, match=f"The pass {name} "):
            apply(create("test_vit", num_classes=10), [step.identity])


def test_what_is_not_a_pass_config_is_refused(model: Model) -> None:
    with pytest.raises(BadInput, match="object is not the config of a pass"):
        apply(model, [object()])
