"""The packaged tables against the figures they were built from, fresh counts, and their own rules."""

from __future__ import annotations

import csv
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import pocketvit.catalogue
from pocketvit.catalogue import entries, entry, latencies, published

TABLES = Path(pocketvit.catalogue.__file__).parent
LATENCY_FILES = ["iphone_latency.csv", "snapdragon_latency.csv", "android_latency_other.csv"]
REBUILD = "run benchmarks/catalogue.py"

Read = Callable[[str], list[dict[str, str]]]


def table(name: str) -> list[dict[str, str]]:
    with (TABLES / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def number(text: str) -> float | None:
    return float(text) if text else None


def test_every_latency_is_the_figures_own(figures: Read) -> None:
    raws = [raw for file in LATENCY_FILES for raw in figures(file)]
    rows = latencies()
    assert len(rows) == len(raws)
    for row, raw in zip(rows, raws, strict=True):
        printed = raw.get("paper_name") or raw["model"]
        assert row.name == printed
        assert row.ms == (number(raw["latency_ms"]) or math.inf), printed
        if stated := number(raw.get("top1", "")):
            assert row.top1 == pytest.approx(stated / 100, abs=1e-9), printed
            assert row.top1_source == "the latency's source"
        for count, raw_count, unit in [(row.params, "params_m", 1e6), (row.macs, "gmacs", 1e9)]:
            if raw.get(raw_count):
                assert count == pytest.approx(float(raw[raw_count]) * unit, abs=0.5), printed
        if "device" in raw:
            assert row.device == raw["device"] or (not raw["device"] and "not stated" in row.device)
            size = number(raw["resolution"]) or number(raw.get("resolution_assumed", ""))
            assert row.resolution == size, printed
            assert row.resolution_assumed == bool(raw.get("resolution_assumed")), printed


def test_rows_told_apart_by_the_figures_stay_apart(figures: Read) -> None:
    """No two toolchains, runtimes, precisions or compute units share a name on one device."""
    kept_apart: dict[tuple[str, str], set[tuple[str, ...]]] = {}
    raws = [raw for file in LATENCY_FILES for raw in figures(file)]
    for row, raw in zip(latencies(), raws, strict=True):
        columns = ("toolchain", "runtime", "precision", "compute_unit", "tool_versions", "target")
        kept_apart.setdefault((row.device, row.toolchain), set()).add(tuple(raw.get(c, "") for c in columns))
    mixed = {setup: found for setup, found in kept_apart.items() if len(found) > 1}
    assert not mixed


def test_every_accuracy_is_that_of_the_named_weights(figures: Read) -> None:
    accuracies = {(raw["model"], int(raw["img_size"])): raw for raw in figures("accuracy.csv")}
    assert len(accuracies) == len(figures("accuracy.csv")), "the key leaves out rows"
    known = [found for found in entries() if found.top1 is not None]
    assert len(known) == len({name.partition(".")[0] for name, _ in accuracies})
    for found in known:
        assert found.top1_size is not None
        raw = accuracies[f"{found.name}.{found.weights}", found.top1_size]
        assert found.top1 == pytest.approx(float(raw["top1"]) / 100, abs=1e-9), found
        assert found.top5 == pytest.approx(float(raw["top5"]) / 100, abs=1e-9), found
        own = (f"{found.name}.{found.weights}", found.input_size[-1])
        assert found.top1_size == own[1] or own not in accuracies, f"not at its own size: {found}"
        assert found.top1_source == raw["source"], found


# timm's tag of the weights that a model of AI Hub loads; what the others load timm has not evaluated at their size
TIMED = {
    "beit": "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "densenet121": "densenet121.tv_in1k",
    "dla102x": "dla102x.in1k",
    "levit": "levit_128s.fb_dist_in1k",
    "mobile_vit": "mobilevit_s.cvnets_in1k",
    "resnet101": "resnet101.tv_in1k",
    "resnet18": "resnet18.tv_in1k",
    "resnext50": "resnext50_32x4d.tv2_in1k",
}


def test_an_accuracy_from_elsewhere_is_of_the_weights_and_size_that_were_timed(figures: Read) -> None:
    accuracies = {(f"timm {raw['model']}", int(raw["img_size"])): raw for raw in figures("accuracy.csv")}
    borrowed = [row for row in latencies() if row.top1 is not None and row.top1_source != "the latency's source"]
    assert {(row.name, row.top1_source) for row in borrowed} == {(name, f"timm {tag}") for name, tag in TIMED.items()}
    for row in borrowed:
        assert row.resolution is not None, row
        assert row.top1 == pytest.approx(float(accuracies[row.top1_source, row.resolution]["top1"]) / 100), row
        assert not re.search(r"\bw\d", row.toolchain), f"float accuracy on a quantized file: {row}"
    # of torchvision's documentation, whose own evaluation differs from timm's by a few hundredths
    told = {row.name: row.top1 for row in borrowed}
    assert told["resnet18"] == pytest.approx(0.69758, abs=5e-4)
    assert told["resnet101"] == pytest.approx(0.77374, abs=5e-4)
    assert told["resnext50"] == pytest.approx(0.81198, abs=5e-4)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vit", "timm has not evaluated torchvision's weights at 224 px"),
        ("regnet", "timm has not evaluated torchvision's weights at 224 px"),
        ("swin_base", "timm has not evaluated torchvision's weights at 224 px"),
        ("efficientformer", "timm has not evaluated the weights that were timed at 224 px"),  # 300 epochs, not 1000
        ("efficientvit_b2_cls", "timm has not evaluated the weights that were timed at 224 px"),  # b2-r288.pt
        ("mobilenet_v2", "timm has not evaluated the weights that were timed at 224 px"),  # tonylins'
        ("MobileCLIP-L/14 image encoder", "a backbone without its head"),
        ("MobileCLIP-S0 image encoder (mci0)", "a backbone without its head"),
    ],
)
def test_an_accuracy_of_other_weights_or_of_another_head_is_left_out(name: str, why: str) -> None:
    found = [row for row in latencies() if row.name == name and not re.search(r"\bw\d", row.toolchain)]
    assert {(row.top1, row.top1_source) for row in found} == {(None, why)}


def test_every_absent_accuracy_says_why() -> None:
    assert all(row.top1_source for row in latencies() if row.top1 is None)


def test_every_claim_is_the_figures_own(figures: Read) -> None:
    raws = Counter(
        (raw["model"], raw["setting"], float(raw["value"])) for raw in figures("seeds_claims.csv") if raw["value"]
    )
    scale = {"top1": 100, "params": 1e-6, "macs": 1e-9}
    claims = [claim for found in {row["model"] for row in table("claims.csv")} for claim in published(found).claims]
    assert len(claims) == len(table("claims.csv")) > 100
    for claim in claims:
        shown = [round(claim.value * scale[claim.metric], 6)]
        shown += [round(claim.value / 1e6, 6)] if claim.metric == "macs" else []
        assert any(raws[claim.name, claim.setting, value] for value in shown), claim


def test_what_is_published_about_one_model() -> None:
    found = published("efficientformer_l1.snap_dist_in1k")
    assert ("iPhone 12", 1.6) in {(row.device, row.ms) for row in found.latencies}
    assert {row.model for row in found.latencies} == {"efficientformer_l1"}
    moat = {(claim.setting, claim.metric): claim.value for claim in published("tiny_moat_1").claims}
    assert moat["@256, IN-1K, positional embedding yes", "top1"] == pytest.approx(0.792)
    assert moat["@256, IN-1K, positional embedding yes", "params"] == 5_100_000
    assert moat["@256, IN-1K, positional embedding yes", "macs"] == 1_600_000_000
    assert {row.name for row in published("mobile_former_508m").latencies} >= {"MobileFormer-508M"}
    assert published("no_such_model") == pocketvit.catalogue.Published(latencies=(), claims=())


def test_every_source_is_written_out_and_can_be_followed() -> None:
    texts = {row["id"]: row["text"] for row in table("sources.csv")}
    named = {row["source"] for file in ("latency.csv", "claims.csv") for row in table(file)}
    named |= {row["top1_source"] for row in table("models.csv")} - {""}
    assert named == set(texts)
    assert {row["library"] for row in table("counted_with.csv")} == {"torch", "timm"}
    assert len(set(texts.values())) == len(texts)
    written = "\n".join(path.read_text(encoding="utf-8") for path in TABLES.glob("*.csv"))
    for private in ("file id", "copy id", "the brief", "task brief", "/work", "/tmp"):
        assert private not in written


def test_tables_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in TABLES.glob("*.csv")}
    assert sum(sizes.values()) < 400_000, sizes


def test_every_architecture_has_a_row() -> None:
    import pocketvit.models

    # isort: split
    import timm

    listed, known = set(timm.list_models()), {found.name for found in entries()}
    assert known == listed, f"{REBUILD}: missing {sorted(listed - known)}, gone {sorted(known - listed)}"
    package = pocketvit.models.__name__
    for found in entries():
        assert found.ours == timm.model_entrypoint(found.name).__module__.startswith(package), found.name
        assert found.params or found.note, f"{found.name} was not counted and does not say why"


def test_ours_come_first_and_patterns_select() -> None:
    ours = [found.ours for found in entries()]
    assert ours == sorted(ours, reverse=True)
    assert any(ours)
    assert {found.name for found in entries("levit_128*")} == {"levit_128", "levit_128s"}
    assert entries("no_such_*") == ()
    assert entry("no_such_model") is None
    found = entry("levit_128s.fb_dist_in1k")
    assert found is not None
    assert (found.name, found.input_size, found.weights) == ("levit_128s", (3, 224, 224), "fb_dist_in1k")


# one of each of our families, and a few of timm's
SAMPLED = [
    "efficientvit_b0",
    "levit_128s",
    "mobilenetv4_conv_small",
    "pocket_deit_patch4_32",
    "pocket_regnety_32",
    "tiny_moat_0",
    "mobile_former_26m",
    "mixformer_b0",
    "vit_tiny_aft_full",
    "vit_tiny_hyena",
]


@pytest.mark.parametrize("name", SAMPLED)
def test_counts_are_what_the_counter_says_today(name: str) -> None:
    from pocketvit.measure.cost import cost
    from pocketvit.models import create

    found, model = entry(name), create(name)
    assert found is not None, REBUILD
    counted = cost(model)
    told = f"{REBUILD}: {name} counts {counted} today"
    assert (found.params, found.macs, found.activations) == (counted.params, counted.macs, counted.activations), told
    assert found.input_size == model.spec.size, told


def test_reading_the_catalogue_is_light() -> None:
    heavy = ["torch", "timm", "numpy"]
    code = (
        "import sys\n"
        "from pocketvit import catalogue\n"
        "assert catalogue.entries() and catalogue.choose(device='iPhone 12')\n"
        f"print([m for m in {heavy} if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]", f"imported: {out}"
