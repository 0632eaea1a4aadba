"""Reading images between their pixels: boxes resized, coordinates followed, affine transforms."""

from __future__ import annotations

import torch
from torch import Tensor

from ....errors import BadInput
from . import handles
from .resizing import sampling_points

_BOXES = {
    "CORNERS_HEIGHT_FIRST": (0, 1, 2, 3),
    "CORNERS_WIDTH_FIRST": (1, 0, 3, 2),
    "CENTER_SIZE_HEIGHT_FIRST": (0, 1, 2, 3),
    "CENTER_SIZE_WIDTH_FIRST": (1, 0, 3, 2),
}


@handles("crop_resize")
def crop_resize(
    x: Tensor,
    roi: Tensor | None = None,
    boxes: Tensor | None = None,
    box_indices: Tensor | None = None,
    target_height: int = 1,
    target_width: int = 1,
    normalized_coordinates: bool = False,
    spatial_scale: float = 1.0,
    box_coordinate_mode: str = "CORNERS_HEIGHT_FIRST",
    sampling_mode: str = "DEFAULT",
    pad_value: float = 0.0,
) -> Tensor:
    """Resize boxes of x (B, C, H, W) with bilinear interpolation; points outside the image give pad_value.

    From iOS 17: boxes (N, 4) of the images box_indices (N), else of image 0, 1...; gives (N, C, height, width).
    Before: roi (N, 1, 4, 1, 1), each box for every image, gives (N, B, C, height, width); or (N, 1, 5, 1, 1), the
    image first, gives (N, 1, C, height, width). Boxes hold pixel centres, normalised ones multiples of H - 1 and
    W - 1. MIL does not say where a box of centre and size ends; here at centre - size / 2 and centre + size / 2.
    """
    images, coordinates, leading = _boxes(x, roi, boxes, box_indices)
    if box_coordinate_mode not in _BOXES:
        raise BadInput(f"its box_coordinate_mode is {box_coordinate_mode!r} instead of one of {', '.join(_BOXES)}")
    if sampling_mode == "UNALIGN_CORNERS":
        raise BadInput(
            "what UNALIGN_CORNERS reads inside a box is not certain: the one result that coremltools holds for it "
            "contradicts the documented formula"
        )
    height, width = x.shape[-2:]
    scales = (height - 1, width - 1) if normalized_coordinates else (1, 1)
    top, left, bottom, right = (
        coordinates[:, i : i + 1] * spatial_scale * scales[place % 2]
        for place, i in enumerate(_BOXES[box_coordinate_mode])
    )
    if box_coordinate_mode.startswith("CENTER"):
        top, bottom = top - bottom / 2, top + bottom / 2
        left, right = left - right / 2, left + right / 2
    ys = sampling_points(sampling_mode, top, bottom, target_height).unsqueeze(2)
    xs = sampling_points(sampling_mode, left, right, target_width).unsqueeze(1)
    inside = (ys >= 0) & (ys <= height - 1) & (xs >= 0) & (xs <= width - 1)
    found = torch.where(inside.unsqueeze(1), _bilinear(x, images, ys, xs, None), pad_value)
    return found.reshape(*leading, *found.shape[1:])


@handles("resample")
def resample(
    x: Tensor,
    coordinates: Tensor,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Read x (B, C, H, W) at coordinates (B, h, w, 2) of (x, y); gives (B, C, h, w).

    Neighbours outside the image hold padding_value (constant); the other padding modes bring the point inside first.
    Nearest takes the even pixel of two that are equally near. align_corners matters to normalised coordinates only.
    """
    columns, rows = coordinates.to(x.dtype).unbind(-1)
    height, width = x.shape[-2:]
    ys = _fold(_pixels(rows, height, coordinates_mode, align_corners), height, padding_mode)
    xs = _fold(_pixels(columns, width, coordinates_mode, align_corners), width, padding_mode)
    outside = padding_value if padding_mode == "constant" else None
    images = torch.arange(x.shape[0], device=x.device)
    if sampling_mode == "bilinear":
        return _bilinear(x, images, ys, xs, outside)
    if sampling_mode == "nearest":
        return _neighbour(x, images, ys.round().long(), xs.round().long(), outside)
    raise BadInput(f"its sampling_mode is {sampling_mode!r} instead of bilinear or nearest")


@handles("affine")
def affine(
    x: Tensor,
    transform_matrix: Tensor,
    output_height: int,
    output_width: int,
    sampling_mode: str,
    padding_mode: str,
    padding_value: float,
    coordinates_mode: str,
    align_corners: bool,
) -> Tensor:
    """Read x (B, C, H, W) at a0 x + a1 y + a2, b0 x + b1 y + b2, with x and y from -1 to 1 over the output.

    transform_matrix: (B or 1, 6). Core ML supports one combination of the modes, others are refused. The one point of
    an output axis of size 1 lies at 0, as in PyTorch's affine_grid, from which converters lower to this.
    """
    modes = (sampling_mode.lower(), padding_mode.lower(), coordinates_mode.lower())
    if modes != ("bilinear", "constant", "normalized_minus_one_to_one") or padding_value != 0 or not align_corners:
        raise BadInput(
            "Core ML supports affine with bilinear sampling, constant padding of 0, coordinates normalized from -1 to "
            "1 and aligned corners only"
        )
    ys, xs = _spread(output_height, x).view(-1, 1), _spread(output_width, x)
    matrix = transform_matrix.expand(x.shape[0], 6)
    a0, a1, a2, b0, b1, b2 = matrix.reshape(-1, 6, 1, 1).unbind(1)
    grid = torch.stack((a0 * xs + a1 * ys + a2, b0 * xs + b1 * ys + b2), dim=-1)
    return resample(x, grid, "bilinear", "constant", 0.0, "normalized_minus_one_to_one", True)


def _boxes(
    x: Tensor, roi: Tensor | None, boxes: Tensor | None, box_indices: Tensor | None
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """Which image each crop is of, its four coordinates, and the leading axes of the result."""
    batch = x.shape[0]
    leading: tuple[int, ...]
    if boxes is not None and roi is None:
        count = boxes.shape[0]
        images = torch.arange(count, device=x.device) if box_indices is None else box_indices.long()
        coordinates, leading = boxes.to(x.dtype), (count,)
    elif roi is not None and boxes is None:
        count, flat = roi.shape[0], roi.flatten(1)
        if flat.shape[1] == 5:
            images, coordinates, leading = flat[:, 0].long(), flat[:, 1:], (count, 1)
        else:
            images = torch.arange(batch, device=x.device).repeat(count)
            coordinates, leading = flat.repeat_interleave(batch, dim=0), (count, batch)
    else:
        raise BadInput("it takes either roi (before iOS 17) or boxes")
    if coordinates.ndim != 2 or coordinates.shape[1] != 4:
        raise BadInput(f"its boxes have shape {tuple(coordinates.shape)} instead of four coordinates each")
    if not images.is_meta and bool(((images < 0) | (images >= batch)).any()):
        raise BadInput(f"its boxes are of images {images.tolist()}, but there are {batch}")
    return images, coordinates, leading


def _bilinear(x: Tensor, images: Tensor, ys: Tensor, xs: Tensor, outside: float | None) -> Tensor:
    """Interpolate between four neighbours at ys, xs (N, h, w), which may broadcast; gives (N, C, h, w)."""
    # two pixels outside is as good as a thousand, and fits whole numbers
    ys, xs = ys.clamp(-2, x.shape[-2] + 1), xs.clamp(-2, x.shape[-1] + 1)
    rows, columns = ys.floor(), xs.floor()
    down, right = (ys - rows).unsqueeze(1), (xs - columns).unsqueeze(1)
    top, left = rows.long(), columns.long()
    above, below = (
        torch.lerp(_neighbour(x, images, row, left, outside), _neighbour(x, images, row, left + 1, outside), right)
        for row in (top, top + 1)
    )
    return torch.lerp(above, below, down)


def _neighbour(x: Tensor, images: Tensor, rows: Tensor, columns: Tensor, outside: float | None) -> Tensor:
    """The pixels at whole rows and columns; beyond the image `outside`, or the edge where that is None."""
    height, width = x.shape[-2:]
    near = x[images.view(-1, 1, 1), :, rows.clamp(0, height - 1), columns.clamp(0, width - 1)].movedim(-1, 1)
    if outside is None:
        return near
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return torch.where(inside.unsqueeze(1), near, outside)


def _pixels(values: Tensor, size: int, mode: str, align_corners: bool) -> Tensor:
    """Coordinates in pixels; 0 is the centre of the first one."""
    if mode == "unnormalized":
        return values
    if mode == "normalized_minus_one_to_one":
        values = (values + 1) / 2
    elif mode != "normalized_zero_to_one":
        raise BadInput(
            f"its coordinates_mode is {mode!r} instead of unnormalized, normalized_minus_one_to_one or "
            "normalized_zero_to_one"
        )
    return values * (size - 1) if align_corners else values * size - 0.5


def _fold(points: Tensor, size: int, mode: str) -> Tensor:
    """Bring points inside the image, unless what lies outside has a value of its own."""
    if mode == "constant":
        return points.clamp(-2, size + 1)
    if mode in ("reflection", "symmetric"):
        low, high = (0.0, size - 1.0) if mode == "reflection" else (-0.5, size - 0.5)
        period = 2 * (high - low)
        distance = (points - low).abs()
        distance = distance % period if period else torch.zeros_like(points)
        points = low + torch.minimum(distance, period - distance)
    elif mode != "border":
        raise BadInput(f"its padding_mode is {mode!r} instead of constant, border, reflection or symmetric")
    return points.clamp(0, size - 1)


def _spread(count: int, x: Tensor) -> Tensor:
    """`count` points from -1 to 1."""
    if count == 1:
        return torch.zeros(1, dtype=x.dtype, device=x.device)
    return torch.linspace(-1, 1, count, dtype=x.dtype, device=x.device)
