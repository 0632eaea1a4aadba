"""Activation functions from the formulas of MIL's documentation, in float64."""

from __future__ import annotations

import numpy as np
from scipy import special


def relu(x):
    return np.where(x > 0, x, 0)


def relu6(x):
    return np.minimum(np.maximum(x, 0), 6)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def softplus(x):
    return np.log1p(np.exp(x))


def softsign(x):
    return x / (1 + np.abs(x))


def gelu(x, mode="EXACT"):
    if mode == "EXACT":
        return 0.5 * x * (1 + special.erf(x / np.sqrt(2)))
    if mode == "TANH_APPROXIMATION":
        return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    return x * sigmoid(1.702 * x)


def elu(x, alpha):
    return np.where(x > 0, x, alpha * (np.exp(x) - 1))


def leaky_relu(x, alpha):
    return np.where(x >= 0, x, alpha * x)


def clamped_relu(x, alpha, beta):
    return np.where(x >= 0, np.minimum(beta, x), np.minimum(beta, alpha * x))


def thresholded_relu(x, alpha):
    return np.where(x >= alpha, x, 0)


def linear_activation(x, alpha, beta):
    return x * alpha + beta


def scaled_tanh(x, alpha, beta):
    return alpha * np.tanh(beta * x)


def sigmoid_hard(x, alpha, beta):
    return np.minimum(np.maximum(alpha * x + beta, 0), 1)


def _along_channels(numbers, x):
    return np.reshape(numbers, (1, -1) + (1,) * (x.ndim - 2))


def prelu(x, alpha):
    return np.where(x > 0, x, _along_channels(alpha, x) * x)


def softplus_parametric(x, alpha, beta):
    return _along_channels(alpha, x) * np.log1p(np.exp(_along_channels(beta, x) * x))


def softmax(x, axis):
    shifted = np.exp(x - x.max(axis=axis, keepdims=True))
    return shifted / shifted.sum(axis=axis, keepdims=True)
