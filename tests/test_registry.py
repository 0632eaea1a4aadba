from __future__ import annotations

import pytest

from pocketvit.errors import BadInput
from pocketvit.registry import Registry, close_matches


def test_a_name_taken_twice_raises() -> None:
    things: Registry[int] = Registry("thing", "pocketvit.recipes_without_files")
    things.add("one", 1)
    with pytest.raises(ValueError, match="thing 'one' is registered twice"):
        things.add("one", 2)


def test_an_unknown_name_says_what_is_near() -> None:
    from pocketvit.targets import TARGETS

    with pytest.raises(BadInput, match=r"no target called 'onx'\. Did you mean onnx"):
        TARGETS.get("onx")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("deit_tny", " Did you mean deit_tiny_patch16_224?"),
        ("deit_tiny_patch16_223", " Did you mean deit_tiny_patch16_224?"),
        ("zzzz", ""),
    ],
)
def test_close_matches(name: str, expected: str) -> None:
    assert close_matches(name, ["deit_tiny_patch16_224", "resnet50", "mobilevit_s"]) == expected
