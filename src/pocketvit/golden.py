"""Golden vectors: a few real images inside every exported file, with the logits its fp32 model gave for them."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np

from .errors import BadInput, CheckFailed
from .types import Artifact, Golden, InputSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PIXELS = 2 * 224 * 224  # two photographs at 224 px, or four small images: about 200 kB in the file
_MOST_PIXELS = 4 * 1024 * 1024


def golden_count(spec: InputSpec) -> int:
    """How many images of this size a file carries."""
    return max(1, min(4, _PIXELS // (spec.size[1] * spec.size[2])))


def make_golden(images: NDArray[np.float32], logits: NDArray[np.float32]) -> Golden:
    """Pack images (N, 3, H, W), multiples of 1/255 in [0, 1], with their reference logits (N, classes)."""
    from PIL import Image

    pixels = np.round(images * 255).astype(np.uint8)
    packed = []
    for image in pixels:
        stream = io.BytesIO()
        Image.fromarray(image.transpose(1, 2, 0)).save(stream, format="PNG")
        packed.append(base64.b64encode(stream.getvalue()).decode())
    return Golden(
        images=tuple(packed),
        sha256=_sha256(pixels),
        logits=tuple(tuple(float(v) for v in row) for row in logits),
    )


def golden_images(artifact: Artifact) -> NDArray[np.float32]:
    """Unpack a file's golden images as float32 (N, 3, H, W) in [0, 1].

    Raises CheckFailed when they are not the images the hash was taken of, BadInput when they cannot be read.
    """
    from PIL import Image

    _, height, width = artifact.spec.size
    if len(artifact.golden.images) * height * width > _MOST_PIXELS or not artifact.golden.images:
        raise BadInput(f"{artifact.path} carries {len(artifact.golden.images)} golden images of {height}x{width}.")
    if len(artifact.golden.logits) != len(artifact.golden.images):
        raise BadInput(f"{artifact.path} carries golden images and golden logits in different numbers.")
    pixels = []
    for packed in artifact.golden.images:
        try:
            with Image.open(io.BytesIO(base64.b64decode(packed, validate=True)), formats=["PNG"]) as image:
                if image.size != (width, height) or image.mode != "RGB":
                    raise BadInput(
                        f"A golden image in {artifact.path} is {image.size} {image.mode}, not {width}x{height}."
                    )
                pixels.append(np.asarray(image).transpose(2, 0, 1))
        except (OSError, ValueError, SyntaxError) as e:
            raise BadInput(f"A golden image in {artifact.path} cannot be read ({e}).") from e
    stacked = np.stack(pixels)
    if _sha256(stacked) != artifact.golden.sha256:
        raise CheckFailed(f"The golden images in {artifact.path} are not those their hash was taken of.")
    return stacked.astype(np.float32) / np.float32(255)


def _sha256(pixels: NDArray[np.uint8]) -> str:
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).hexdigest()
