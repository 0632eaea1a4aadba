from __future__ import annotations

import base64
import dataclasses

import numpy as np
import pytest

from pocketvit.data import open_data, sample
from pocketvit.errors import BadInput, CheckFailed
from pocketvit.golden import golden_count, golden_images, make_golden
from pocketvit.types import Artifact, InputSpec

SPEC = InputSpec(size=(3, 32, 48), crop_pct=1.0)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return sample(open_data("photos"), SPEC, 3)


@pytest.fixture(scope="module")
def artifact(metadata: Artifact, images: np.ndarray) -> Artifact:
    golden = make_golden(images, np.arange(6, dtype=np.float32).reshape(3, 2))
    return dataclasses.replace(metadata, spec=SPEC, golden=golden)


def test_golden_images_come_back_exactly(artifact: Artifact, images: np.ndarray) -> None:
    again = golden_images(Artifact.from_json(artifact.to_json(), artifact.path))
    assert np.array_equal(again, images), np.abs(again - images).max()


def test_count_is_bounded_by_size() -> None:
    assert golden_count(InputSpec(size=(3, 32, 32))) == 4
    assert golden_count(InputSpec(size=(3, 224, 224))) == 2
    assert golden_count(InputSpec(size=(3, 1024, 1024))) == 1


def damaged(artifact: Artifact, **changes) -> Artifact:
    return dataclasses.replace(artifact, golden=dataclasses.replace(artifact.golden, **changes))


def test_images_that_do_not_match_their_hash_fail(artifact: Artifact) -> None:
    swapped = artifact.golden.images[::-1]
    with pytest.raises(CheckFailed, match="not those their hash was taken of"):
        golden_images(damaged(artifact, images=swapped))


@pytest.mark.parametrize(
    "packed", [("!",), (base64.b64encode(b"not a png").decode(),), (), ("",)], ids=["base64", "png", "none", "empty"]
)
def test_unreadable_images_are_refused(artifact: Artifact, packed: tuple) -> None:
    with pytest.raises(BadInput):
        golden_images(damaged(artifact, images=packed, logits=((1.0,),) * len(packed)))


def test_a_count_that_would_fill_memory_is_refused(artifact: Artifact) -> None:
    many = artifact.golden.images[:1] * 100_000
    with pytest.raises(BadInput, match="100000 golden images"):
        golden_images(damaged(artifact, images=many))
