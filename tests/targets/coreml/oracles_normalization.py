"""Normalization from the formulas of MIL's documentation, in float64; None stands for a scale or offset left out."""

from __future__ import annotations

import numpy as np


def _along(numbers, x, axes):
    return np.reshape(numbers, [side if i in axes else 1 for i, side in enumerate(x.shape)])


def _affine(x, gamma, beta, axes):
    x = x if gamma is None else x * _along(gamma, x, axes)
    return x if beta is None else x + _along(beta, x, axes)


def batch_norm(x, mean, variance, gamma=None, beta=None, epsilon=1e-5):
    centred = x - _along(mean, x, (1,))
    return _affine(centred / np.sqrt(_along(variance, x, (1,)) + epsilon), gamma, beta, (1,))


def _standard(x, axes, epsilon):
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)


def instance_norm(x, gamma=None, beta=None, epsilon=1e-5):
    return _affine(_standard(x, tuple(range(2, x.ndim)), epsilon), gamma, beta, (1,))


def layer_norm(x, axes, gamma=None, beta=None, epsilon=1e-5):
    axes = tuple(axis % x.ndim for axis in axes)
    return _affine(_standard(x, axes, epsilon), gamma, beta, axes)


def l2_norm(x, epsilon=1e-6):
    return x / np.sqrt((x**2).sum(axis=(-3, -2, -1), keepdims=True) + epsilon)


def local_response_norm(x, size, alpha=1e-4, beta=0.75, k=1.0):
    channels = x.shape[1]
    found = np.empty_like(x)
    for i in range(channels):
        first = i - size // 2
        near = x[:, max(first, 0) : max(min(first + size, channels), 0)]
        found[:, i] = x[:, i] / (k + alpha / size * (near**2).sum(axis=1)) ** beta
    return found
