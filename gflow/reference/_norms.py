"""l_q norms and their subgradients in NumPy, for any floating type, `np.longdouble` included."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gflow._numerics import dual_order

Array = NDArray[Any]

_KINK, _EXACT = 1e-9, 1e-12


def lp_norm(vector: Array, order: float) -> Any:
    """`|vector|_order` for order in [1, inf], scaled so that no power over- or underflows."""
    magnitude = np.abs(vector)
    largest = magnitude.max(initial=0)
    if largest == 0 or math.isinf(order):
        return largest
    return largest * np.sum((magnitude / largest) ** order) ** (1 / order)


def signed_power(vector: Array, exponent: float) -> Array:
    """`sign(v) |v|^exponent`, entry by entry, for exponent > 0."""
    return np.sign(vector) * np.abs(vector) ** exponent


def subgradient(vector: Array, order: float) -> Array:
    """One subgradient of `|.|_order` at a nonzero vector: the gradient wherever there is one.

    At a kink it is the most central one: 0 at the zeros of an l_1 norm, equal shares for the
    entries that attain an l_inf norm.
    """
    if order == 1:
        return np.sign(vector)
    if math.isinf(order):
        largest = np.abs(vector) == np.abs(vector).max()
        return np.sign(vector) * largest / largest.sum()
    return signed_power(vector / lp_norm(vector, order), order - 1)


def nearest_subgradient(vector: Array, order: float, proposed: Array) -> Array:
    """The subgradient of `|.|_order` at a nonzero vector that is next to what was `proposed`.

    Where the norm has a gradient there, that gradient. At a kink the subgradients are many, and a
    solver proposes one from the KKT conditions: at a tiny radius of attack it is a quotient of two
    numbers that are all rounding, and no subgradient at all. What is one, by `|s|_p <= 1` and
    `<s, v> = |v|_q`, is kept. Entries within 1e-9 of a kink, relative to the largest, count as at
    it: 0 for order 1, of largest size for order inf.
    """
    length = lp_norm(proposed, dual_order(order))
    if length <= 1 + _EXACT and proposed @ vector >= (1 - _EXACT) * lp_norm(vector, order):
        return proposed
    if 1 < order < math.inf:
        return subgradient(vector, order)
    size = np.abs(vector) / np.abs(vector).max()
    proposed = np.nan_to_num(proposed)
    if order == 1:
        return np.where(size <= _KINK, np.clip(proposed, -1.0, 1.0), np.sign(vector))
    shares = np.where(size >= 1 - _KINK, np.maximum(np.sign(vector) * proposed, 0.0), 0.0)
    total = shares.sum()
    return np.sign(vector) * shares / total if total > 0 else subgradient(vector, order)
