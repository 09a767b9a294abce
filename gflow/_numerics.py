"""Norms and log-domain sums that stay finite, with their derivatives.

Nothing else in gflow divides by a norm. Each function first scales its argument by its largest
entry, so that neither 1e-200 nor 1e+200 over- or underflows in a square.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gflow._typing import Params


def scalar(value: Any, name: str, *, minimum: float = 0.0) -> Any:
    """A number that may be swept, as a zero-dimensional float64 NumPy array.

    NumPy rather than JAX, so that a description built before `jax_enable_x64` is set keeps all its
    digits. JAX arrays and tracers pass through unchecked.

    Raises:
        TypeError: `value` is no number.
        ValueError: `value` is NaN, infinite or below `minimum`.
    """
    if isinstance(value, jax.Array):
        return value
    try:
        number = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"`{name}={value!r}` is not a number.") from None
    if number.ndim and not isinstance(value, np.ndarray):
        raise TypeError(f"`{name}={value!r}` must be one number, not a sequence.")
    if not np.all(np.isfinite(number)):
        raise ValueError(f"`{name}={value!r}` must be finite.")
    if np.any(number < minimum):
        raise ValueError(f"`{name}={value!r}` must be at least {minimum:g}.")
    return number


def smoothing_leaf(smoothing: Any) -> Any:
    """None for zero smoothing, which is another program; otherwise a number that may be swept."""
    if isinstance(smoothing, (int, float)) and smoothing == 0:
        return None
    return scalar(smoothing, "smoothing")


def _scaled(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`vector / s` and `s = max |vector|` (1 for a zero vector), s held constant."""
    largest = lax.stop_gradient(jnp.max(jnp.abs(vector), initial=0.0))
    # The reciprocal of a subnormal overflows; below the smallest normal all counts as zero.
    scale = jnp.where(largest > jnp.finfo(vector.dtype).tiny, largest, jnp.ones_like(largest))
    return vector / scale, scale


def _safe_sqrt(square: jax.Array) -> jax.Array:
    """sqrt with value and derivative 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm of an array of any shape; its derivative at 0 is 0."""
    scaled, scale = _scaled(vector)
    return scale * _safe_sqrt(jnp.sum(scaled * scaled))


def tree_norm(params: Params) -> jax.Array:
    """`|params|_2`, the Euclidean norm over all leaves together."""
    norms = [norm(leaf) for leaf in jax.tree.leaves(params)]
    return norms[0] if len(norms) == 1 else norm(jnp.stack(norms))


def tree_dot(left: Params, right: Params) -> jax.Array:
    """`<left, right>` over all leaves."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
    return sum(jax.tree.leaves(products), start=jnp.zeros(()))


def tree_scale(factor: Any, params: Params) -> Params:
    """`factor * params`, leaf by leaf."""
    return jax.tree.map(lambda leaf: factor * leaf, params)


def unit(params: Params) -> tuple[Params, jax.Array]:
    """`params / |params|_2` and `|params|_2`; zero stays zero."""
    length = tree_norm(params)
    safe = jnp.where(length > 0, length, 1.0)
    return jax.tree.map(lambda leaf: leaf / safe, params), length


def tangent(direction: Params, vector: Params) -> Params:
    """`(I - u u^T) v` for the unit vector `u = direction`."""
    radial = tree_dot(direction, vector)
    return jax.tree.map(lambda v, u: v - radial * u, vector, direction)


def dual_order(order: float) -> float:
    """The q with 1/p + 1/q = 1."""
    if order == 1:
        return math.inf
    return 1.0 if math.isinf(order) else order / (order - 1)


def lp_norm(vector: jax.Array, order: float) -> jax.Array:
    """`|vector|_p` for p in [1, inf]."""
    scaled, scale = _scaled(vector)
    magnitude = jnp.abs(scaled)
    if math.isinf(order):
        return scale * jnp.max(magnitude, initial=0.0)
    if order == 1:
        return scale * jnp.sum(magnitude)
    if order == 2:
        return scale * _safe_sqrt(jnp.sum(scaled * scaled))
    total = jnp.sum(_safe_power(magnitude, order))
    return scale * _safe_power(total, 1 / order)


def _safe_power(base: jax.Array, exponent: float) -> jax.Array:
    """`base^exponent` for base >= 0, with value and derivative 0 at 0."""
    positive = base > 0
    return jnp.where(positive, jnp.where(positive, base, 1.0) ** exponent, 0.0)


def steepest(gradient: jax.Array, order: float) -> jax.Array:
    """`argmax_{|v|_p <= 1} <gradient, v>`: the unit l_p vector of steepest ascent.

    With q dual to p, `v_j = sign(g_j) |g_j|^(q-1) / |g|_q^(q-1)`: `g / |g|_2` for p = 2, `sign(g)`
    for p = inf; for p = 1 the first coordinate of largest magnitude. Zero gradient gives zero.
    It is invariant under `g -> c g`, c > 0, and its derivative is finite everywhere.
    """
    scaled, _ = _scaled(gradient)
    if math.isinf(order):
        return jnp.sign(scaled)
    if order == 1:
        flat = scaled.ravel()
        largest = jnp.argmax(jnp.abs(flat))
        peak = jnp.zeros_like(flat).at[largest].set(jnp.sign(flat[largest]))
        return peak.reshape(scaled.shape)
    if order == 2:
        square = jnp.sum(scaled * scaled)
        return scaled / jnp.sqrt(jnp.where(square > 0, square, 1.0))
    dual = dual_order(order)
    magnitude = jnp.abs(scaled)
    total = jnp.sum(_safe_power(magnitude, dual))
    denominator = jnp.where(total > 0, total, 1.0) ** (1 / order)
    return jnp.sign(scaled) * _safe_power(magnitude, dual - 1) / denominator


def smoothed_sign(gradient: jax.Array, smoothing: Any) -> jax.Array:
    """`g / sqrt(g^2 + (mu rms(g))^2)`: sign(g) with kinks of relative width mu = `smoothing`.

    Like sign(g) it does not change under `g -> c g`, c > 0. Zero gradient gives zero.
    """
    scaled, _ = _scaled(gradient)
    mean_square = jnp.mean(scaled * scaled)
    square = scaled * scaled + smoothing**2 * mean_square
    return scaled / jnp.sqrt(jnp.where(square > 0, square, 1.0))


def smoothed_relu(value: jax.Array, width: jax.Array) -> jax.Array:
    """`(a + sqrt(a^2 + w^2)) / 2`, elementwise: max(a, 0) with its kink rounded to width w.

    Written without the cancellation for a < 0, where it equals `w^2 / (2 (sqrt(a^2 + w^2) - a))`.
    """
    root = _safe_sqrt(value * value + width * width)
    negative = value < 0
    distance = jnp.where(negative, root - value, 1.0)
    # w/distance <= 1, so this order of operations cannot overflow.
    return jnp.where(negative, 0.5 * width * (width / distance), 0.5 * (value + root))
