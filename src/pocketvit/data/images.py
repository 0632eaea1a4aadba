"""Any image file to 8-bit RGB, the way a viewer shows it; what cannot be read raises BadInput naming the file.

A rotation kept in EXIF is applied, transparency is put on white, 16-bit grey is scaled to 8 bits, CMYK and palettes
are converted. Colour profiles are not applied, as they are not in timm's or torchvision's evaluation.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from ..errors import BadInput

MAX_ASPECT = 100  # resizing the short side of a longer strip would need gigabytes
JPEG_END = b"\xff\xd9"


def load_image(path: str | Path) -> Image.Image:
    """Read one image file as 8-bit RGB; raises BadInput naming the file when it is missing or cannot be decoded."""
    path = Path(path)
    if not path.is_file():
        raise BadInput(f"There is no image file {path}; give the path of a JPEG, PNG or similar.")
    with _readable(str(path)), path.open("rb") as stream:
        return decode(stream, str(path))


def decode(stream: BinaryIO, name: str) -> Image.Image:
    """Decode an open image file to 8-bit RGB; raises BadInput naming it as `name`."""
    with _readable(name), Image.open(stream) as image:
        _check_shape(image)
        return _as_shown(image)


def check(stream: BinaryIO, name: str, *, thorough: bool) -> None:
    """Raise BadInput when the file cannot be decoded.

    thorough: decode it (a JPEG at an eighth of its size, which reads every byte all the same). Otherwise a JPEG is
    judged by its header and its end marker, which a truncated file lacks: these two bytes cannot occur inside
    compressed image data. Other formats are always decoded.
    """
    with _readable(name), Image.open(stream) as image:
        _check_shape(image)
        if image.format == "JPEG":
            if not thorough:
                stream.seek(-len(JPEG_END), 2)
                if stream.read() == JPEG_END:
                    image.getexif()
                    return
            image.draft(None, (max(1, image.width // 8), max(1, image.height // 8)))
        _as_shown(image)


def _check_shape(image: Image.Image) -> None:
    width, height = image.size
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ValueError(f"{width}x{height} is a strip, more than {MAX_ASPECT} times as long as it is wide")


def _as_shown(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _from_16_bit(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, of unknown range; save it with 8 or 16 bits")
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBA", "RGBa"):
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 0..65535 to 0..255; Pillow's own conversion clips everything above 255 to white."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels do not fit into 16 bits; save it with 8 or 16 bits")
    grey = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    return grey.convert("RGB")


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into BadInput; on damaged files they raise nearly anything."""
    try:
        yield
    except BadInput:
        raise
    except Image.UnidentifiedImageError as e:
        raise BadInput(f"{name} is not an image in a format that can be read.") from e
    except Image.DecompressionBombError as e:
        raise BadInput(f"{name} is too large to be decoded safely ({e}); make it smaller.") from e
    except Exception as e:
        raise BadInput(f"{name} cannot be read as an image ({e}).") from e
