"""Small real trainings: scikit-learn's digits and a student of 0.03 M parameters."""

import dataclasses

from pocketvit.data import open_data
from pocketvit.models import create
from pocketvit.train import Distillation, TrainConfig, fit

# Everything DeiT does, on a budget of seconds. One thread: how sums are split among threads decides their last bits.
TINY = TrainConfig(threads=1, epochs=2, warmup_epochs=1, batch_size=32, lr=1e-2, hflip=0.0, clip_grad=5.0)
PLAIN = dataclasses.replace(
    TINY,
    repeated_aug=1,
    rand_augment=None,
    crop_scale=(1.0, 1.0),
    mixup=0.0,
    cutmix=0.0,
    random_erasing=0.0,
    drop_path=0.0,
    clip_grad=None,
)


def student(name="pocket_deit_distilled_patch4_32", seed=0, **arguments):
    small = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return create(name, num_classes=10, seed=seed, **(small | arguments))


def guide():
    """An untrained CNN that passes for a teacher: what it teaches does not matter to exactness."""
    return dataclasses.replace(create("pocket_regnety_32", num_classes=10), trained=True)


def train_fully(work, **options):
    """Everything at once that has a random or a running state: all of DeiT, averaged weights, a teacher."""
    config = dataclasses.replace(TINY, epochs=3, ema_decay=0.8, distillation=Distillation.HARD)
    sets = open_data("digits", "train").take(128), open_data("digits", "val").take(60)
    return fit(student(), *sets, config, work, teacher=guide(), **options)
