"""Steps of unit length along the gradient of a margin, and the order of their norm."""

import math
import numbers
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from gflow._numerics import norm, smoothed_sign, steepest


def follows_signs(order: float, smoothing: Any) -> bool:
    """Whether a step of this order is along signs that nothing smooths."""
    return math.isinf(order) and smoothing is None


def unit_step(gradient: Array, order: float, smoothing: Any) -> Array:
    """The step of unit length along the gradient, its signs smoothed where asked."""
    if smoothing is None:
        return steepest(gradient, order)
    return smoothed_sign(gradient, jnp.asarray(smoothing, gradient.dtype))


def switched_step(
    gradient: Array, order: float, smoothing: Any, signs: Array
) -> tuple[Array, tuple[Array, Array]]:
    """`unit_step` with signs held at their angles, and what decides them: g and rms(g)."""
    if not signs.size:
        return unit_step(gradient, order, smoothing), (signs, signs)
    size = norm(gradient) / math.sqrt(gradient.size)
    return jnp.sin(signs), (gradient, jnp.broadcast_to(size, gradient.shape))


def checked_order(order: Any, name: str) -> float:
    """The p of an l_p norm as a number; `name` is the function that was given it."""
    if not isinstance(order, numbers.Real) or isinstance(order, bool):
        raise TypeError(
            f"`{name}(order={order!r})`: the order of an l_p norm is a number in [1, inf], such as "
            "2 or `math.inf`. It decides which program is compiled, so it cannot be traced."
        )
    number = float(order)
    if not number >= 1:
        raise ValueError(f"`{name}(order={order!r})`: the order of an l_p norm lies in [1, inf].")
    return number
