"""MOAT in TensorFlow's own operations, over variables by name: what the converter is held against.

Written from the paper (arXiv 2210.01820) and the layout of the published checkpoints; shares nothing with our model.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

EMA = "/ExponentialMovingAverage"
Array = NDArray[np.float32]


def variables(
    *, stem: int, depths: tuple[int, ...], width: int, classes: int, tables: tuple[int, int] | None, seed: int = 0
) -> dict[str, Array]:
    """Random variables of a checkpoint, the moving averages of everything trained with them."""
    random = np.random.default_rng(seed)
    found: dict[str, Array] = {"global_step": np.array(7, np.int64)}
    for name, shape in _shapes(stem, depths, width, classes, tables):
        if name.endswith("moving_variance"):
            found[name] = random.uniform(0.5, 1.5, shape).astype(np.float32)
            continue
        spread = 0.5 if name.endswith("embedding") else 1 / np.sqrt(max(1, np.prod(shape[:-1])))
        base = 1.0 if name.endswith("gamma") else 0.0
        for suffix in ("",) if name.endswith("moving_mean") else ("", EMA):
            found[name + suffix] = (base + random.normal(0, min(spread, 0.3), shape)).astype(np.float32)
    return found


def _shapes(
    stem: int, depths: tuple[int, ...], width: int, classes: int, tables: tuple[int, int] | None
) -> Iterator[tuple[str, tuple[int, ...]]]:
    def conv(
        name: str, size: int, before: int, after: int, bias: bool = True
    ) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"moat/{name}/kernel", (size, size, before, after)
        if bias:
            yield f"moat/{name}/bias", (after,)

    def norm(name: str, channels: int, moving: bool = True) -> Iterator[tuple[str, tuple[int, ...]]]:
        for part in ("gamma", "beta", *(("moving_mean", "moving_variance") if moving else ())):
            yield f"moat/{name}/{part}", (channels,)

    yield from conv("stem/conv_0", 3, 3, stem)
    yield from norm("stem/norm_0", stem)
    yield from conv("stem/conv_1", 3, stem, stem)
    before = stem
    for stage, depth in enumerate(depths):
        after = width * 2**stage
        for index in range(depth):
            block = f"block_{stage:02d}_{index:02d}"
            yield from norm(f"{block}/pre_norm", before)
            yield from conv(f"{block}/expand_conv", 1, before, 4 * after, bias=False)
            yield from norm(f"{block}/expand_norm", 4 * after)
            yield f"moat/{block}/depthwise_conv/depthwise_kernel", (3, 3, 4 * after, 1)
            yield from norm(f"{block}/depthwise_norm", 4 * after)
            if stage < 2:
                yield from conv(f"{block}/se/reduce_conv2d", 1, 4 * after, after // 4)
                yield from conv(f"{block}/se/expand_conv2d", 1, after // 4, 4 * after)
            yield from conv(f"{block}/shrink_conv", 1, 4 * after, after)
            if before != after:
                yield from conv(f"{block}/shortcut_conv", 1, before, after)
            if stage >= 2:
                heads = after // 32
                yield from norm(f"{block}/attention_norm", after, moving=False)
                for part in "qkv":
                    yield f"moat/{block}/attention/{part}/weight", (after, heads, 32)
                    yield f"moat/{block}/attention/{part}/bias", (heads, 32)
                yield f"moat/{block}/attention/o/weight", (heads, 32, after)
                yield f"moat/{block}/attention/o/bias", (after,)
                if tables:
                    side = 2 * tables[stage - 2] - 1
                    yield f"moat/{block}/attention/relative_position_embedding", (heads, side, side)
            before = after
    yield from norm("final_layer_norm", before, moving=False)
    yield from conv("logits_head", 1, before, classes)


def save(found: dict[str, Array], prefix: Path) -> None:
    """Write a name-based TensorFlow checkpoint."""
    import tensorflow as tf

    tf.raw_ops.SaveV2(
        prefix=str(prefix),
        tensor_names=list(found),
        shape_and_slices=[""] * len(found),
        tensors=[tf.constant(value) for value in found.values()],
    )


def logits(
    found: dict[str, Array],
    image_NHWC: Array,
    *,
    depths: tuple[int, ...],
    pool: int = 2,
    windows: tuple[tuple[int, int] | None, tuple[int, int] | None] = (None, None),
    global_last: bool = False,
    ema: bool = False,
) -> Array:
    """Logits (N, classes); `windows` of the two attention stages, None for the whole map."""
    import tensorflow as tf

    def get(name: str) -> Array:
        averaged = f"moat/{name}{EMA}"
        return found[averaged] if ema and averaged in found else found[f"moat/{name}"]

    def conv(x: tf.Tensor, name: str, stride: int = 1) -> tf.Tensor:
        x = tf.nn.conv2d(x, get(f"{name}/kernel"), stride, "SAME")
        return x + get(f"{name}/bias") if f"moat/{name}/bias" in found else x

    def batch_norm(x: tf.Tensor, name: str) -> tf.Tensor:
        mean, variance, beta, gamma = (
            get(f"{name}/{part}") for part in ("moving_mean", "moving_variance", "beta", "gamma")
        )
        return tf.nn.batch_normalization(x, mean, variance, beta, gamma, 1e-3)

    def layer_norm(x: tf.Tensor, name: str) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, get(f"{name}/beta"), get(f"{name}/gamma"), 1e-5)

    def gelu(x: tf.Tensor) -> tf.Tensor:
        return tf.nn.gelu(x, approximate=False)

    def mobile(x: tf.Tensor, block: str, stride: int) -> tf.Tensor:
        shortcut = tf.nn.avg_pool2d(x, pool, 2, "SAME") if stride == 2 else x
        if f"moat/{block}/shortcut_conv/kernel" in found:
            shortcut = conv(shortcut, f"{block}/shortcut_conv")
        x = gelu(batch_norm(conv(batch_norm(x, f"{block}/pre_norm"), f"{block}/expand_conv"), f"{block}/expand_norm"))
        kernel = get(f"{block}/depthwise_conv/depthwise_kernel")
        x = tf.nn.depthwise_conv2d(x, kernel, [1, stride, stride, 1], "SAME")
        x = gelu(batch_norm(x, f"{block}/depthwise_norm"))
        if f"moat/{block}/se/reduce_conv2d/kernel" in found:
            gate = tf.reduce_mean(x, [1, 2], keepdims=True)
            gate = conv(tf.nn.silu(conv(gate, f"{block}/se/reduce_conv2d")), f"{block}/se/expand_conv2d")
            x = tf.sigmoid(gate) * x
        return shortcut + conv(x, f"{block}/shrink_conv")

    def attention(x: tf.Tensor, name: str) -> tf.Tensor:
        """Each of (N, h, w, C) is one window."""
        _, h, w, channels = x.shape
        x = tf.reshape(x, [-1, h * w, channels])
        q, k, v = (
            tf.einsum("nsc,chd->nhsd", x, get(f"{name}/{p}/weight")) + get(f"{name}/{p}/bias")[:, None] for p in "qkv"
        )
        scores = tf.einsum("nhsd,nhtd->nhst", q, k) / np.sqrt(np.float32(32))
        if f"moat/{name}/relative_position_embedding" in found:
            table = get(f"{name}/relative_position_embedding")[..., None]
            table = tf.image.resize(table, [2 * h - 1, 2 * w - 1]).numpy()[..., 0]
            y, z = np.divmod(np.arange(h * w), w)
            scores += table[:, y[None, :] - y[:, None] + h - 1, z[None, :] - z[:, None] + w - 1]
        out = tf.einsum("nhst,nhtd->nshd", tf.nn.softmax(scores), v)
        return tf.einsum("nshd,hdc->nsc", out, get(f"{name}/o/weight")) + get(f"{name}/o/bias")

    def attend(x: tf.Tensor, block: str, window: tuple[int, int] | None) -> tf.Tensor:
        _, H, W, C = x.shape
        h, w = window or (H, W)
        x = layer_norm(x, f"{block}/attention_norm")
        x = tf.transpose(tf.reshape(x, [-1, H // h, h, W // w, w, C]), [0, 1, 3, 2, 4, 5])
        x = attention(tf.reshape(x, [-1, h, w, C]), f"{block}/attention")
        x = tf.transpose(tf.reshape(x, [-1, H // h, W // w, h, w, C]), [0, 1, 3, 2, 4, 5])
        return tf.reshape(x, [-1, H, W, C])

    x = gelu(batch_norm(conv(tf.constant(image_NHWC), "stem/conv_0", 2), "stem/norm_0"))
    x = conv(x, "stem/conv_1")
    for stage, depth in enumerate(depths):
        for index in range(depth):
            block = f"block_{stage:02d}_{index:02d}"
            x = mobile(x, block, 2 if index == 0 else 1)
            if stage >= 2:
                whole = global_last and index == depth - 1
                x = x + attend(x, block, None if whole else windows[stage - 2])
    x = layer_norm(tf.reduce_mean(x, [1, 2], keepdims=True), "final_layer_norm")
    return conv(x, "logits_head").numpy()[:, 0, 0]
