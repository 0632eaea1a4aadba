"""The shared vocabulary: what a model takes, what a file is, what was measured and how we know. No torch here."""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .errors import BadInput

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_NOT_FINITE = ("inf", "-inf", "nan")  # how `plain` writes the floats that JSON does not know
METADATA_KEY = "pocketvit"
METADATA_MAX_BYTES = 16 << 20  # a file's own claims are bounded before they are parsed


class Precision(StrEnum):
    """Number formats, declared once; each target maps them to its own native quantizer."""

    FP32 = "fp32"
    FP16 = "fp16"
    BF16 = "bf16"
    W8 = "w8"  # 8-bit weights, float activations
    W8A8 = "w8a8"  # 8-bit weights and activations, ranges calibrated on images
    W8A8_DYNAMIC = "w8a8-dynamic"  # 8-bit weights, activation ranges taken at run time
    W4 = "w4"  # 4-bit weights in groups or palettes, float activations unless the target's words say otherwise
    INTEGER = "integer-only"  # integers from the quantized image to the logits (I-ViT, arXiv 2207.01405)

    @property
    def is_quantized(self) -> bool:
        """True where weights are stored as integers."""
        return self.value.startswith("w") or self is Precision.INTEGER

    @property
    def floor_db(self) -> float:
        """Least signal-to-noise ratio (dB) of a file's logits against its fp32 model for the file to count.

        One rounding to p mantissa bits leaves 6.02 (p + 1) dB: 144 for fp32, 66 for fp16, 48 for bf16; 8-bit
        integers scaled to their range leave about 40. A network loses some of that on the way to the logits: fp32
        keeps 80 (a wrong epsilon or GELU shows at 60 and below), fp16 40, bf16 25, 8-bit weights 20 and 8-bit
        activations 10 (below that the noise starts to change the top class; the accuracy beside it decides). 4-bit
        weights leave about 20 dB in one layer; 6 are kept for the network.
        """
        return _FLOOR_DB[self]


_FLOOR_DB = {
    Precision.FP32: 80.0,
    Precision.FP16: 40.0,
    Precision.BF16: 25.0,
    Precision.W8: 20.0,
    Precision.W8A8: 10.0,
    Precision.W8A8_DYNAMIC: 10.0,
    Precision.W4: 6.0,
    Precision.INTEGER: 10.0,
}


class Calibrator(StrEnum):
    """How the range of an activation is chosen from what calibration images showed of it."""

    MINMAX = "minmax"  # everything seen
    PERCENTILE = "percentile"  # all but the outermost values
    MSE = "mse"  # the least squared error after rounding
    ENTROPY = "entropy"  # the least Kullback-Leibler divergence from the values seen


ASKED = "asked for"  # why a layer that the user named stays float


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantization:
    """How a file is quantized, the same for every target.

    keep: why each layer named stays float, by the module that holds its weight ("blocks.0.attn.qkv"). calibrator:
    None for the target's first. group_size: how many 4-bit weights of a row share one scale, fewer where that divides
    the row (`group_of`).
    """

    keep: Mapping[str, str] = field(default_factory=dict)
    calibrator: Calibrator | None = None
    group_size: int = 32

    def __post_init__(self) -> None:
        """Refuse a group that no format can hold."""
        if not 16 <= self.group_size <= 4096 or self.group_size & (self.group_size - 1):
            raise BadInput(f"group_size must be a power of two from 16 to 4096, not {self.group_size}.")


def group_of(inputs: int, group_size: int) -> int:
    """How many of a row's `inputs` weights share a scale: `group_size`, halved down to 16 until it divides the row.

    As NNCF has it. Where nothing divides, `group_size`, and the last group is shorter.
    """
    size = group_size
    while inputs % size and size > 16:
        size //= 2
    return group_size if inputs % size else size


class Evidence(StrEnum):
    """How a number is known."""

    MEASURED = "measured"  # the real runtime, on this machine
    INTERPRETED = "interpreted"  # the file's own graph, evaluated by our interpreter
    PREDICTED = "predicted"  # computed from a model of the hardware
    PUBLISHED = "published"  # read in a source


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """What an image must look like before it reaches a model, and what the outputs are called.

    size: (channels, height, width). mean, std: per channel, for RGB in [0, 1]. crop_pct and crop_mode
    (center, squash, border) as timm defines them: the image is resized to size / crop_pct, then cropped.
    labels: one name per class, in output order; may be empty when unknown.
    """

    size: tuple[int, int, int] = (3, 224, 224)
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    crop_mode: str = "center"
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """A few real images and the logits the fp32 model gave for them, carried inside every exported file.

    images: PNGs in base64, already resized and cropped (H x W of the spec). sha256: of the decoded uint8 pixels
    (N, C, H, W). logits: (N, classes).
    """

    images: tuple[str, ...]
    sha256: str
    logits: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantized:
    """How many weight-carrying layers (convolution, linear, matmul with a constant) were quantized, of how many.

    kept: why each of the others stayed float, by the module that holds its weight.
    """

    layers: int
    of: int
    kept: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.layers}/{self.of}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One exported file and everything it says about itself; all but `path` travels inside the file as JSON.

    The file takes float32 RGB in [0, 1] of shape (1, *spec.size) and returns logits (1, classes).
    """

    path: Path
    target: str
    precision: Precision
    model: str
    trained: bool
    classes: int
    spec: InputSpec
    golden: Golden
    weights_sha256: str
    quantized: Quantized | None = None
    quantization: Quantization = Quantization()
    made_with: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """The metadata to embed in the file, on one line."""
        return json.dumps({k: v for k, v in dataclasses.asdict(self).items() if k != "path"})

    @classmethod
    def from_json(cls, text: str, path: Path) -> Artifact:
        """Parse metadata read from `path`; raises BadInput when it is not ours, too large or malformed."""
        if len(text) > METADATA_MAX_BYTES:
            raise BadInput(f"{path} carries {len(text)} bytes of pocketvit metadata, more than {METADATA_MAX_BYTES}.")
        try:
            raw = json.loads(text)
            spec: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw["spec"].items()}
            golden = raw["golden"]
            return cls(
                path=path,
                target=str(raw["target"]),
                precision=Precision(raw["precision"]),
                model=str(raw["model"]),
                trained=bool(raw["trained"]),
                classes=int(raw["classes"]),
                spec=InputSpec(**spec),
                golden=Golden(
                    images=tuple(map(str, golden["images"])),
                    sha256=str(golden["sha256"]),
                    logits=tuple(tuple(map(float, row)) for row in golden["logits"]),
                ),
                weights_sha256=str(raw["weights_sha256"]),
                quantized=_quantized(raw["quantized"]),
                quantization=_quantization(raw.get("quantization")),
                made_with={str(k): str(v) for k, v in raw["made_with"].items()},
            )
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as e:
            raise BadInput(f"The pocketvit metadata in {path} cannot be read ({e}); export the file again.") from e

    @property
    def display_name(self) -> str:
        """Target, precision and model, for tables; says UNTRAINED where the weights are random."""
        return f"{self.target}:{self.precision} {self.model}{'' if self.trained else ' (UNTRAINED)'}"


def _quantized(raw: Mapping[str, Any] | None) -> Quantized | None:
    if raw is None:
        return None
    kept = {str(name): str(why) for name, why in raw.get("kept", {}).items()}
    return Quantized(layers=int(raw["layers"]), of=int(raw["of"]), kept=kept)


def _quantization(raw: Mapping[str, Any] | None) -> Quantization:
    """Older files say nothing."""
    if raw is None:
        return Quantization()
    calibrator, keep = raw["calibrator"], raw["keep"]
    if isinstance(keep, list):  # written before reasons were
        keep = dict.fromkeys(keep, ASKED)
    return Quantization(
        keep={str(name): str(why) for name, why in keep.items()},
        calibrator=None if calibrator is None else Calibrator(calibrator),
        group_size=int(raw["group_size"]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class OpTime:
    """Time spent in one kind of operation, over one inference."""

    op: str
    ms: float
    calls: int


class Runner(ABC):
    """Something that maps images to logits: a file loaded by its runtime, or a model in eager PyTorch.

    name: for tables. threads: CPU threads it was told to use. classes: length of the logits. probabilities: it gives
    class probabilities in place of logits.
    """

    name: str
    threads: int
    classes: int
    spec: InputSpec
    evidence: Evidence = Evidence.MEASURED
    probabilities: bool = False

    @abstractmethod
    def __call__(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map float32 RGB in [0, 1] of shape (N, *spec.size) to logits (N, classes), one image at a time."""

    def profile(self, images: NDArray[np.float32], runs: int) -> tuple[OpTime, ...] | None:
        """Time per operation kind, most expensive first; None where the runtime does not offer it."""
        return None

    def in_order_of(self, labels: Sequence[str]) -> Runner:
        """This runner with its classes in the order of `labels` where it matches them by name, or itself."""
        return self

    def computing_in(self, arithmetic: str) -> Runner:
        """This runner with another arithmetic (fp32, fp16-fp32acc, fp16); BadInput unless it is interpreted."""
        raise BadInput(
            f"{self.name} computes as its own runtime does; an arithmetic can be chosen only for a Core ML package "
            "that is interpreted."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How closely a candidate's logits follow the reference's on the same images.

    sqnr_db: 10 log10(sum ref^2 / sum (ref - cand)^2), inf when identical. top1: share of images with the same top
    class. worst_image: index of the image with the largest error. smallest_margin: least gap between the
    reference's two highest logits, over images (how close the closest call was).
    """

    images: int
    sqnr_db: float
    cosine: float
    max_abs_error: float
    top1: float
    worst_image: int
    smallest_margin: float
    evidence: Evidence = Evidence.MEASURED


@dataclass(frozen=True, kw_only=True, slots=True)
class Accuracy:
    """Top-1 and top-5 shares (0..1) over `images` images; `skipped` could not be decoded and are not counted."""

    top1: float
    top5: float
    images: int
    skipped: int = 0
    evidence: Evidence = Evidence.MEASURED


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Milliseconds per image at batch 1: median and 10th/90th percentile over `runs` interleaved rounds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int
    threads: int
    evidence: Evidence = Evidence.MEASURED


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One candidate of a run, all a report needs. None means: not known, and `check` says why, in words."""

    name: str
    target: str
    precision: str
    trained: bool
    file: str | None = None
    size_bytes: int | None = None
    accuracy: Accuracy | None = None
    agreement: Agreement | None = None
    latency: Latency | None = None
    quantized: Quantized | None = None
    check: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; infinities become the string 'inf'."""
        return plain(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Row:
        """Inverse of `to_dict`."""
        kinds = {"accuracy": Accuracy, "agreement": Agreement, "latency": Latency, "quantized": Quantized}
        values = dict(raw)
        for key, kind in kinds.items():
            if values[key] is not None:
                part: dict[str, Any] = {k: float(v) if v in _NOT_FINITE else v for k, v in values[key].items()}
                if "evidence" in part:
                    part["evidence"] = Evidence(part["evidence"])
                values[key] = kind(**part)
        return cls(**values)


def plain(value: Any) -> Any:
    """Turn dataclasses, enums, paths and tuples into what JSON knows; a float that is not finite becomes its name."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, StrEnum):
        return value.value
    return str(value) if isinstance(value, Path) else value


class Progress(Protocol):
    """Called by long work as it goes: what is being done, how much is done, of how much."""

    def __call__(self, task: str, done: int, total: int) -> None:
        """Report that `done` of `total` steps of `task` are finished."""


def silent(task: str, done: int, total: int) -> None:
    """The Progress that shows nothing."""
