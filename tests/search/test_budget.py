"""The search for layers to keep float, on files whose accuracy is known by construction."""

from __future__ import annotations

import itertools
import re

import pytest

from pocketvit.errors import CheckFailed
from pocketvit.search import Sensitivity, Trial, within_budget

LAYERS = ("stem", "qkv", "proj", "fc1", "fc2", "head")
# points each layer loses when quantized, and its share of the multiplications
LOSS = {"stem": 3.0, "qkv": 0.2, "proj": 0.1, "fc1": 0.1, "fc2": 6.0, "head": 0.1}
SHARE = {"stem": 0.05, "qkv": 0.3, "proj": 0.1, "fc1": 0.25, "fc2": 0.25, "head": 0.05}
FLOAT = 0.90


def top1(keep: tuple[str, ...]) -> float:
    return FLOAT - sum(loss for layer, loss in LOSS.items() if layer not in keep) / 100


def candidates(order: tuple[str, ...] = ()) -> list[Sensitivity]:
    found = [Sensitivity(layer=layer, sqnr_db=30 - LOSS[layer], share=SHARE[layer]) for layer in order or LAYERS]
    return found if order else sorted(found, key=lambda one: -one.order)


def cheapest(least: float) -> set[str]:
    """By trying every set."""
    sets = itertools.chain.from_iterable(itertools.combinations(LAYERS, n) for n in range(len(LAYERS) + 1))
    return set(min((s for s in sets if top1(s) >= least - 1e-9), key=lambda s: sum(SHARE[layer] for layer in s)))


@pytest.mark.parametrize(("drop", "expected"), [(10, set()), (4, {"fc2"}), (1, {"stem", "fc2"})])
def test_the_cheapest_set_is_found(drop: float, expected: set[str]) -> None:
    tried: list[tuple[str, ...]] = []

    def attempt(keep: tuple[str, ...]) -> Trial:
        tried.append(keep)
        return Trial(keep=keep, top1=top1(keep))

    found = within_budget(candidates(), FLOAT - drop / 100, attempt)
    assert set(found.keep) == expected == cheapest(FLOAT - drop / 100), found
    assert found.top1 == top1(found.keep)
    assert len(tried) == len(set(tried)) == len(found.trials), "a file was made twice"
    assert set(found.reasons) == expected


def test_a_wrong_order_costs_trials_and_not_layers() -> None:
    wrong = ("proj", "fc1", "head", "qkv", "fc2", "stem")
    found = within_budget(candidates(wrong), FLOAT - 0.04, lambda keep: Trial(keep=keep, top1=top1(keep)))
    assert set(found.keep) == {"fc2"}, found.keep


def test_each_kept_layer_has_the_number_it_was_kept_for() -> None:
    found = within_budget(candidates(), FLOAT - 0.01, lambda keep: Trial(keep=keep, top1=top1(keep)))
    for layer in found.keep:
        told = re.search(r"a file without it scored ([\d.]+)%, below 89.00%", found.reasons[layer])
        assert told, found.reasons
        scores = {f"{100 * trial.top1:.2f}" for trial in found.trials if trial.top1 and layer not in trial.keep}
        assert told[1] in scores, f"no file without {layer} scored {told[1]}: {scores}"


def test_a_budget_that_cannot_be_met_is_refused_with_the_nearest_miss() -> None:
    with pytest.raises(CheckFailed, match=r"at least 90\.00%.*5 of 6 layers float, has 89\.80%"):
        within_budget(candidates(), FLOAT, lambda keep: Trial(keep=keep, top1=top1(keep)))


def test_files_that_cannot_be_made_count_as_falling_short() -> None:
    def attempt(keep: tuple[str, ...]) -> Trial:
        if "stem" not in keep:
            return Trial(keep=keep, top1=None, problem="the stem does not convert")
        return Trial(keep=keep, top1=top1(keep))

    found = within_budget(candidates(), FLOAT - 0.10, attempt)
    assert found.keep == ("stem",)
    assert "the stem does not convert" in found.reasons["stem"]
    with pytest.raises(CheckFailed, match="No file could be scored: nothing converts"):
        within_budget(candidates(), 0.5, lambda keep: Trial(keep=keep, top1=None, problem="nothing converts"))


def test_trials_are_bounded() -> None:
    many = [Sensitivity(layer=f"layer{i}", sqnr_db=30.0, share=0.01) for i in range(64)]
    made = []

    def attempt(keep: tuple[str, ...]) -> Trial:
        made.append(keep)
        return Trial(keep=keep, top1=0.9 if len(keep) >= 40 else 0.1)

    found = within_budget(many, 0.85, attempt, most_trials=16)
    assert len(made) <= 16 + 1
    assert 40 <= len(found.keep) <= 64
    assert any("not tried without it" in why for why in found.reasons.values())
