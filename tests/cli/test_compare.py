"""The compare command on a trained checkpoint: a table and JSON like other commands', a chart with every bar."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from pocketvit.comparison import comparing
from pocketvit.types import Row

QUICK = ("torchao", "torchscript", "torchscript-x86", "mobile")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A few forms, none of which compiles or converts: what those give is tested elsewhere."""
    forms = tuple(form for form in comparing.FORMS if form.target in QUICK)
    monkeypatch.setattr(comparing.compare, "__kwdefaults__", comparing.compare.__kwdefaults__ | {"forms": forms})


def test_json_has_every_form_with_what_was_found(cli, checkpoint: Path, tmp_path: Path) -> None:
    arguments = "--data digits --images 20 --rounds 2 --threads 1 --out cmp --json".split()
    found = cli("compare", checkpoint, *arguments).json
    candidates = found["candidates"]
    assert [entry["target"] for entry in candidates] == ["eager", *QUICK]
    for entry in candidates:
        row = Row.from_dict({key: value for key, value in entry.items() if key != "profile"})
        if row.latency is not None:
            assert row.accuracy is not None
            assert row.accuracy.top1 > 0.3, f"{row.target}: top-1 {row.accuracy.top1:.2f} of a model trained on digits"
            assert entry["profile"][0]["ms"] > 0
        else:
            assert row.check.startswith("not run, unavailable here: "), row.check
    assert found["trained"] is True
    assert found["note"] is None
    assert found["environment"]["threads"] == "1"
    assert found["chart"] == "cmp/comparison.png"
    with Image.open(tmp_path / "cmp" / "comparison.png") as image:
        assert image.format == "PNG"
    assert (tmp_path / candidates[2]["file"]).stat().st_size == candidates[2]["size_bytes"]


def test_a_person_reads_one_table_the_profile_and_where_the_chart_is(cli, checkpoint: Path, tmp_path: Path) -> None:
    out = cli("compare", checkpoint, "--images", 5, "--rounds", 1, "--threads", 1).out
    flat = " ".join(out.split())
    for words in ("eager:fp32", "torchao:w8a8-dynamic", "torchscript-x86:w8a8", "1.00×", "reference"):
        assert words in flat, f"{words} is not in:\n{out}"
    assert "No accuracy: photos has 2 classes" in flat
    assert "original, eager:fp32: the model in PyTorch, as it is" in flat
    assert "quantize_dynamic on" in flat
    assert "self CPU time of one image" in flat
    assert "quantized::linear_dynamic" in flat
    assert "compare within this table only" in flat
    assert "Chart: compared/comparison.png" in flat
    assert (tmp_path / "compared" / "comparison.png").is_file()


def test_arguments_reach_the_model_and_what_holds_something_is_left_alone(cli, tmp_path: Path) -> None:
    small = "embed_dim=32 depth=1 num_heads=2 img_size=32 patch_size=8 num_classes=10".split()
    options = [word for pair in small for word in ("--arg", pair)]
    command = ["compare", "vit_tiny_patch16_224", *options, "--images", 5, "--rounds", 1, "--data", "digits", "--json"]
    found = cli(*command).json
    assert found["trained"] is False
    assert found["candidates"][0]["accuracy"]["images"] == 5
    refused = cli(*command, code=2)
    assert "compared exists; choose another directory" in json.loads(refused.out)["error"]


def test_a_form_that_is_wrong_is_an_exit_code(cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pocketvit import types

    monkeypatch.setitem(types._FLOOR_DB, types.Precision.W8A8_DYNAMIC, 500.0)
    found = cli("compare", checkpoint, "--data", "digits", "--images", 5, "--rounds", 1, "--json", code=1).json
    failed = next(entry for entry in found["candidates"] if entry["target"] == "torchao")
    assert "below the 500 dB floor of w8a8-dynamic" in failed["check"]
    assert failed["agreement"]["sqnr_db"] > 0
    assert failed["latency"] is None


def test_help_says_what_it_compares(cli) -> None:
    out = " ".join(cli("compare", "--help").out.replace("│", " ").split())
    assert "Example: pocketvit compare my_vit" in out
    assert "--json" in out
    assert "ExecuTorch" in out
