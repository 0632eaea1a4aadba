"""--pass: a rewrite before an export, a check or an audit."""

from __future__ import annotations

from pathlib import Path

import pytest

MODEL = "test_vit"


def test_a_rewritten_model_is_exported_and_proven_against_the_model_itself(cli, tmp_path: Path) -> None:
    found = cli("export", MODEL, "--to", "onnx:fp32", "--pass", "ane", "-o", "rewritten.onnx", "--json").json
    (file,) = found["files"]
    assert found["model"] == f"{MODEL}+ane"
    assert file["ok"], file
    assert file["agreement"]["sqnr_db"] > 80, file["agreement"]
    path = tmp_path / "rewritten.onnx"

    import onnx

    layers = [node.op_type for node in onnx.load(path).graph.node]
    assert layers.count("Softmax") == 12, "two heads in each of six blocks"

    rewritten = cli("verify", path, "--against", MODEL, "--pass", "ane", "--json").json
    assert rewritten["ok"], rewritten
    assert rewritten["model"] == f"{MODEL}+ane"
    plain = cli("verify", path, "--against", MODEL, "--json", code=1).json
    assert "other weights than those of test_vit" in plain["check"], plain
    assert plain["agreement"]["sqnr_db"] > 80, "the rewrite changes no outputs, so the model itself agrees as well"


def test_an_audit_shows_what_a_pass_changes(cli) -> None:
    out = cli("audit", MODEL, "--for", "ane", "--pass", "ane").out
    assert "before and after (predicted)" in out, out
    rows = {line.split("  ")[0].strip(): line.split()[-2:] for line in out.splitlines() if line.strip()}
    before, after = map(int, rows["transposes"])
    assert after < before, out
    found = cli("audit", MODEL, "--for", "ane", "--pass", "ane", "--json").json
    assert (found["before"]["transposes"], found["audit"]["transposes"]) == (before, after)
    assert found["name"].startswith(f"{MODEL}+ane")
    assert found["audit"]["padded_bytes"] <= found["before"]["padded_bytes"]


def test_an_audit_without_passes_has_no_before(cli) -> None:
    assert cli("audit", MODEL, "--json").json["before"] is None
    assert "before and after" not in cli("audit", MODEL).out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["audit", MODEL, "--pass", "anne"], "Did you mean ane"),
        (["export", MODEL, "--to", "onnx", "--pass", "prun:sparsity=0.5"], "Did you mean prune"),
        (["export", MODEL, "--to", "onnx", "--pass", "ane:head=false"], "Did you mean heads"),
        (["export", MODEL, "--to", "onnx", "--pass", "ane:position=lepe"], "adds no relative position bias"),
        (["audit", MODEL, "--pass", "ane", "--sweep"], "leave the passes out"),
        (["audit", "net.mlpackage", "--pass", "ane"], "passes are applied to the model it came from"),
        (["audit", MODEL, "--for", "fp16", "--pass", "ane"], "--pass is no option of an audit for fp16"),
    ],
)
def test_refusals(cli, tmp_path: Path, arguments: list[str], says: str) -> None:
    refused = cli(*arguments, code=2)
    assert says in " ".join(refused.err.replace("│", " ").split()), refused.err
    assert not list(tmp_path.glob("exported/*"))


def test_a_pruned_model_is_another_function_and_held_against_itself(cli) -> None:
    """Pruning changes outputs: the file is proven against the pruned model."""
    out = cli("export", MODEL, "--to", "onnx", "--pass", "prune:sparsity=0.9", "--json").json
    assert out["files"][0]["ok"], out
    assert out["model"] == f"{MODEL}+prune0.9"
