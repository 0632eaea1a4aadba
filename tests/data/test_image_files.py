"""Every kind of image file gives the pixels a viewer would show."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pocketvit.data import load_image
from pocketvit.data.images import check, decode
from pocketvit.errors import BadInput


def pixels(path: Path) -> np.ndarray:
    image = load_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_rgb_png_is_untouched(tmp_path: Path, crops: list[Image.Image]) -> None:
    crops[0].save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.asarray(crops[0]))


def test_grey_is_repeated_over_the_channels(tmp_path: Path, crops: list[Image.Image]) -> None:
    grey = crops[20].convert("L")
    grey.save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.stack([np.asarray(grey)] * 3, axis=-1))


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path, suffix: str) -> None:
    values = np.linspace(0, 65535, 64 * 64).round().astype(np.uint16).reshape(64, 64)
    Image.fromarray(values).save(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(pixels(tmp_path / f"a{suffix}")[..., 1], np.rint(values / 257).astype(np.uint8))


def test_32_bit_integers_are_taken_as_16_bit_or_refused(tmp_path: Path) -> None:
    values = np.array([[0, 257], [32896, 65535]], np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels(tmp_path / "a.tif")[..., 0], [[0, 1], [128, 255]])
    Image.fromarray(values + 1).save(tmp_path / "b.tif")
    with pytest.raises(BadInput, match=r"b\.tif.*16 bits"):
        load_image(tmp_path / "b.tif")


def test_floating_point_is_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(BadInput, match=r"a\.tif.*floating point"):
        load_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_put_on_white(tmp_path: Path, mode: str) -> None:
    colour = (200, 100, 0) if mode == "RGBA" else (100,)
    image = Image.new(mode, (3, 1))
    for x, alpha in enumerate([0, 51, 255]):
        image.putpixel((x, 0), (*colour, alpha))
    image.save(tmp_path / "a.png")
    shown = pixels(tmp_path / "a.png")[0]
    rgb = np.array(colour if mode == "RGBA" else colour * 3)
    assert shown[0].tolist() == [255, 255, 255]  # what is under full transparency does not shine through
    np.testing.assert_allclose(shown[1], 0.2 * rgb + 0.8 * 255, atol=1)
    assert shown[2].tolist() == rgb.tolist()


def test_palette_transparency_is_put_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    image.save(tmp_path / "a.gif", transparency=0)
    for suffix in ("png", "gif"):
        assert pixels(tmp_path / f"a.{suffix}")[0].tolist() == [[255, 255, 255], [40, 50, 60]], suffix


def test_transparent_colour_of_an_rgb_png_is_put_on_white(tmp_path: Path) -> None:
    image = Image.new("RGB", (2, 1), (9, 8, 7))
    image.putpixel((1, 0), (1, 2, 3))
    image.save(tmp_path / "a.png", transparency=(9, 8, 7))
    assert pixels(tmp_path / "a.png")[0].tolist() == [[255, 255, 255], [1, 2, 3]]


def test_cmyk_is_converted(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)  # no cyan: red
    Image.new("CMYK", (8, 8), (0, 0, 0, 255)).save(tmp_path / "black.tif")
    np.testing.assert_allclose(pixels(tmp_path / "red.jpg")[0, 0], [255, 0, 0], atol=3)
    assert pixels(tmp_path / "black.tif")[0, 0].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),  # "rotate clockwise to show"
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_rotation_is_applied(tmp_path: Path, crops: list[Image.Image], orientation: int, undo) -> None:
    stored = crops[3].resize((20, 12))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), undo(np.asarray(stored)))


def test_one_bit_and_webp_and_animation_first_frame(tmp_path: Path, crops: list[Image.Image]) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert pixels(tmp_path / "a.png")[0].tolist() == [[255] * 3, [0] * 3]
    crops[0].save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(pixels(tmp_path / "a.webp"), np.asarray(crops[0]))
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert pixels(tmp_path / "a.gif")[0, 0].tolist() == [255, 0, 0]


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"progressive": True} if kind == "JPEG" else {}))
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.98])
@pytest.mark.parametrize("thorough", [True, False])
def test_truncated_files_are_found_both_ways(
    crops: list[Image.Image], kind: str, share: float, thorough: bool
) -> None:
    whole = encoded(crops[5], kind)
    check(io.BytesIO(whole), "whole", thorough=thorough)
    cut = whole[: int(len(whole) * share)]
    with pytest.raises(BadInput, match="cut"):
        check(io.BytesIO(cut), "cut", thorough=thorough)
    with pytest.raises(BadInput, match="cut"):
        decode(io.BytesIO(cut), "cut")


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\1\x12"]
)
def test_broken_exif_is_no_reason_to_refuse(crops: list[Image.Image], exif: bytes) -> None:
    plain, broken = io.BytesIO(), io.BytesIO()
    crops[5].save(plain, "JPEG")
    crops[5].save(broken, "JPEG", exif=exif)
    for thorough in (True, False):
        check(io.BytesIO(broken.getvalue()), "broken", thorough=thorough)
    assert decode(broken, "broken").tobytes() == decode(plain, "plain").tobytes()


def test_what_follows_the_end_of_a_jpeg_does_no_harm(crops: list[Image.Image]) -> None:
    padded = encoded(crops[5], "JPEG") + b"\0" * 7
    check(io.BytesIO(padded), "padded", thorough=False)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xd9"])
def test_non_images_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "note.jpg"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=r"note\.jpg"):
        load_image(path)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "gone.png", tmp_path):
        with pytest.raises(BadInput, match=path.name):
            load_image(path)


def test_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 300 // 2 - 1)  # Pillow refuses above twice its limit
    with pytest.raises(BadInput, match=r"bomb\.png is too large"):
        load_image(tmp_path / "bomb.png")


def test_a_strip_that_would_explode_when_resized_is_refused(tmp_path: Path) -> None:
    Image.new("L", (100, 1)).save(tmp_path / "ok.png")
    Image.new("L", (101, 1)).save(tmp_path / "strip.png")
    assert load_image(tmp_path / "ok.png").size == (100, 1)
    with pytest.raises(BadInput, match=r"strip\.png.*101x1"):
        load_image(tmp_path / "strip.png")
