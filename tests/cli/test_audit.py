"""The audit command: what it prints, its JSON, its page, its refusals."""

from __future__ import annotations

import re

import pytest

MODEL = "pocket_deit_patch4_32"


def test_a_model_in_a_terminal_and_as_a_page(cli, tmp_path):
    out = cli("audit", MODEL, "--for", "ane", "--html", "page.html").out
    lines = out.splitlines()
    assert len(lines) <= 25, out
    assert lines[0].startswith(f"{MODEL} (UNTRAINED)")
    assert "predicted" in out
    assert "blocks.*.attn" in out
    assert not re.search(r"\d\s*ms\b", out), "an audit predicts no times"
    page = (tmp_path / "page.html").read_text()
    assert "<script" not in page
    assert 'http-equiv="Content-Security-Policy" content="default-src \'none\'' in page
    assert "blocks.*.attn" in page
    assert not re.search(r"\d\s*ms\b", page)


def test_json_has_every_finding(cli):
    found = cli("audit", MODEL, "--json").json
    assert found["for"] == "ane"
    assert found["audit"]["evidence"] == "predicted"
    assert found["audit"]["ops"] > 20
    assert found["audit"]["name"] == found["name"]
    assert found["audit"]["padding_ratio"] == found["audit"]["padded_bytes"] / found["audit"]["logical_bytes"]
    assert found["audit"]["wasted_share"] == found["audit"]["wasted_bytes"] / found["audit"]["padded_bytes"]
    named = sum(group["wasted_bytes"] for group in found["groups"])
    assert named + found["audit"]["small_padding_bytes"] == found["audit"]["wasted_bytes"]
    assert sum(group["count"] for group in found["groups"]) == len(found["audit"]["findings"])
    used = {finding["rule"] for finding in found["audit"]["findings"]}
    sources = {rule["id"]: rule["source"] for rule in found["rules"]}
    assert used <= set(sources)
    assert all(source.startswith("https://") for source in sources.values())
    assert found["sweep"] is None
    assert found["score"] is None
    wasted = [finding["wasted_bytes"] for finding in found["audit"]["findings"]]
    assert wasted == sorted(wasted, reverse=True)


def test_sweep_of_chosen_sizes(cli):
    out = cli("audit", MODEL, "--sweep", "--size", "32", "--size", "48", "--size", "64").out
    rows = [line.split()[0] for line in out.splitlines() if re.match(r" *\d+ +[\d,]+ ", line)]
    assert rows == ["32", "48", "64"], out
    assert "other sizes, predicted" in out
    assert "cliff" in out


def test_all_prints_what_is_left_out(cli):
    short, long = cli("audit", MODEL).out, cli("audit", MODEL, "--all").out
    hidden = int(re.search(r"\.\.\. and (\d+) more", short)[1])
    assert hidden > 0
    assert "... and" not in long


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["levit_129s"], "levit_128s"),
        ([MODEL, "--for", "gpu"], "'gpu' is not"),
        ([MODEL, "--html", "."], "is a directory"),
        ([MODEL, "--html", "there.html"], "there.html exists"),
        ([MODEL, "--html", "there.html/page.html"], "there.html/page.html cannot be written"),
        (["net.mlpackage", "--sweep"], "a sweep needs the model"),
        (["net.mlpackage"], "There is no net.mlpackage"),
        (["plain.mlpackage"], "not a Core ML package"),
        ([MODEL, "--plan", "plan.json"], "belongs to a package"),
        ([MODEL, "--sweep", "--size", "-1"], "-1 pixels"),
    ],
)
def test_refusals(cli, tmp_path, arguments, says):
    (tmp_path / "there.html").write_text("mine")
    (tmp_path / "plain.mlpackage").mkdir()
    refused = cli("audit", *arguments, code=2)
    assert says in " ".join(refused.err.replace("│", " ").split()), refused.err
    assert (tmp_path / "there.html").read_text() == "mine"


def test_a_refusal_is_json_too(cli):
    found = cli("audit", MODEL, "--html", ".", "--json", code=2).json
    assert found["exit_code"] == 2
    assert "is a directory" in found["error"]


def test_the_example_in_the_help_is_a_command_that_parses(shell):
    text = shell("audit", "--help").out
    assert "pocketvit audit levit_128s --for ane --sweep" in " ".join(text.split())
