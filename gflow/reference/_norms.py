"""l_q norms and their subgradients in NumPy, for any floating type, `np.longdouble` included."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


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
