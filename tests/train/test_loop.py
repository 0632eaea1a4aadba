"""fit: it learns, says what it did, and leaves everything but its own folder as it was."""

import dataclasses
import random
import re

import numpy as np
import pytest
import torch
from PIL import Image

from pocketvit.data import batches, open_data
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.models import create, deployable, save, weights_sha256
from pocketvit.train import Distillation, fit
from pocketvit.train.images import TrainingBatches, training_transform, validation_batches

from .small import PLAIN, TINY, student


def top1(model, images):
    """Share of `images` that the deployable form of `model` classifies right: another path than the loop's."""
    module, right = deployable(model), 0
    for pixels, labels in batches(images, model.spec, 64):
        with torch.inference_mode():
            right += int((module(torch.from_numpy(pixels)).argmax(1).numpy() == labels).sum())
    return right / len(images)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory):
    """A CNN after five epochs over the training digits."""
    val = open_data("digits", "val")
    config = dataclasses.replace(PLAIN, epochs=5, batch_size=64, lr=4e-2)
    start = create("pocket_regnety_32", num_classes=10, output_stride=16)
    return fit(start, open_data("digits", "train"), val, config, tmp_path_factory.mktemp("cnn")), val


def test_it_learns_and_its_validation_is_true(cnn):
    trained, val = cnn
    reached = trained.history[-1]["val_top1"]
    assert reached > 0.9, f"{reached:.3f} top-1 after five epochs; chance is 0.1"
    assert reached == pytest.approx(top1(trained.model, val), abs=1e-9)
    assert [epoch["epoch"] for epoch in trained.history] == [1, 2, 3, 4, 5]
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]


def test_the_result_is_a_model_that_can_be_saved_and_made_again(cnn, tmp_path):
    model = cnn[0].model
    assert model.trained
    assert model.display_name == "pocket_regnety_32"
    assert model.spec.labels == tuple("0123456789")
    save(model, tmp_path / "checkpoint")
    again = create(str(tmp_path / "checkpoint"))
    assert again.spec == model.spec
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(again.module(images), model.module(images)), "saved and made again, it answers differently"


def test_the_callers_model_and_random_numbers_are_left_alone(digits, tmp_path):
    model = student()
    before = weights_sha256(model.module)
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    expected = torch.rand(3), random.random(), np.random.rand()
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    trained = fit(model, *digits, TINY, tmp_path)
    assert torch.equal(torch.rand(3), expected[0])
    assert (random.random(), np.random.rand()) == expected[1:]
    assert weights_sha256(model.module) == before != weights_sha256(trained.model.module)
    assert not model.trained
    assert model.spec.labels == ()


def test_it_trains_with_the_threads_it_is_told_and_gives_them_back(digits, tmp_path):
    before, seen = torch.get_num_threads(), set()
    torch.set_num_threads(2)
    try:
        config = dataclasses.replace(PLAIN, threads=1)
        fit(student(), *digits, config, tmp_path / "one", progress=lambda *call: seen.add(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ({1}, 2)
        own = dataclasses.replace(PLAIN, threads=None)
        fit(student(), *digits, own, tmp_path / "own", progress=lambda *call: seen.add(torch.get_num_threads()))
        assert (seen, torch.get_num_threads()) == ({1, 2}, 2)
    finally:
        torch.set_num_threads(before)


def test_validation_every_second_epoch_and_at_the_end(digits, tmp_path):
    trained = fit(student(), *digits, dataclasses.replace(PLAIN, epochs=3, val_every=2), tmp_path)
    assert [epoch["val_top1"] is None for epoch in trained.history] == [True, False, False]


def test_progress_counts_every_step(digits, tmp_path):
    calls = []
    fit(student(), *digits, PLAIN, tmp_path, progress=lambda *call: calls.append(call))
    assert calls == [("training pocket_deit_distilled_patch4_32", step, 8) for step in range(1, 9)]


def test_averaged_weights_are_the_average(digits, tmp_path):
    """At a decay of almost nothing the average is the last weights; at 0.5 it lies between the start and them."""
    last = fit(student(), *digits, PLAIN, tmp_path / "last").model.module.state_dict()
    near = fit(student(), *digits, dataclasses.replace(PLAIN, ema_decay=1e-7), tmp_path / "near").model.module
    for name, tensor in near.state_dict().items():
        torch.testing.assert_close(tensor, last[name], rtol=1e-4, atol=1e-6)


def test_a_loss_that_is_no_number_fails_by_name(digits, tmp_path):
    with pytest.raises(CheckFailed, match="The loss of pocket_deit_distilled_patch4_32 became nan in epoch 1; lower"):
        fit(student(), *digits, dataclasses.replace(PLAIN, lr=1e30, warmup_epochs=0, epochs=1), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_augmentation_training_sees_what_inference_sees(digits):
    spec = student().spec
    transform = training_transform(spec, dataclasses.replace(PLAIN, hflip=0.0))
    seen = torch.stack([transform(image) for image, _ in digits[1]])
    plain = torch.cat([x for x, _ in validation_batches(digits[1], spec, PLAIN, rank=0, processes=1)])
    assert torch.equal(seen, plain)
    flipped = training_transform(spec, dataclasses.replace(PLAIN, hflip=1.0))
    assert torch.equal(torch.stack([flipped(image) for image, _ in digits[1]]), plain.flip(3))


def test_the_strongest_randaugment_never_asks_pillow_for_nothing():
    """timm's PosterizeIncreasing at magnitude 10 keeps 0 bits, which Pillow 13 refuses: one in 700 images of DeiT."""
    config = dataclasses.replace(PLAIN, rand_augment="rand-m10-n15-p1.0-inc1")
    image = Image.fromarray(np.arange(3072, dtype=np.uint8).reshape(32, 32, 3))
    transform = training_transform(student().spec, config)
    for _ in range(20):  # 15 of 15 kinds, with replacement: posterizing is missed with a chance of 1e-9
        assert transform(image).isfinite().all()


def test_repeated_augmentation_repeats_each_image_differently(digits):
    """Three augmented views of each of a third of the images; processes draw from one list, in turns."""
    config = dataclasses.replace(PLAIN, repeated_aug=3, crop_scale=(0.3, 1.0), batch_size=64)

    def drawn(rank, processes, repeats, epoch):
        changed = dataclasses.replace(config, repeated_aug=repeats)
        made = TrainingBatches(digits[0], student().spec, changed, rank=rank, processes=processes, pin=False)
        made.epoch(epoch)
        return list(made.sampler)

    counts = np.unique(drawn(0, 1, 3, 0), return_counts=True)[1]
    assert sorted(set(counts.tolist()), reverse=True)[0] == 3
    assert counts.sum() == 128
    assert len(counts) == 43
    ranks = [drawn(rank, 2, 1, 0) for rank in (0, 1)]
    assert sorted(ranks[0] + ranks[1]) == list(range(128))
    assert drawn(0, 1, 1, 0) != drawn(0, 1, 1, 1)
    views = [x for x, _ in TrainingBatches(digits[0], student().spec, config, rank=0, processes=1, pin=False).epoch(0)]
    assert len(torch.cat(views).flatten(1).unique(dim=0)) == 128


class Fake:
    """Stands for data of another shape; never read, as every refusal comes before work."""

    def __init__(self, count=64, labels=tuple("0123456789"), name="fake"):
        self.count, self.labels, self.name = count, tuple(labels), name

    def __len__(self):
        return self.count


def test_what_does_not_fit_is_refused_before_work(teacher, tmp_path):
    distil = dataclasses.replace(PLAIN, distillation=Distillation.HARD)
    big = dataclasses.replace(student(), spec=dataclasses.replace(student().spec, size=(3, 64, 64)))
    no_timm = dataclasses.replace(student(), name="hand", module=torch.nn.Flatten())
    vgg = dataclasses.replace(student(), name="vgg11", module=create("vgg11", num_classes=10).module)
    drops = dataclasses.replace(PLAIN, drop_path=0.1)
    eleven = dataclasses.replace(teacher, classes=11)
    for model, train, val, config, guide, sentence in [
        (student(), Fake(0), Fake(), PLAIN, None, "The training data fake holds no images."),
        (student(), Fake(), Fake(0), PLAIN, None, "The validation data fake holds no images."),
        (student(), Fake(), Fake(labels="9876543210"), PLAIN, None, "do not have the same classes in the same order"),
        (student(), Fake(labels="a"), Fake(labels="a"), PLAIN, None, "has 1 class; a classifier needs at least two"),
        (student(), Fake(labels="ab"), Fake(labels="ab"), PLAIN, None, "create the model with num_classes=2."),
        (student(), Fake(31), Fake(), PLAIN, None, "batch_size 32 is larger than the 31 training images of fake"),
        (student(), Fake(), Fake(), distil, None, "hard distillation needs a teacher."),
        (student(), Fake(), Fake(), PLAIN, teacher, "The teacher pocket_regnety_32 would not be used; set distil"),
        (student(), Fake(), Fake(), distil, student(), "The teacher pocket_deit_distilled_patch4_32 is untrained"),
        (student(), Fake(), Fake(), distil, eleven, "pocket_regnety_32 has 11 classes, the student"),
        (no_timm, Fake(), Fake(), PLAIN, None, "hand is not of a timm architecture, so it can be exported but not tr"),
        (vgg, Fake(), Fake(), drops, None, "vgg11 has no blocks with stochastic depth; set drop_path to 0."),
        (big, Fake(), Fake(), distil, teacher, "takes images of 3 x 32 x 32, the student"),
    ]:
        with pytest.raises(BadInput, match=re.escape(sentence)):
            fit(model, train, val, config, tmp_path, teacher=guide)
    assert list(tmp_path.iterdir()) == []
