from __future__ import annotations

import json
from pathlib import Path

import pytest

from pocketvit.errors import BadInput
from pocketvit.types import (
    METADATA_MAX_BYTES,
    Accuracy,
    Agreement,
    Artifact,
    Evidence,
    Latency,
    Precision,
    Row,
    plain,
)


def test_artifact_metadata_round_trips_exactly(metadata: Artifact) -> None:
    assert Artifact.from_json(metadata.to_json(), metadata.path) == metadata
    assert metadata.display_name == "onnx:w8a8 vit (UNTRAINED)"


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"spec": 3}', "[" * 100_000])
def test_metadata_that_is_not_ours_is_refused(metadata: Artifact, text: str) -> None:
    with pytest.raises(BadInput, match=r"model\.onnx"):
        Artifact.from_json(text, metadata.path)


def test_metadata_with_one_wrong_value_is_refused(metadata: Artifact) -> None:
    for key in json.loads(metadata.to_json()):
        raw = json.loads(metadata.to_json())
        raw[key] = [object.__name__] if key in ("trained",) else {"surprise": 1}
        if key in ("model", "target", "weights_sha256", "trained", "made_with"):
            continue  # any value has a text or truth, and the golden vectors decide what it is worth
        with pytest.raises(BadInput):
            Artifact.from_json(json.dumps(raw), metadata.path)


def test_oversized_metadata_is_not_parsed(metadata: Artifact) -> None:
    with pytest.raises(BadInput, match="bytes of pocketvit metadata"):
        Artifact.from_json(" " * (METADATA_MAX_BYTES + 1), metadata.path)


def test_row_round_trips_through_json_with_infinities() -> None:
    row = Row(
        name="Infinity vit",
        target="onnx",
        precision="fp32",
        trained=True,
        file="a.onnx",
        size_bytes=1,
        accuracy=Accuracy(top1=0.5, top5=1.0, images=2),
        agreement=Agreement(
            images=2, sqnr_db=float("inf"), cosine=1, max_abs_error=0, top1=1, worst_image=0, smallest_margin=0.1
        ),
        latency=Latency(median_ms=1, p10_ms=1, p90_ms=2, runs=3, threads=2, evidence=Evidence.PUBLISHED),
        quantized=None,
        check="ok",
    )
    assert Row.from_dict(json.loads(json.dumps(row.to_dict()))) == row


def test_plain_knows_every_kind_of_value(metadata: Artifact) -> None:
    value = {"a": (1, float("nan")), "b": Path("x"), "c": Precision.FP32, "d": metadata.quantized}
    assert plain(value) == {"a": [1, "nan"], "b": "x", "c": "fp32", "d": {"layers": 3, "of": 4, "kept": {}}}


def test_every_precision_is_made_by_some_target_and_has_a_floor() -> None:
    from pocketvit.targets import TARGETS

    made = {precision for name in TARGETS for precision in TARGETS.get(name).precisions}
    assert made == set(Precision)
    floors = [p.floor_db for p in (Precision.FP32, Precision.FP16, Precision.BF16, Precision.W8, Precision.W8A8)]
    assert floors == sorted(floors, reverse=True)
