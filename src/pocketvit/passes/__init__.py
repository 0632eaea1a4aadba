"""Passes: frozen config + function, model -> new model. Adding one means adding one file to this package."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..configs import read_config, read_pairs
from ..data import check_calibration
from ..errors import BadInput
from ..models import Model
from ..registry import Registry

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """A rewrite or compression of a model.

    config: a frozen dataclass. apply: takes a model and a config and returns a new model, leaving its input untouched;
    raises BadInput naming what it cannot handle. neutral: the config that gives an equal model; the config's defaults
    where it is left out. same_function: whether a config only changes how the same outputs are computed. calibrated:
    apply takes calibration images as well, (N, C, H, W) float32 RGB in [0, 1].
    """

    config: type
    apply: Callable[..., Model]
    neutral: Any = None
    same_function: Callable[[Any], bool] = lambda config: False
    calibrated: bool = False

    @property
    def identity(self) -> Any:
        """The config that leaves a model as it is."""
        return self.config() if self.neutral is None else self.neutral


PASSES: Registry[Pass] = Registry("pass", __name__)


def read_passes(raw: Sequence[Any], where: str) -> tuple[Any, ...]:
    """Read pass configs from a recipe's list of mappings, each with a key 'pass' that names one."""
    configs: list[Any] = []
    for i, entry in enumerate(raw):
        if not isinstance(entry, dict) or "pass" not in entry:
            raise BadInput(f"{where}[{i}] must be a mapping with a key 'pass'; known passes: {', '.join(PASSES)}.")
        options = {key: value for key, value in entry.items() if key != "pass"}
        configs.append(read_config(PASSES.get(entry["pass"]).config, options, f"{where}[{i}]"))
    return tuple(configs)


def parse_passes(texts: Sequence[str], where: str) -> tuple[Any, ...]:
    """Read pass configs from 'NAME' or 'NAME:KEY=VALUE,KEY=VALUE' each."""
    raw = []
    for text in texts:
        name, _, options = text.partition(":")
        pairs = read_pairs(where, [pair for pair in options.split(",") if pair])
        if "pass" in pairs:
            raise BadInput(f"{where} {text} names two passes; give the option once for each.")
        raw.append({"pass": name, **pairs})
    return read_passes(raw, where)


def apply(model: Model, configs: Sequence[Any], images: NDArray[np.float32] | None = None) -> Model:
    """Apply passes in order, each found by the type of its config.

    images: calibration images (N, C, H, W), float32 RGB in [0, 1]. Raises BadInput where a pass needs them and they
    are missing, of another size, or no images.
    """
    found = [_of(config) for config in configs]
    for step in found:
        if step.calibrated:
            _check_images(model, next(name for name in PASSES if PASSES.get(name) is step), images)
    for step, config in zip(found, configs, strict=True):
        model = step.apply(model, config, images) if step.calibrated else step.apply(model, config)
    return model


def same_function(configs: Sequence[Any]) -> bool:
    """True where the passes only change how the same outputs are computed."""
    return all(_of(config).same_function(config) for config in configs)


def _of(config: Any) -> Pass:
    found = next((PASSES.get(name) for name in PASSES if PASSES.get(name).config is type(config)), None)
    if found is None:
        raise BadInput(f"{type(config).__name__} is not the config of a pass; known passes: {', '.join(PASSES)}.")
    return found


def _check_images(model: Model, name: str, images: NDArray[np.float32] | None) -> None:
    if images is None or len(images) == 0:
        raise BadInput(f"The pass {name} measures activations and needs calibration images; it got none.")
    check_calibration(images, model.spec)
