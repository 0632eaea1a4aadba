"""models, choose and what info says of published figures, as a user's shell sees them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from pocketvit.catalogue import PublishedLatency, choosing
from pocketvit.packaged import packaged
from pocketvit.types import Evidence

COUNTED, SCORED = ("params", "macs", "activations"), ("top1", "top5")
PHONE, TOOLS = "Phone 1", ("Tools A, timed", "Tools B")


def row(
    name: str, tool: str, ms: float, top1: float | None, params: float | None = 1e6, **changes
) -> PublishedLatency:
    """One published row; top1 in percent."""
    values: dict[str, Any] = {
        "model": None,
        "name": name,
        "device": PHONE,
        "os": "",
        "toolchain": tool,
        "toolchain_stated": f"{tool}, as stated",
        "resolution": 224,
        "resolution_assumed": False,
        "ms": ms,
        "top1": None if top1 is None else top1 / 100,
        "top1_source": "the latency's source",
        "params": round(params),
        "macs": None,
        "read_from": "figure_digitised",
        "note": "",
        "source": f"{tool}: Table 1",
    }
    return PublishedLatency(**values | changes)


# Tools A: quick and good are the front, since slow is no better than good, and worse takes longer than quick for less.
ROWS = (
    row("quick", TOOLS[0], 1.0, 70.0),
    row("worse", TOOLS[0], 1.5, 69.0),
    row("good", TOOLS[0], 2.0, 80.0, 5e6),
    row("slow", TOOLS[0], 4.0, 80.0),
    row("unscored", TOOLS[0], 0.5, None),
    # would beat every row of Tools A, were they compared
    row("quickest", TOOLS[1], 0.1, 85.0, 50e6, source="Another [Table 2]", resolution_assumed=True),
)


@pytest.fixture
def hand_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """The six rows above in place of the packaged ones."""
    monkeypatch.setattr(choosing, "latencies", lambda: ROWS)


def untagged(value: Any, where: str = "") -> list[str]:
    """Numbers of a document that are in no object with an evidence; facts that are not findings left out."""
    if isinstance(value, dict):
        if "evidence" in value:
            assert value["evidence"] in set(Evidence), f"{where}: {value['evidence']}"
            assert value["source"], f"{where} names no source"
            return []
        facts = ("resolution", "considered", "limits", "front")
        return [w for key, part in value.items() if key not in facts for w in untagged(part, f"{where}.{key}")]
    if isinstance(value, list):
        return [w for i, part in enumerate(value) for w in untagged(part, f"{where}[{i}]")]
    return [where] if isinstance(value, int | float) and not isinstance(value, bool) else []


def test_the_front_of_each_toolchain_stands_in_a_table_of_its_own(cli, hand_made) -> None:
    out = cli("choose", "--device", "phone 1").out
    first, second = out.split(f"{PHONE}, {TOOLS[1]}")
    assert first.startswith(f"{PHONE}, {TOOLS[0]}")
    assert [name for name in ("quick", "worse", "good", "slow", "unscored") if f"\n{name} " in first] == [
        "quick",
        "good",
    ]
    assert "quickest" not in first
    assert "\nquickest " in second
    assert "2 of 4 that no other beats in both time and top-1; --all shows the other 2." in first
    assert "1 of 5 rows: no published top-1" in first


def test_every_number_of_the_table_leads_to_its_source(cli, hand_made) -> None:
    lines = cli("choose", "--device", PHONE).out.splitlines()
    (good,) = [line for line in lines if line.startswith("good ")]
    assert good.split()[4:] == ["2", "[1]", "80.0", "[1]", "5.00", "[1]", "224", "figure"], good
    (quickest,) = [line for line in lines if line.startswith("quickest ")]
    assert quickest.split()[4:] == ["0.1", "[2]", "85.0", "[2]", "50.0", "[2]", "224?", "figure"], quickest
    assert [line.count("published") for line in lines if line.lstrip().startswith("model")] == [2, 2]
    assert f"[1] published: {TOOLS[0]}: Table 1" in lines
    assert "[2] published: Another [Table 2]" in lines
    assert any(line.startswith("? the source does not say") for line in lines)


def test_all_shows_what_others_beat_and_marks_the_front(cli, hand_made) -> None:
    out = cli("choose", "--device", PHONE, "--toolchain", "tools a", "--all").out
    marked = {line.split()[1] for line in out.splitlines() if line.startswith("● ") and "[1]" in line}
    assert marked == {"quick", "good"}
    assert "\n  worse " in out
    assert "\n  slow " in out
    assert TOOLS[1] not in out


def test_the_document_has_every_row_and_says_how_each_number_is_known(cli, hand_made) -> None:
    found = cli("choose", "--device", PHONE, "--max-ms", 3, "--json").json
    assert (found["device"], found["limits"]["max_ms"], found["plot"]) == (PHONE, 3, None)
    first, second = found["choices"]
    assert (first["toolchain"], second["toolchain"]) == TOOLS
    assert [(r["name"], r["front"]) for r in first["rows"]] == [("quick", True), ("worse", False), ("good", True)]
    assert {r["latency_ms"]["source"] for r in first["rows"]} == {f"{TOOLS[0]}: Table 1"}, "toolchains are mixed"
    assert first["rows"][2]["top1"] == {
        "value": 0.8,
        "evidence": "published",
        "source": f"{TOOLS[0]}: Table 1",
        "detail": "",
    }
    assert untagged(found) == []


@pytest.mark.parametrize(
    ("limits", "names"),
    [
        ("--max-ms 2", ["quick", "good"]),
        ("--max-ms 1.99", ["quick"]),
        ("--min-top1 80", ["good"]),
        ("--max-params 1e6", ["quick", "slow"]),
        ("--max-params 1e6 --min-top1 75", ["slow"]),
    ],
)
def test_limits_are_kept(cli, hand_made, limits: str, names: list[str]) -> None:
    found = cli("choose", "--device", PHONE, "--toolchain", TOOLS[0], *limits.split(), "--json").json
    (choice,) = found["choices"]
    assert [r["name"] for r in choice["rows"] if r["front"]] == names


def test_a_budget_that_nothing_keeps_is_said_with_the_nearest_miss(cli, hand_made) -> None:
    found = cli("choose", "--device", PHONE, "--toolchain", "Tools A", "--max-ms", 0.9, "--min-top1", 60, code=1)
    assert "4 of 5 rows: slower than 0.9 ms" in found.out
    assert "nearest is quick, 1 ms at 70.0% top-1" in found.out
    found = cli("choose", "--device", PHONE, "--toolchain", "Tools A", "--max-ms", 0.9, "--json", code=1).json
    assert found["choices"][0]["rows"] == []


def test_without_a_device_all_are_listed_with_their_counts(cli, hand_made) -> None:
    assert cli("choose", "--json").json == {
        "setups": [
            {"device": PHONE, "toolchain": TOOLS[0], "rows": 5},
            {"device": PHONE, "toolchain": TOOLS[1], "rows": 1},
        ]
    }
    lines = cli("choose").out.splitlines()
    assert lines[2].split() == ["Phone", "1", "5", "Tools", "A,", "timed"]
    assert lines[3].split() == ["1", "Tools", "B"]
    assert "6 published rows of 1 devices" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--device Phone", "no published latency for a device called 'Phone'. Did you mean Phone 1?"),
        ("--device 'Phone 1' --toolchain tflite", "toolchain called 'tflite'"),
        ("--device 'Phone 1' --toolchain ''", "A toolchain without a name matches every one"),
        ("--toolchain ''", "Add --device NAME"),
        ("--max-ms 3", "Add --device NAME"),
        ("--toolchain A", "Add --device NAME"),
        ("--device 'Phone 1' --max-ms 0", "--max-ms takes a positive number, not 0"),
        ("--device 'Phone 1' --max-ms nan", "--max-ms takes a positive number, not nan"),
        ("--device 'Phone 1' --max-params -5", "--max-params takes a positive number, not -5"),
        ("--device 'Phone 1' --min-top1 101", "percent from 0 to 100, as 75, not 101"),
        ("--device 'Phone 1' --min-top1 -1", "percent from 0 to 100, as 75, not -1"),
        ("--device 'Phone 1' --min-top1 0.75", "did you mean 75?"),
        ("--device 'Phone 1' --plot a.pdf", "a.pdf ends in none of these"),
        ("--device 'Phone 1' --plot a.svg", f"Name one with --toolchain: {TOOLS[0]}; {TOOLS[1]}."),
        ("--device 'Phone 1' --toolchain B --plot old.svg", "old.svg exists"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence_and_exit_code_2(
    cli, hand_made, tmp_path: Path, arguments: str, words: str
) -> None:
    import shlex

    (tmp_path / "old.svg").write_text("precious")
    found = cli("choose", *shlex.split(arguments), "--json", code=2)
    assert words in found.json["error"]
    assert {p.name for p in tmp_path.iterdir()} == {"old.svg", "cache"}
    assert (tmp_path / "old.svg").read_text() == "precious"


@pytest.mark.parametrize("suffix", ["svg", "html"])
def test_one_toolchain_can_be_drawn(cli, hand_made, tmp_path: Path, suffix: str) -> None:
    found = cli("choose", "--device", PHONE, "--toolchain", "Tools A", "--max-ms", 3, "--plot", f"a.{suffix}")
    assert f"Plot: a.{suffix}" in found.out
    text = (tmp_path / f"a.{suffix}").read_text()
    assert "outside the budget" in text, "rows outside the budget are left out of the figure"
    assert "good" in text
    assert "quickest" not in text, "a row of another toolchain is in the figure"


def test_a_missing_drawing_library_is_named_before_anything_is_done(cli, hand_made, monkeypatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "matplotlib" else find(name, *a))
    found = cli("choose", "--device", PHONE, "--toolchain", "Tools A", "--plot", "a.png", code=2)
    assert "pip install 'pocketvit[plot]'" in found.err


def test_the_packaged_rows_answer_the_example(cli) -> None:
    found = cli(*"choose --device".split(), "iPhone 12", *"--max-ms 3 --min-top1 75 --json".split()).json
    assert len(found["choices"]) > 5
    assert untagged(found) == []
    for choice in found["choices"]:
        rows = choice["rows"]
        points = [(r["latency_ms"]["value"], r["top1"]["value"]) for r in rows]
        assert all(ms <= 3 and top1 >= 0.75 for ms, top1 in points)
        beaten = [any(a <= x and b >= y and (a, b) != (x, y) for a, b in points) for x, y in points]
        assert [not r["front"] for r in rows] == beaten, choice["toolchain"]
    by_name = {
        r["name"]: r for choice in found["choices"] for r in choice["rows"] if "V2: Core" in choice["toolchain"]
    }
    # EfficientFormerV2 (arXiv 2212.08059), README of its repository
    assert by_name["EfficientFormerV2-S2"]["latency_ms"]["value"] == 1.6
    assert by_name["EfficientFormerV2-S2"]["top1"]["value"] == 0.816


def test_models_and_choose_are_quick_and_need_no_torch(shell, tmp_path: Path) -> None:
    (tmp_path / "broken" / "torch").mkdir(parents=True)
    (tmp_path / "broken" / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: file too short')")
    env = {"PYTHONPATH": str(tmp_path / "broken")}
    assert "deit_tiny_patch16_224" in shell("models", "deit_tiny*", env=env).out
    assert "iPhone 12" in shell("choose", env=env).out


def test_every_model_that_can_be_named_is_listed_ours_first(cli) -> None:
    import timm

    import pocketvit.models  # noqa: F401 - registers ours

    found = cli("models", "--json").json
    assert {m["name"] for m in found} == set(timm.list_models())
    ours = [m["ours"] for m in found]
    assert ours == sorted(ours, reverse=True)
    assert {"moat_0", "mixformer_b1", "mobile_former_294m"} <= {m["name"] for m in found if m["ours"]}


def test_a_number_of_a_model_says_how_it_is_known(cli) -> None:
    for model in cli("models", "*deit*", "--json").json:
        for key, kind in {**dict.fromkeys(COUNTED, "measured"), **dict.fromkeys(SCORED, "published")}.items():
            assert (model.get(key) is not None) == (model["evidence"].get(key) == kind), (model["name"], key)
    (deit,) = cli("models", "deit_tiny_patch16_224", "--json").json
    # 5.72 M parameters and 72.2% top-1 are in every table of DeiT (arXiv 2012.12877)
    assert (deit["params"], round(deit["top1"], 3)) == (5717416, 0.722)
    assert (deit["input_size"], deit["pretrained"], deit["ours"]) == ([3, 224, 224], True, False)
    assert "results-imagenet" in deit["top1_source"]


def test_models_can_be_limited_and_sorted(cli) -> None:
    asked = "--max-params 10e6 --max-macs 2e9 --min-top1 75 --json".split()
    found = cli("models", "*vit*", *asked, "--sort", "top1").json
    assert len(found) > 10
    assert all(m["params"] <= 10e6 and m["macs"] <= 2e9 and m["top1"] >= 0.75 for m in found)
    scores = [m["top1"] for m in found]
    assert scores == sorted(scores, reverse=True)
    for key in ("params", "macs", "name"):
        values = [m[key] for m in cli("models", "*vit*", *asked, "--sort", key).json]
        assert values == sorted(values), key
    unlimited = cli("models", "*vit*", "--sort", "top1", "--json").json
    known = [m.get("top1") is not None for m in unlimited]
    assert known == sorted(known, reverse=True), "models without a top-1 do not come last"
    assert not all(known)


def test_the_list_for_people_is_short_and_says_how_many_are_left(cli) -> None:
    lines = cli("models", "deit*").out.splitlines()
    whole = cli("models", "deit*", "--all").out.splitlines()
    assert lines[-1].startswith("... and ")
    assert len(whole) == len(lines) - 1 + int(lines[-1].split()[2])
    assert next(line for line in whole if line.startswith("deit_tiny_patch16_224 ")).split() == [
        "deit_tiny_patch16_224",
        "5.72",
        "1.26",
        "5.97",
        "224",
        "72.2",
        "fb_in1k",
    ]


def test_no_model_or_row_is_left_out_by_its_own_value_in_percent() -> None:
    """What a table prints, typed again as a limit, keeps what it was printed for."""
    from pocketvit.catalogue import entries, latencies
    from pocketvit.cli import catalogue

    known = [found for found in entries() if found.top1 is not None]
    lost = [f.name for f in known if not catalogue._within(f, {}, catalogue._share(float(f"{100 * f.top1:.4f}")))]
    assert not lost
    for name in ("params", "macs"):
        lost = [f.name for f in known if not catalogue._within(f, {name: float(getattr(f, name))}, None)]
        assert not lost, name
    shares = {row.top1 for row in latencies() if row.top1 is not None}
    assert not [share for share in shares if catalogue._share(float(f"{100 * share:.4f}")) > share]
    assert 81.4 / 100 > 0.814, "the rounding this guards against"


def test_no_model_within_the_limits_is_said_in_words(cli) -> None:
    found = cli("models", "deit_*", "--min-top1", 99.5, code=1)
    assert "None of the" in found.out
    assert cli("models", "deit_*", "--min-top1", 99.5, "--json", code=1).json == []


@pytest.mark.parametrize("arguments", ["--min-top1 0.8", "--max-params 0", "--max-macs inf", "--sort size"])
def test_limits_that_make_no_sense_are_refused(cli, arguments: str) -> None:
    assert cli("models", *arguments.split(), code=2).err


def test_a_model_that_is_registered_but_not_counted_is_listed_without_figures(cli, monkeypatch) -> None:
    from pocketvit.cli import catalogue

    registered = catalogue._registered()
    monkeypatch.setattr(catalogue, "_registered", lambda: registered | {"brand_new_vit": True})
    (found,) = cli("models", "brand_new*", "--json").json
    assert (found["ours"], found["pretrained"], found["evidence"]) == (True, None, {})
    assert cli("models", "brand_new*").out.splitlines()[-1].split() == ["brand_new_vit", "not", "counted"]
    assert cli("models", "brand_new*", "--max-params", 1e9, code=1)


def test_info_gives_what_is_published_beside_what_is_counted(cli) -> None:
    found = cli("info", "efficientformerv2_s0", "--json").json
    assert {"name", "trained", "params", "macs", "classes", "input", "labels", "weights_sha256"} <= set(found)
    assert found["activations"] > 1e6
    assert untagged(found["published"]) == []
    latencies = [one for one in found["published"] if one["metric"] == "latency_ms"]
    assert "iPhone 12" in {one["device"] for one in latencies}
    words = " ".join(cli("info", "efficientformerv2_s0").out.split())
    assert "published: top-1 7" in words
    assert "published latencies: iPhone 12 (" in words


def test_info_gives_the_figures_of_the_papers_of_our_families(cli) -> None:
    found = cli("info", "moat_0", "--json").json
    claims = {(one["metric"], one["value"]) for one in found["published"]}
    # MOAT-0 (arXiv 2210.01820, table 2): 27.8 M parameters, 5.7 G multiply-accumulates, 83.3% top-1
    assert {("params", 27.8e6), ("macs", 5.7e9), ("top1", 0.833)} <= claims
    for metric in ("params", "macs"):
        (published,) = {value for name, value in claims if name == metric}
        assert abs(found[metric] / published - 1) < 0.02, (metric, found[metric], published)
    assert "83.3% (@224" in " ".join(cli("info", "moat_0").out.split())


def test_info_of_ones_own_weights_claims_nothing_published(cli, tmp_path: Path) -> None:
    from pocketvit.models import create, save

    save(create("test_vit"), tmp_path / "deit_tiny_patch16_224")
    found = cli("info", "deit_tiny_patch16_224", "--json").json
    assert found["params"] < 1e6, "the directory is not what was read"
    assert found["published"] == []
    assert "published" not in json.dumps(cli("info", "deit_tiny_patch16_224").out)


def test_the_checkpoints_that_ship_are_listed_with_what_they_reach(cli) -> None:
    listed = {row["name"]: row for row in cli("models", "--ours", "--json").json}
    assert listed.keys() == packaged().keys()
    shown = cli("models", "*moat*", "--ours").out
    assert "pocket_moat_48.cifar10" in shown
    assert f"{listed['pocket_moat_48.cifar10']['top1']:.2%}" in shown
    assert "pocket_resnet" not in shown
    assert "pocket_deit_distilled_patch4_32.cifar10" in cli("models", "--ours").out
    assert "No packaged checkpoint matches 'nothing*'" in cli("models", "nothing*", "--ours", code=2).err
