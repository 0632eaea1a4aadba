"""Compressed weights unpacked as MIL's definitions say, element by element, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np

from pocketvit.targets.coreml.program import Op
from pocketvit.targets.coreml.values import Value


def bits_at(packed: np.ndarray, first: int, count: int) -> int:
    """The number in `count` bits from bit `first` on; the lowest bit of the lowest byte comes first."""
    return sum(((int(packed[(first + i) // 8]) >> ((first + i) % 8)) & 1) << i for i in range(count))


def affine_dequantize(
    data: np.ndarray, scale: np.ndarray, zero_point: np.ndarray | None, axis: int | None
) -> np.ndarray:
    """scale * (data - zero_point)."""
    scale, shift = np.asarray(scale), np.asarray(0 if zero_point is None else zero_point)
    result = np.empty(data.shape, np.float32)
    for place in np.ndindex(data.shape):
        one = float(scale if scale.ndim == 0 else scale[place[axis]])
        result[place] = one * (float(data[place]) - float(shift if shift.ndim == 0 else shift[place[axis]]))
    return result


def packed_lut(indices: np.ndarray, lut: np.ndarray, shape: Any) -> np.ndarray:
    bits = {2: 1, 4: 2, 16: 4, 64: 6, 256: 8}[len(lut)]
    places = [bits_at(indices, k * bits, bits) for k in range(np.prod(shape))]
    return np.array([lut[place] for place in places], lut.dtype).reshape(shape)


def packed_sparse(values: np.ndarray, mask: np.ndarray, shape: Any) -> np.ndarray:
    left = iter(values)
    flat = [next(left) if bits_at(mask, k, 1) else 0 for k in range(np.prod(shape))]
    assert next(left, None) is None
    return np.array(flat, values.dtype).reshape(shape)


def block_of(place: tuple[int, ...], shape: tuple[int, ...], groups: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i // (side // count) for i, side, count in zip(place, shape, groups, strict=True))


def blockwise(data: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None) -> np.ndarray:
    """scale[i0, j0] * (data[i, j] - offset[i0, j0])."""
    result = np.empty(data.shape, np.float32)
    for place in np.ndindex(data.shape):
        block = block_of(place, data.shape, scale.shape)
        shifted = np.float32(data[place]) - np.float32(0 if offset is None else offset[block])
        result[place] = np.float32(scale[block]) * shifted
    return result


def looked_up(indices: np.ndarray, lut: np.ndarray, vector_axis: int | None = None) -> np.ndarray:
    length = lut.shape[-1]
    axis = 0 if vector_axis is None else int(vector_axis) % indices.ndim
    shape = [side * (length if i == axis else 1) for i, side in enumerate(indices.shape)]
    result = np.empty(shape, lut.dtype)
    for place in np.ndindex(indices.shape):
        entry = lut[block_of(place, indices.shape, lut.shape[:-2])][indices[place]]
        for v in range(length):
            at = list(place)
            at[axis] = place[axis] * length + v
            result[tuple(at)] = entry[v]
    return result


def spread(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    left = iter(values)
    result = np.zeros(mask.shape, values.dtype)
    for place in np.ndindex(mask.shape):
        if mask[place]:
            result[place] = next(left)
    assert next(left, None) is None
    return result


def picked(dense: np.ndarray, mask: np.ndarray) -> np.ndarray:
    return np.array([dense[place] for place in np.ndindex(mask.shape) if mask[place]], dense.dtype)


def lut_to_sparse(
    mask: np.ndarray, indices: np.ndarray, lut: np.ndarray, vector_axis: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    wide = mask if vector_axis is None else np.repeat(mask, lut.shape[-1], axis=vector_axis)
    return wide, picked(looked_up(spread(indices, mask), lut, vector_axis), wide)


def sparse_blockwise(
    mask: np.ndarray, values: np.ndarray, scale: np.ndarray, offset: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    return mask, picked(blockwise(spread(values, mask), scale, offset), mask)


def unpacked(op: Op, made: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """What a constexpr operation of a package makes; `made` holds what earlier ones did."""
    given = dict(op.attributes) | {name: values[0] for name, values in op.inputs.items()}
    arguments = {name: v.data if isinstance(v, Value) else made[v] for name, v in given.items() if name != "name"}
    arguments = {
        n: a.astype(np.float32) if getattr(a, "dtype", None) == np.float16 else a for n, a in arguments.items()
    }
    match op.kind, "shape" in arguments:
        case "constexpr_affine_dequantize", False:
            a = arguments
            return (affine_dequantize(a["quantized_data"], a["scale"], a["zero_point"], int(a["axis"])),)
        case "constexpr_lut_to_dense", True:
            return (packed_lut(**arguments),)
        case "constexpr_sparse_to_dense", True:
            return (packed_sparse(arguments["nonzero_data"], arguments["mask"], arguments["shape"]),)
        case "constexpr_lut_to_dense", False:
            return (looked_up(**arguments),)
        case "constexpr_sparse_to_dense", False:
            return (spread(arguments["nonzero_data"], arguments["mask"]),)
        case "constexpr_blockwise_shift_scale", False:
            return (blockwise(**arguments),)
        case "constexpr_lut_to_sparse", False:
            return lut_to_sparse(
                arguments["indices_mask"],
                arguments["indices_nonzero_data"],
                arguments["lut"],
                arguments.get("vector_axis"),
            )
        case "constexpr_sparse_blockwise_shift_scale", False:
            a = arguments
            return sparse_blockwise(a["data_mask"], a["nonzero_data"], a["scale"], a.get("offset"))
    raise AssertionError(f"no oracle for {op.kind}")
