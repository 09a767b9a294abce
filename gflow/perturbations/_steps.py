"""Steps of unit length along the gradient of a margin, and the order of their norm."""

import math
import numbers
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from gflow._checks import whole_or_real
from gflow._numerics import norm, smoothed_sign, steepest
from gflow._selection import select_peak


def num_switches(order: float, smoothing: Any, num_inputs: int) -> int:
    """Switches of a step of this order, where nothing smooths them: the sign of each coordinate
    for order inf, and for order 1 the selection of the largest one.
    """
    if smoothing is not None:
        return 0
    if math.isinf(order):
        return num_inputs
    return num_inputs - 1 if order == 1 else 0


def has_kinks(order: float, smoothing: Any) -> bool:
    """Whether a step of this order has kinks that have names."""
    return num_switches(order, smoothing, 2) > 0


def unit_step(gradient: Array, order: float, smoothing: Any) -> Array:
    """The step of unit length along the gradient, its kinks smoothed where asked."""
    if smoothing is None:
        return steepest(gradient, order)
    smoothing = jnp.asarray(smoothing, gradient.dtype)
    if order == 1:
        return select_peak(gradient, smoothing)[0]
    return smoothed_sign(gradient, smoothing)


def switched_step(
    gradient: Array, order: float, rounded: Any, smoothing: Any, angles: Array
) -> tuple[Array, tuple[Array, Array]]:
    """`unit_step` with its switches held at their angles, and what decides them.

    For order inf that is g and rms(g); for order 1 see `gflow._selection.select_peak`.

    Args:
        rounded: the smoothing of the step itself, which then has no switches; or None.
        smoothing: mu >= 0 of the switches.
    """
    if not angles.size:
        return unit_step(gradient, order, rounded), (angles, angles)
    if order == 1:
        step, found = select_peak(gradient, smoothing, angles)
        return step, (found.values, found.scales)
    size = norm(gradient) / math.sqrt(gradient.size)
    return jnp.sin(angles), (gradient, jnp.broadcast_to(size, gradient.shape))


def checked_order(order: Any, name: str) -> float:
    """The p of an l_p norm as a number; `name` is the function that was given it."""
    if not isinstance(order, numbers.Real) or isinstance(order, bool):
        raise TypeError(
            f"`{name}(order={order!r})`: the order of an l_p norm is a number in [1, inf], such as "
            "2 or `math.inf`. It decides which program is compiled, so it cannot be traced."
        )
    number = whole_or_real(order)
    if not number >= 1:
        raise ValueError(f"`{name}(order={order!r})`: the order of an l_p norm lies in [1, inf].")
    return number
