"""TrainConfig: DeiT's defaults, refusals in sentences, and no field that does nothing."""

import dataclasses
import math
import re

import pytest
import yaml

from pocketvit.errors import BadInput
from pocketvit.models import weights_sha256
from pocketvit.train import Amp, Distillation, TrainConfig, fit

from .small import PLAIN, TINY, student

# Every field, changed; each must change what comes out of a training of two epochs.
CHANGED = {
    "epochs": 3,
    "batch_size": 16,
    "lr": 5e-3,
    "warmup_epochs": 0,
    "warmup_lr": 1e-5,
    "min_lr": 1e-4,
    "weight_decay": 0.5,
    "clip_grad": 0.1,
    "label_smoothing": 0.0,
    "drop_path": 0.4,
    "repeated_aug": 1,
    "rand_augment": "rand-m3-n1-tweights",
    "crop_scale": (0.5, 1.0),
    "hflip": 0.5,
    "mixup": 0.0,
    "cutmix": 0.0,
    "random_erasing": 1.0,
    "ema_decay": 0.5,
    "distillation": Distillation.SOFT,
    "alpha": 0.9,
    "tau": 1.0,
    "amp": Amp.BF16,
    "seed": 1,
    "workers": 1,
    "val_every": 2,
}
HARD = {"distillation": Distillation.HARD}


def test_the_defaults_are_table_9_of_the_paper():
    config = TrainConfig()
    assert config == TrainConfig(
        epochs=300,
        batch_size=1024,
        lr=5e-4,
        warmup_epochs=5,
        weight_decay=0.05,
        label_smoothing=0.1,
        drop_path=0.1,
        repeated_aug=3,
        rand_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8,
        cutmix=1.0,
        random_erasing=0.25,
        clip_grad=None,
        ema_decay=None,
    )
    assert config.peak_lr == 5e-4 * 1024 / 512
    assert dataclasses.replace(config, distillation=Distillation.SOFT).distillation_weight == 0.1
    assert dataclasses.replace(config, distillation=Distillation.HARD).distillation_weight == 0.5


def test_every_field_is_changed_below():
    """All but threads, which may not change the weights: test_loop.py watches them."""
    assert set(CHANGED) | {"threads"} == {field.name for field in dataclasses.fields(TrainConfig)}


@pytest.fixture(scope="module")
def outcome(digits, teacher, tmp_path_factory):
    """The weights' hash and the history that a config leads to, in a fresh folder; each config is trained once."""
    known = {}

    def train(config):
        if config not in known:
            taught = teacher if config.distillation is not Distillation.NONE else None
            trained = fit(student(), *digits, config, tmp_path_factory.mktemp("work"), teacher=taught)
            known[config] = weights_sha256(trained.model.module), trained.history
        return known[config]

    return train


@pytest.mark.parametrize("field", CHANGED)
def test_every_field_does_something(field, outcome):
    base = dataclasses.replace(TINY, **HARD) if field in ("alpha", "distillation") else TINY
    if field == "tau":
        base = dataclasses.replace(TINY, distillation=Distillation.SOFT)
    changed = dataclasses.replace(base, **{field: CHANGED[field]})
    assert changed != base
    assert outcome(changed) != outcome(base), f"{field} = {CHANGED[field]} trains exactly as {getattr(base, field)}"


@pytest.mark.parametrize(
    ("bad", "sentence"),
    [
        ({"epochs": 0}, "epochs must be at least 1, not 0."),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0."),
        ({"repeated_aug": 0}, "repeated_aug must be at least 1, not 0."),
        ({"val_every": 0}, "val_every must be at least 1, not 0."),
        ({"threads": 0}, "threads must be at least 1, or empty, not 0."),
        ({"workers": -1}, "workers must be 0 or more, not -1."),
        ({"seed": -1}, "seed must be 0 or more, not -1."),
        ({"mixup": -0.1}, "mixup must be 0 or more, not -0.1."),
        ({"cutmix": float("nan")}, "cutmix must be 0 or more, not nan."),
        ({"weight_decay": float("inf")}, "weight_decay must be 0 or more, not inf."),
        ({"warmup_lr": -1.0}, "warmup_lr must be 0 or more, not -1.0."),
        ({"random_erasing": 1.5}, "random_erasing is a probability, 0 to 1, not 1.5."),
        ({"hflip": -1.0}, "hflip is a probability, 0 to 1, not -1.0."),
        ({"label_smoothing": 1.0}, "label_smoothing must be 0 or more and below 1, not 1.0."),
        ({"drop_path": 1.0}, "drop_path must be 0 or more and below 1, not 1.0."),
        ({"lr": 0.0}, "lr must be greater than 0, not 0.0."),
        ({"tau": 0.0}, "tau must be greater than 0, not 0.0."),
        ({"clip_grad": 0.0}, "clip_grad must be greater than 0, not 0.0."),
        ({"ema_decay": 1.0}, "ema_decay must be between 0 and 1, or empty, not 1.0."),
        ({"epochs": 5}, "warmup_epochs (5) must be fewer than epochs (5)."),
        ({"batch_size": 8}, "lr x batch_size / 512 is 7.81e-06, below min_lr or warmup_lr"),
        ({"crop_scale": (0.9, 0.5)}, "crop_scale must be two rising shares of the image, 0 to 1, not 0.9, 0.5."),
        ({"rand_augment": "random"}, "rand_augment must look like rand-m9-mstd0.5-inc1, not 'random'."),
        ({"rand_augment": "rand-mfoo"}, "rand_augment must look like rand-m9-mstd0.5-inc1, not 'rand-mfoo'."),
        ({"batch_size": 33}, "mixup and cutmix pair images up, so batch_size must be even, not 33."),
        ({"alpha": 0.0}, "alpha must be above 0 and at most 1, not 0.0."),
    ],
)
def test_what_cannot_be_trained_with_is_refused_in_a_sentence(bad, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        TrainConfig(**bad)


def test_a_recipe_is_read_and_its_mistakes_are_named():
    text = "{epochs: 3, warmup_epochs: 0, lr: 1e-3, distillation: hard, amp: bf16, crop_scale: [0.8, 1], clip_grad: 1}"
    assert TrainConfig.from_dict(yaml.safe_load(text)) == TrainConfig(
        epochs=3,
        warmup_epochs=0,
        lr=1e-3,
        distillation=Distillation.HARD,
        amp=Amp.BF16,
        crop_scale=(0.8, 1.0),
        clip_grad=1.0,
    )
    with pytest.raises(BadInput, match=re.escape("demo.yaml, train has no key 'epoch'. Did you mean epochs")):
        TrainConfig.from_dict({"epoch": 3}, "demo.yaml, train")
    with pytest.raises(BadInput, match=re.escape("train: warmup_epochs (5) must be fewer than epochs (3).")):
        TrainConfig.from_dict({"epochs": 3})


def test_the_learning_rate_warms_up_and_decays_along_a_cosine(outcome):
    config = dataclasses.replace(PLAIN, epochs=4, warmup_epochs=2)
    steps = 128 // config.batch_size
    last_steps = [epoch * steps - 1 for epoch in (1, 2, 3, 4)]
    rise = (config.peak_lr - config.warmup_lr) / (2 * steps)
    warm = [config.warmup_lr + rise * step for step in last_steps[:2]]
    half = (config.peak_lr - config.min_lr) / 2
    decayed = [config.min_lr + half * (1 + math.cos(math.pi * step / (4 * steps))) for step in last_steps[2:]]
    assert [epoch["lr"] for epoch in outcome(config)[1]] == pytest.approx(warm + decayed, rel=1e-9)
