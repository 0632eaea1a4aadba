"""The script that builds the tables: it starts, and takes no number for another."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "catalogue.py"


@pytest.fixture(scope="module")
def building() -> ModuleType:
    spec = importlib.util.spec_from_file_location("building_the_catalogue", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_model_is_counted_and_known_as_ours_or_not(building: ModuleType) -> None:
    ours, theirs = building.count_model("pocket_deit_patch4_32"), building.count_model("levit_128s")
    assert (ours["ours"], theirs["ours"]) == ("yes", "")
    assert (theirs["note"], theirs["input_size"]) == ("", "3x224x224")
    # LeViT-128S (arXiv 2104.01136, table 3): 7.8 M parameters, 305 M multiply-accumulates
    assert int(theirs["params"]) == pytest.approx(7.8e6, rel=0.01)
    assert int(theirs["macs"]) == pytest.approx(305e6, rel=0.02)


def accuracies(*rows: tuple[str, str, str]) -> dict[tuple[str, str], dict[str, str]]:
    columns = ("model", "img_size", "top1")
    return {row[:2]: dict(zip(columns, row, strict=True)) for row in rows}


@pytest.mark.parametrize(
    ("default", "size", "chosen"),
    [
        ("a", "224", ("m.a", "224")),
        ("a", "288", ("m.a", "288")),
        ("a", "256", ("m.a", "288")),
        ("b", "224", ("m.b", "256")),
        ("", "256", ("m.b", "256")),
        ("", "200", ("m.b", "256")),
        ("c", "224", ("m.a", "224")),
    ],
)
def test_an_accuracy_is_of_the_default_weights_then_of_the_models_own_size(
    building: ModuleType, default: str, size: str, chosen: tuple[str, str]
) -> None:
    rows = [("m.a", "288", "80.1"), ("m.a", "224", "79.0"), ("m.b", "256", "82.0"), ("mm.a", "224", "99.0")]
    for order in (rows, rows[::-1]):
        found = building.best_accuracy("m", default, size, accuracies(*order))
        assert (found["model"], found["img_size"]) == chosen
    assert building.best_accuracy("other", default, size, accuracies(*rows)) is None


def test_weights_evaluated_at_two_sizes_are_two_rows(building: ModuleType, tmp_path: Path) -> None:
    head = "model,img_size,top1\n"
    (tmp_path / "accuracy.csv").write_text(head + "m.a,288,80.1\nm.a,224,79.0\n")
    found = building.read_accuracies(tmp_path)
    assert {key: row["top1"] for key, row in found.items()} == {("m.a", "288"): "80.1", ("m.a", "224"): "79.0"}
    (tmp_path / "accuracy.csv").write_text(head + "m.a,288,80.1\nm.a,288,79.0\n")
    with pytest.raises(SystemExit, match="two rows"):
        building.read_accuracies(tmp_path)


@pytest.mark.parametrize(
    ("architecture", "model", "weights"),
    [
        ("torchvision resnet18 IMAGENET1K_V1", "resnet18", "resnet18.tv_in1k"),
        ("torchvision resnext50_32x4d IMAGENET1K_V2", "resnext50_32x4d", "resnext50_32x4d.tv2_in1k"),
        ("torchvision inception_v3 IMAGENET1K_V1 (transform_input=False)", "inception_v3", "inception_v3.tv_in1k"),
        ("torchvision swin_b (attention modules replaced)", "swin_base_patch4_window7_224", ""),
        ("timm nasnetalarge.tf_in1k", "nasnetalarge", "nasnetalarge.tf_in1k"),
        ("timm dla102x", "dla102x", "dla102x.in1k"),
        ("snap-research EfficientFormer-L1 (efficientformer_l1_300d)", "efficientformer_l1", ""),
    ],
)
def test_weights_are_known_by_what_their_source_says(
    building: ModuleType, architecture: str, model: str, weights: str
) -> None:
    assert building.weights_timed(architecture, model) == weights


@pytest.mark.parametrize(
    ("changes", "top1", "why"),
    [
        ({}, "69.7", "timm resnet18.tv_in1k"),
        ({"top1": "70.0"}, "70.0", "the latency's source"),
        ({"resolution": "288"}, "", "timm has not evaluated torchvision's weights at 288 px"),
        ({"resolution": ""}, "", "not stated, nor at which size it was timed"),
        (
            {"architecture": "torchvision resnet18 IMAGENET1K_V2"},
            "",
            "timm has not evaluated torchvision's weights at 224 px",
        ),
        (
            {"architecture": "someone's resnet18.pt"},
            "",
            "timm has not evaluated the weights that were timed at 224 px",
        ),
        ({"architecture": ""}, "", "not stated, nor which weights were timed"),
        ({"model": ""}, "", "not stated, and timm does not have the model"),
        ({"toolchain": "TFLite w8a8 NPU"}, "", "a quantized file"),
        ({"name": "ResNet18 image encoder"}, "", "a backbone without its head"),
        ({"note": "backbone only"}, "", "a backbone without its head"),
    ],
)
def test_no_accuracy_but_that_of_what_was_timed(
    building: ModuleType, changes: dict[str, str], top1: str, why: str
) -> None:
    row: dict[str, Any] = {
        "name": "ResNet18",
        "model": "resnet18",
        "architecture": "torchvision resnet18 IMAGENET1K_V1",
        "toolchain": "TFLite float NPU",
        "resolution": "224",
        "top1": "",
        "note": "",
    }
    known = accuracies(
        ("resnet18.a1_in1k", "288", "73.2"), ("resnet18.a1_in1k", "224", "71.5"), ("resnet18.tv_in1k", "224", "69.7")
    )
    found = building.with_accuracy(row | changes, known)
    assert (found["top1"], found["top1_source"]) == (top1, why)
