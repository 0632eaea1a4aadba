"""`pocketvit export --max-drop` and the options of quantization, as a user calls them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Call


def test_a_file_within_a_budget_says_what_it_cost(shell: Call, cli: Call, checkpoint: Path) -> None:
    budget = "--max-drop 3 --data digits --rounds 5 --calibration 16".split()
    told = shell("export", checkpoint, "--to", "openvino:w8a8", *budget, "--json").json
    (file,) = told["files"]
    assert file["drop"] <= 3 + 1e-9
    assert file["trials"] >= 1
    assert file["quantized"]["layers"] + len(file["quantized"]["kept"]) == file["quantized"]["of"]
    forms = [f"{row['target']}:{row['precision']}" for row in told["rows"]]
    assert forms == ["eager:fp32", "openvino:fp32", "openvino:w8a8"]
    (recommended,) = told["recommended"]
    assert recommended["target"] == "openvino"
    printed = cli("export", checkpoint, "--to", "openvino:w8a8", *budget).out
    assert "of 3 points" in printed or "gains" in printed
    assert "ratio" in printed


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--max-drop -0.5 --data digits", "--max-drop is in points of top-1, 0 or more"),
        ("--max-drop 1", "needs labelled images of the model's 10 classes"),
        ("--max-drop 1 --data digits --calibrator mine", "There is no calibrator 'mine'"),
        ("--calibrator auto", "belongs to --max-drop"),
        ("--keep blocks.0.attn.qvk", "Did you mean"),
        ("--group-size 24", "group_size must be a power of two"),
    ],
)
def test_what_cannot_be_is_refused_before_work(cli: Call, checkpoint: Path, options: str, said: str) -> None:
    refused = cli("export", checkpoint, "--to", "onnx:w8a8", *options.split(), code=2)
    assert said in " ".join(refused.err.split()), refused.err
    assert not list(Path().glob("exported/*.onnx")), "something was written"


def test_a_quantized_file_is_not_quantized_again(cli: Call, checkpoint: Path) -> None:
    cli("export", checkpoint, "--to", "onnx:w8a8-dynamic")
    made = next(Path("exported").glob("*.onnx"))
    refused = cli("export", made, "--to", "openvino:w8a8", code=2)
    assert "is an exported file already" in " ".join(refused.err.split())


def test_a_layer_kept_by_hand_is_named_with_its_reason(cli: Call, checkpoint: Path) -> None:
    printed = cli("export", checkpoint, "--to", "onnx:w8a8", "--data", "digits", "--keep", "head").out
    assert "float: head: asked for" in printed, printed
