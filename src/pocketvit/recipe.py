"""A recipe: model + data + training + passes + targets x precisions + budget, read from a small YAML file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .configs import read_config
from .errors import BadInput
from .registry import close_matches
from .report.budget import Budget
from .targets import TARGETS
from .types import Precision

if TYPE_CHECKING:
    from .targets import Target

_MAX_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRecipe:
    """name as `create` takes it; args go to timm's constructor (img_size, patch_size, ...)."""

    name: str
    pretrained: bool = False
    args: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class DataRecipe:
    """source: as `open_data` takes it. test: another source to report on. strict: refuse unreadable images."""

    source: str
    test: str | None = None
    strict: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Teacher:
    """A teacher to distil from; trained first when `train` is given (keys of TrainConfig)."""

    model: ModelRecipe
    train: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """How the model is trained: keys of TrainConfig, once per entry of `distillation` (none, soft, hard).

    The student with the best validation top-1 goes on; the test images are not looked at for that choice.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    distillation: tuple[str, ...] = ("none",)
    teacher: Teacher | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """rounds: how often each file is timed, all interleaved. threads: for every runtime alike."""

    rounds: int = 50
    warmup: int = 5
    threads: int = 2

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.warmup < 0 or self.threads < 1:
            raise BadInput("bench needs at least 1 round, no negative warmup and at least 1 thread.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything a run depends on.

    export: 'target' or 'target:precision' each. calibration_images, verify_images: how many real images set the
    activation ranges and check each file.
    """

    name: str
    model: ModelRecipe
    data: DataRecipe
    export: tuple[str, ...]
    about: str = ""
    train: Training | None = None
    passes: tuple[Any, ...] = ()
    calibration_images: int = 128
    verify_images: int = 64
    bench: Bench = Bench()
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if not self.export:
            raise BadInput("export lists no target; give at least one, such as onnx:fp32.")
        exports = [(target.name, precision) for target, precision in map(parse_export, self.export)]
        if len(set(exports)) != len(exports):
            raise BadInput("export lists a target and precision twice.")
        if self.calibration_images < 1 or self.verify_images < 2:
            raise BadInput("calibration_images must be at least 1 and verify_images at least 2.")
        if not self.name or "/" in self.name:
            raise BadInput(f"name {self.name!r} cannot name a run's directory.")


def find_recipe(name: str) -> Path:
    """A recipe's file: the path itself, or one that ships with pocketvit, by name; BadInput with the nearest names."""
    if Path(name).exists() or name.endswith((".yaml", ".yml")) or "/" in name:
        return Path(name)
    shipped = {path.stem: path for path in (Path(__file__).parent / "recipes").glob("*.yaml")}
    if name not in shipped:
        raise BadInput(
            f"There is no recipe {name!r}.{close_matches(name, shipped)} Shipped: {', '.join(sorted(shipped))}."
        )
    return shipped[name]


def read_recipe(path: Path | str) -> Recipe:
    """Read and check a recipe file; BadInput names the file, the key and, for a misspelt one, the nearest."""
    import yaml

    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no recipe {path}.")
    if path.stat().st_size > _MAX_BYTES:
        raise BadInput(f"{path} is larger than 1 MB, which no recipe is.")
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as e:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(e).split())}") from e
    if isinstance(raw, dict):
        raw = {"name": path.stem, **raw}
    return read_config(Recipe, raw, str(path))


def parse_export(text: str) -> tuple[Target, Precision]:
    """Read 'target' or 'target:precision' (fp32 when left out); BadInput for one that no target makes."""
    name, _, precision = text.partition(":")
    target = TARGETS.get(name)
    return target, parse_precision(target, precision or Precision.FP32)


def parse_precision(target: Target, precision: str) -> Precision:
    """Read a precision and require that `target` makes it."""
    known = [p.value for p in Precision]
    if precision not in known:
        raise BadInput(
            f"There is no precision {precision!r}.{close_matches(precision, known)} Known: {', '.join(known)}."
        )
    if Precision(precision) not in target.precisions:
        made = ", ".join(target.precisions)
        raise BadInput(f"{target.name} does not make {precision}; it makes {made}.")
    return Precision(precision)
