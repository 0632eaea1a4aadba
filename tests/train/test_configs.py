"""read_config: from YAML's mappings to frozen configs, with sentences for what does not fit."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import pytest
import yaml

from pocketvit.configs import read_config
from pocketvit.errors import BadInput


class Colour(StrEnum):
    RED = "red"
    GREEN = "green"


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner:
    depth: int = 1

    def __post_init__(self):
        if self.depth < 1:
            raise BadInput(f"depth must be at least 1, not {self.depth}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer:
    rate: float
    name: str = "a"
    flag: bool = False
    count: int | None = None
    either: int | str = 0
    colour: Colour = Colour.RED
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[Inner, ...] = ()
    inner: Inner | None = None
    place: Path = Path()
    table: Mapping[str, int] | None = None


def test_every_kind_of_field_is_read_from_yaml():
    text = """
    rate: 5e-4          # YAML 1.1 takes this for text
    name: b
    flag: true
    count: 3
    either: x
    colour: green
    pair: [0, 0.5]
    many: [{depth: 2}, {}]
    inner: {depth: 3}
    place: some/where
    table: {a: 1}
    """
    assert read_config(Outer, yaml.safe_load(text), "r.yaml") == Outer(
        rate=5e-4,
        name="b",
        flag=True,
        count=3,
        either="x",
        colour=Colour.GREEN,
        pair=(0.0, 0.5),
        many=(Inner(depth=2), Inner()),
        inner=Inner(depth=3),
        place=Path("some/where"),
        table={"a": 1},
    )


def test_defaults_and_none():
    assert read_config(Outer, {"rate": 1, "count": None, "inner": None}, "r.yaml") == Outer(rate=1.0)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({"rate": 1, "colur": "red"}, "r.yaml has no key 'colur'. Did you mean colour"),
        ({"rate": 1, "zzz": 1}, "r.yaml has no key 'zzz'. It knows rate, name"),
        ({}, "r.yaml needs the key 'rate'."),
        ({"rate": "fast"}, "r.yaml.rate must be a number, not 'fast'."),
        ({"rate": True}, "r.yaml.rate must be a number, not True."),
        ({"rate": 1, "count": 1.5}, "r.yaml.count must be a whole number, not 1.5."),
        ({"rate": 1, "count": True}, "r.yaml.count must be a whole number, not True."),
        ({"rate": 1, "flag": 1}, "r.yaml.flag must be true or false, not 1."),
        ({"rate": 1, "name": None}, "r.yaml.name must be text, not empty (null)."),
        ({"rate": 1, "either": []}, "r.yaml.either must be a whole number or text, not []."),
        ({"rate": 1, "colour": "gren"}, "r.yaml.colour must be one of red, green, not 'gren'. Did you mean green?"),
        ({"rate": 1, "pair": [1]}, "r.yaml.pair must be a list of 2 values (a number, a number), not 1 of them."),
        ({"rate": 1, "pair": 1}, "r.yaml.pair must be a list of 2 values (a number, a number), not 1."),
        ({"rate": 1, "pair": [1, "x"]}, "r.yaml.pair[1] must be a number, not 'x'."),
        ({"rate": 1, "inner": 4}, "r.yaml.inner must be a mapping of keys to values, not 4."),
        ({"rate": 1, "inner": {"dept": 4}}, "r.yaml.inner has no key 'dept'. Did you mean depth?"),
        ({"rate": 1, "many": [{"depth": 0}]}, "r.yaml.many[0]: depth must be at least 1, not 0."),
        ({"rate": 1, "place": 3}, "r.yaml.place must be a path, not 3."),
        ({"rate": 1, "table": {"a": "b"}}, "r.yaml.table.a must be a whole number, not 'b'."),
        ({"rate": 1, "table": 1}, "r.yaml.table must be a mapping of keys to values, not 1."),
        (["rate"], "r.yaml must be a mapping of keys to values, not ['rate']."),
        ({1: 2}, "r.yaml has no key 1."),
    ],
)
def test_what_does_not_fit_is_a_sentence_naming_the_key(raw, sentence):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        read_config(Outer, raw, "r.yaml")
