"""The two-layer net `f(x) = v . relu(W x)` under FGSM in plain NumPy, with its Clarke gradients.

At kinks the slope of a ReLU is `(1 + c)/2` and a sign is c, c in [-1, 1]; elsewhere c is -1 or 1.
"""

from typing import NamedTuple

import numpy as np


class Row(NamedTuple):
    """What one example's coefficients make of it. h neurons, d inputs.

    Attributes:
        margin: `y f(x + delta)`.
        gradient: by (W, v), with delta held fixed. Shape (P,).
        decided: the numbers whose signs the coefficients are: pre-activations under the attack, the
            attacked margin's gradient, and pre-activations at `x + delta`.
    """

    margin: float
    gradient: np.ndarray
    decided: np.ndarray


def row(params, x, y, radius, coefficients):
    """Shapes: params (W (h, d), v (1, h)); x (d,); coefficients (h,), or (2 h + d,) under attack,
    in the order of `Row.decided`."""
    weight, head = params[0], params[1][0]
    under, signs, after = parts(coefficients, len(head))
    slopes = (1 + after) / 2
    gradient = y * (head * (1 + under) / 2) @ weight if len(under) else np.zeros(0)
    point = x - radius * signs if len(signs) else x
    value = weight @ point
    by_weight = (head * slopes)[:, None] * point
    decided = np.concatenate([weight @ x if len(under) else under, gradient, value])
    flat = y * np.concatenate([by_weight.ravel(), slopes * value])
    return Row(y * head @ np.maximum(value, 0), flat, decided)


def parts(coefficients, width):
    """Coefficients of the ReLUs under attack, of the signs, and of the ReLUs after it."""
    if len(coefficients) == width:
        return coefficients[:0], coefficients[:0], coefficients
    return coefficients[:width], coefficients[width:-width], coefficients[-width:]


def rows(params, data, radius, coefficients):
    """Margins (n,), gradients (n, P) and what decides the coefficients (n, s)."""
    found = [
        row(params, x, y, radius, c) for x, y, c in zip(data.x, data.y, coefficients, strict=True)
    ]
    return tuple(np.array(column) for column in zip(*found, strict=True))


def smallest_margin(params, data):
    """`min_i y_i f(x_i)`, without perturbation."""
    return np.min(data.y * (np.maximum(data.x @ params[0].T, 0) @ params[1][0]))
