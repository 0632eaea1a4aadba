"""What a step computes: the paper's equations, the right head, an untouched teacher."""

import copy
import dataclasses

import pytest
import torch
from timm.layers import DropPath
from timm.task import ClassificationTask, LogitDistillationTask, TokenDistillationTask
from torch.nn import functional

from pocketvit.models import weights_sha256
from pocketvit.train import Distillation, fit
from pocketvit.train.tasks import copy_module, make_task, set_drop_path

from .small import PLAIN, student

CPU = torch.device("cpu")
TOKEN, ONE_HEAD = "pocket_deit_distilled_patch4_32", "pocket_deit_patch4_32"
CONFIG = dataclasses.replace(PLAIN, label_smoothing=0.0)


def distil(kind, **changes):
    return dataclasses.replace(CONFIG, distillation=kind, **changes)


@pytest.mark.parametrize(
    ("name", "kind", "task"),
    [
        (TOKEN, Distillation.NONE, ClassificationTask),
        (ONE_HEAD, Distillation.NONE, ClassificationTask),
        (TOKEN, Distillation.SOFT, TokenDistillationTask),
        (TOKEN, Distillation.HARD, TokenDistillationTask),
        (ONE_HEAD, Distillation.SOFT, LogitDistillationTask),
        (ONE_HEAD, Distillation.HARD, LogitDistillationTask),
    ],
)
def test_the_loss_is_the_papers(name, kind, task, digits, teacher):
    """Equation 2 (soft) and 3 (hard) of arXiv 2012.12877, written out; labels and teacher on their own heads."""
    model = student(name)
    module = copy_module(model).train()
    config = CONFIG if kind is Distillation.NONE else distil(kind, alpha=0.3, tau=2.0)
    made = make_task(module, None if kind is Distillation.NONE else teacher, config, CPU).train()
    assert isinstance(made, task)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8)
    got = made(images, labels)["loss"].item()

    both = module(images)
    to_labels, to_teacher = both if isinstance(both, tuple) else (both, both)
    taught = teacher.module.eval()(images)
    label_loss = functional.cross_entropy(to_labels, labels)
    if kind is Distillation.SOFT:
        log_student, log_teacher = (torch.log_softmax(x / 2, 1) for x in (to_teacher, taught))
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(1).mean()
        expected = 0.7 * label_loss + 0.3 * 4 * divergence
    elif kind is Distillation.HARD:
        expected = 0.7 * label_loss + 0.3 * functional.cross_entropy(to_teacher, taught.argmax(1))
    else:
        expected = label_loss
    assert got == pytest.approx(expected.item(), rel=1e-5), f"{kind}: {got} against {expected.item()} by hand"


def test_labels_only_trains_the_average_of_both_heads():
    module = copy_module(student(TOKEN)).train()
    module.set_distilled_training(True)
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4)
    result = make_task(module, None, CONFIG, CPU)(images, labels)
    torch.testing.assert_close(result["output"], module.eval()(images))
    result["loss"].backward()
    for head in (module.head, module.head_dist):
        assert head.weight.grad.abs().max() > 0


@pytest.mark.parametrize("kind", [Distillation.SOFT, Distillation.HARD])
@pytest.mark.parametrize("name", [TOKEN, ONE_HEAD])
def test_a_teacher_with_another_normalisation_sees_the_same_pixels(name, kind, teacher):
    """The same teacher, told to expect pixels shifted and scaled, with the first layer's input put right again."""
    mean, std = (0.1, 0.2, 0.3), (0.2, 0.4, 0.8)
    moved = copy.deepcopy(teacher.module)

    class Undo(torch.nn.Module):
        def forward(self, images):
            pixels = images * torch.tensor(std).view(1, 3, 1, 1) + torch.tensor(mean).view(1, 3, 1, 1)
            return moved((pixels - 0.5) / 0.5)

    other = dataclasses.replace(teacher, module=Undo(), spec=dataclasses.replace(teacher.spec, mean=mean, std=std))
    images, labels = torch.rand(8, 3, 32, 32) * 2 - 1, torch.arange(8)
    module = copy_module(student(name)).train()
    same, changed = (make_task(module, t, distil(kind), CPU)(images, labels)["loss"].item() for t in (teacher, other))
    assert changed == pytest.approx(same, rel=1e-5)


@pytest.mark.parametrize("kind", [Distillation.SOFT, Distillation.HARD])
def test_the_teacher_stays_as_it_was(kind, digits, teacher, tmp_path):
    teacher.module.train()  # its normalisation statistics must not move even if the caller left it so
    before = weights_sha256(teacher.module)
    fit(student(TOKEN), *digits, distil(kind), tmp_path, teacher=teacher)
    assert weights_sha256(teacher.module) == before
    assert teacher.module.training
    assert all(p.requires_grad for p in teacher.module.parameters())
    teacher.module.eval()


def test_stochastic_depth_rises_to_its_rate_and_goes_again():
    model = student(ONE_HEAD, depth=3)
    module = copy_module(model)
    set_drop_path(module, 0.3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in module.blocks]
    assert rates == pytest.approx([0.0, 0.15, 0.3])
    assert [getattr(block.drop_path2, "drop_prob", 0.0) for block in module.blocks] == rates
    set_drop_path(module, 0.0)
    assert not any(isinstance(m, DropPath) for m in module.modules())
