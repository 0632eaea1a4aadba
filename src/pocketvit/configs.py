"""Reads a frozen config dataclass from the plain mapping a YAML or JSON file gives, checking every key and type."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from .errors import BadInput
from .registry import close_matches

T = TypeVar("T")


def read_config(cls: type[T], raw: Mapping[str, Any], where: str) -> T:
    """Build the dataclass `cls` from `raw`; `where` names the source in error messages ("digits.yaml, train").

    Fields may be bool, int, float, str, Path, enums, nested dataclasses, tuples (from lists), mappings, Any and
    unions of these. Raises BadInput on an unknown key (with close matches), a missing one, a wrong type, or
    whatever the class itself refuses.
    """
    if not isinstance(raw, Mapping):
        raise BadInput(f"{where} must be a mapping of keys to values, not {_shown(raw)}.")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in raw:
        if key not in fields:
            hint = close_matches(str(key), fields) or f" It knows {', '.join(fields)}."
            raise BadInput(f"{where} has no key {key!r}.{hint}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in raw:
            raise BadInput(f"{where} needs the key {name!r}.")
    hints = typing.get_type_hints(cls)
    values = {key: _read(hints[key], value, f"{where}.{key}") for key, value in raw.items()}
    try:
        return cls(**values)
    except BadInput as error:
        raise BadInput(f"{where}: {error}") from error


def read_pairs(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Read 'key=value' texts given with `option`, the values as YAML reads them."""
    import yaml

    pairs = {}
    for text in texts:
        key, equals, value = text.partition("=")
        try:
            pairs[key] = yaml.safe_load(value)
        except yaml.YAMLError as e:
            raise BadInput(f"{option} {text} has no value that can be read.") from e
        if not equals:
            raise BadInput(f"{option} takes KEY=VALUE, not {text!r}.")
    return pairs


def _read(kind: Any, value: Any, where: str) -> Any:
    """Turn one plain value into `kind`, or raise BadInput naming `where`."""
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return _read_union(kind, arms, value, where)
    if origin is tuple:
        return _read_tuple(kind, arms, value, where)
    if origin is not None and issubclass(origin, Mapping):
        if isinstance(value, Mapping):
            return {_read(arms[0], k, where): _read(arms[1], v, f"{where}.{k}") for k, v in value.items()}
    elif isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return value if isinstance(value, kind) else read_config(kind, value, where)
    elif kind is Any or (kind is type(None) and value is None):
        return value
    elif isinstance(kind, type) and issubclass(kind, Enum):
        return _read_enum(kind, value, where)
    elif kind is float:
        return _read_float(value, where)
    elif kind is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif isinstance(kind, type) and isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise BadInput(f"{where} must be {_named(kind)}, not {_shown(value)}.")


def _read_union(kind: Any, arms: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in arms:
        return None
    arms = tuple(arm for arm in arms if arm is not type(None))
    if len(arms) == 1:  # X | None: the message of X says more than "must be X or None"
        return _read(arms[0], value, where)
    for arm in arms:
        try:
            return _read(arm, value, where)
        except BadInput:
            continue
    raise BadInput(f"{where} must be {_named(kind)}, not {_shown(value)}.")


def _read_tuple(kind: Any, arms: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise BadInput(f"{where} must be {_named(kind)}, not {_shown(value)}.")
    if len(arms) == 2 and arms[1] is Ellipsis:
        arms = (arms[0],) * len(value)
    if len(arms) != len(value):
        raise BadInput(f"{where} must be {_named(kind)}, not {len(value)} of them.")
    return tuple(_read(arm, item, f"{where}[{i}]") for i, (arm, item) in enumerate(zip(arms, value, strict=True)))


def _read_enum(kind: type[Enum], value: Any, where: str) -> Enum:
    for member in kind:
        if value == member or (value == member.value and type(value) is type(member.value)):
            return member
    known = [str(member.value) for member in kind]
    raise BadInput(
        f"{where} must be one of {', '.join(known)}, not {_shown(value)}.{close_matches(str(value), known, most=1)}"
    )


def _read_float(value: Any, where: str) -> float:
    if isinstance(value, str):  # YAML 1.1 reads 5e-4, without a dot, as text
        try:
            return float(value)
        except ValueError:
            pass
    elif isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise BadInput(f"{where} must be a number, not {_shown(value)}.")


_WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _named(kind: Any) -> str:
    """A type in words: 'a list of 2 values (a number, a number)'."""
    origin, arms = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return " or ".join("empty (null)" if arm is type(None) else _named(arm) for arm in arms)
    if origin is tuple:
        if len(arms) == 2 and arms[1] is Ellipsis:
            return f"a list, each {_named(arms[0])}"
        return f"a list of {len(arms)} values ({', '.join(map(_named, arms))})"
    if dataclasses.is_dataclass(kind) or (origin is not None and issubclass(origin, Mapping)):
        return "a mapping of keys to values"
    return _WORDS.get(kind, getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    """A value as the reader wrote it, cut to one line."""
    text = "empty (null)" if value is None else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
