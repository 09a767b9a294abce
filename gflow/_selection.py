"""The largest of several values, as a tournament of switches.

Where two values tie, their maximum has a kink, and what follows the larger one jumps. Here the
larger of a and b is written with an angle phi in [-pi/2, pi/2],

    larger(a, b) = ((1 + sin phi) a + (1 - sin phi) b + mu w cos phi) / 2,   w^2 = (a^2 + b^2)/2,

and the angle is settled where `v cos phi = mu w sin phi`, `v = a - b`. For mu -> 0 it is then
+-pi/2 with the sign of v, or v is 0 and phi free: any convex combination of the two. For mu > 0
the larger one comes out rounded to the relative width mu, and at the settled angle its derivative
by phi vanishes. The largest of m values takes m - 1 such switches, in rounds in which neighbours
meet; products of `(1 +- sin phi)/2` are the convex coefficients of the m values.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from gflow._numerics import norm, ratio
from gflow._rounded import hypotenuse


class Selection(NamedTuple):
    """The largest of m values, and how its m - 1 switches stand.

    Attributes:
        largest: the value that wins. Shape (...).
        coefficients: convex coefficients of the m values. Shape (..., m).
        angles: phi of the switches, round by round. Shape (..., m - 1).
        values: v of the switches, whose sign decides them. Shape (..., m - 1).
        scales: w of the switches. Shape (..., m - 1).
    """

    largest: Float[Array, "..."]
    coefficients: Float[Array, "... m"]
    angles: Float[Array, "... s"]
    values: Float[Array, "... s"]
    scales: Float[Array, "... s"]


def select_largest(
    values: Float[Array, "... m"], smoothing: Any, angles: Float[Array, "... s"] | None = None
) -> Selection:
    """The largest along the last axis, with switches at the given angles, or at the settled ones.

    Args:
        smoothing: mu >= 0.
        angles: phi of the m - 1 switches; None settles each. Shape (..., m - 1).
    """
    smoothing = jnp.asarray(smoothing, values.dtype)
    coefficients, used, rounds = jnp.ones_like(values), 0, []
    while values.shape[-1] > 1:
        count = values.shape[-1] // 2
        # Strided slices: their derivatives compile in far less time than those of indexing.
        first, second = (lax.slice_in_dim(values, begin, 2 * count, 2, axis=-1) for begin in (0, 1))
        unmatched = values[..., 2 * count :]
        difference = first - second
        scale = hypotenuse(first, jnp.abs(second)) / math.sqrt(2)
        given = None if angles is None else angles[..., used : used + count]
        angle = _settled(difference, smoothing * scale) if given is None else given
        shares = 0.5 * (1 + jnp.sin(angle)), 0.5 * (1 - jnp.sin(angle))
        width = smoothing * scale
        winner = shares[0] * first + shares[1] * second + 0.5 * width * jnp.cos(angle)
        pairs = jnp.stack(shares, axis=-1).reshape(*angle.shape[:-1], 2 * count)
        factors = jnp.concatenate([pairs, jnp.ones_like(unmatched)], axis=-1)
        repeated = jnp.repeat(factors, 2 ** len(rounds), axis=-1)
        coefficients = coefficients * repeated[..., : coefficients.shape[-1]]
        used += count
        values = jnp.concatenate([winner, unmatched], axis=-1)
        rounds.append((angle, difference, scale))
    nothing = (values[..., :0],) * 3
    joined = (jnp.concatenate(parts, axis=-1) for parts in zip(nothing, *rounds, strict=True))
    return Selection(values[..., 0], coefficients, *joined)


def select_smallest(
    values: Float[Array, "... m"], smoothing: Any, angles: Float[Array, "... s"] | None = None
) -> Selection:
    """The smallest along the last axis, in the field `largest`; see `select_largest`."""
    found = select_largest(-values, smoothing, angles)
    return found._replace(largest=-found.largest)


def select_peak(
    gradient: Float[Array, " d"], smoothing: Any, angles: Float[Array, " s"] | None = None
) -> tuple[Float[Array, " d"], Selection]:
    """The step of unit l_1 norm along the entry of largest magnitude, `g_j / |g_j|` in its place.

    With coefficients c of the largest among the g_j^2 it is `c_j g_j / sqrt(sum_k c_k g_k^2)`, of
    l_1 norm at most 1, 0 for a zero gradient. It does not change under `g -> c g`, c > 0.

    Returns:
        the step, and the selection, its values in the units of g. Shapes: (d,).
    """
    size = norm(gradient) / math.sqrt(gradient.size)
    safe = jnp.where(size == 0, 1.0, size)
    scaled = gradient / safe
    found = select_largest(scaled * scaled, smoothing, angles)
    step = found.coefficients * ratio(scaled, jnp.sum(found.coefficients * scaled * scaled))
    return step, found._replace(values=size * found.values, scales=size * found.scales)


def _settled(difference: Array, width: Array) -> Array:
    """`arctan(v / width)`, 0 where both are 0, with finite derivatives."""
    # Held constant, since the angle does not change when both are scaled.
    root = lax.stop_gradient(hypotenuse(difference, width))
    zero = root == 0
    safe = jnp.where(zero, 1.0, root)
    return jnp.arctan2(difference / safe, jnp.where(zero, 1.0, width / safe))
