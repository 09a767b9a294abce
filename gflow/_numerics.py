"""Norms and log-domain sums that stay finite, with their derivatives.

Nothing else in gflow divides by a norm. Each function first scales its argument by its largest
entry, so that neither 1e-200 nor 1e+200 over- or underflows in a square. Norms and unit vectors
have value and derivative 0 at 0; a NaN stays NaN.
"""

import functools
import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from gflow._typing import Params


@jax.jit
def _scaled(vector: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`vector / s` and `s = max |vector|`, s held constant; for a zero vector 0 and s = 1.

    Whatever is homogeneous may treat s as constant: then its derivatives come out right as well.
    """
    largest = lax.stop_gradient(jnp.max(jnp.abs(vector), initial=0.0))
    # Subnormal numbers count as zero: XLA flushes them on some devices, and 1/s would overflow.
    zero = largest <= jnp.finfo(vector.dtype).tiny
    scale = jnp.where(zero, jnp.ones_like(largest), largest)
    return jnp.where(zero, 0.0, vector / scale), scale


@jax.jit
def _safe_sqrt(square: jax.Array) -> jax.Array:
    """Square root with value and derivative 0 at 0."""
    zero = square == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))


@jax.custom_jvp
@jax.jit
def norm(vector: jax.Array) -> jax.Array:
    """Euclidean norm of an array of any shape; its derivative at 0 is 0.

    This and `normalized` have rules of their own for their derivatives, in a few operations: those
    of the operations one by one make second derivatives, as of attacks, several times as costly.
    """
    scaled, scale = _scaled(vector)
    return scale * _safe_sqrt(jnp.sum(scaled * scaled))


@norm.defjvp
@jax.jit
def _norm_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """`d|v| = <v / |v|, dv>`."""
    (vector,), (change,) = primals, tangents
    return norm(vector), jnp.sum(normalized(vector) * change)


@jax.custom_jvp
@jax.jit
def normalized(vector: jax.Array) -> jax.Array:
    """`v / |v|_2`, with value and derivative 0 at 0."""
    scaled, _ = _scaled(vector)
    return ratio(scaled, jnp.sum(scaled * scaled))


@normalized.defjvp
@jax.jit
def _normalized_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[Any, Any]:
    """`d(v / |v|) = (I - u u^T) dv / |v|`, u = v / |v|."""
    (vector,), (change,) = primals, tangents
    unit_vector, length = normalized(vector), norm(vector)
    zero = length <= jnp.finfo(vector.dtype).tiny
    inverse = jnp.where(zero, 0.0, 1.0 / jnp.where(zero, 1.0, length))
    across = change - unit_vector * jnp.sum(unit_vector * change)
    return unit_vector, inverse * across


def row_norms(rows: ArrayLike) -> jax.Array:
    """Euclidean norm of each entry of the first axis; derivative 0 at 0.

    NumPy's arrays are taken to JAX first: in a compiled function JAX 0.10 refuses them as the
    arguments of a function with a derivative of its own that is mapped.
    """
    return jax.vmap(norm)(jnp.asarray(rows))


def window_norms(
    image: jax.Array, size: tuple[int, int], stride: tuple[int, int], padding: str
) -> jax.Array:
    """Euclidean norm of each window of an image, over all channels; derivative 0 at 0.

    Shapes: image (channels, height, width) -> (1, rows of windows, columns of windows).
    """
    scaled, scale = _scaled(image)
    squares = jnp.sum(scaled * scaled, axis=0, keepdims=True)
    zero = np.zeros((), image.dtype)
    sums = lax.reduce_window(squares, zero, lax.add, (1, *size), (1, *stride), padding)
    return scale * _safe_sqrt(sums)


def tree_norm(params: Params) -> jax.Array:
    """`|params|_2`, the Euclidean norm over all leaves together."""
    norms = [norm(leaf) for leaf in jax.tree.leaves(params)]
    return norms[0] if len(norms) == 1 else norm(jnp.stack(norms))


def tree_dot(left: Params, right: Params) -> jax.Array:
    """`<left, right>` over all leaves."""
    products = jax.tree.map(lambda a, b: jnp.sum(a * b), left, right)
    return functools.reduce(operator.add, jax.tree.leaves(products))


def tree_scale(factor: Any, params: Params) -> Params:
    """`factor * params`, leaf by leaf."""
    return jax.tree.map(lambda leaf: factor * leaf, params)


def unit(params: Params) -> tuple[Params, jax.Array]:
    """`params / |params|_2` and `|params|_2`; zero stays zero."""
    length = tree_norm(params)
    safe = jnp.where(length == 0, 1.0, length)
    return jax.tree.map(lambda leaf: leaf / safe, params), length


def tangent(direction: Params, vector: Params) -> Params:
    """`(I - u u^T) v` for the unit vector `u = direction`."""
    radial = tree_dot(direction, vector)
    return jax.tree.map(lambda v, u: v - radial * u, vector, direction)


@jax.jit
def scaled_margins(kappa: jax.Array, margins: jax.Array) -> jax.Array:
    """`kappa * margins`, whose sums of exponentials stay right however large kappa is.

    Compilers fuse a product with the subtraction of the maximum that follows in `logsumexp` and
    `softmax`. Of the largest entry the fused difference leaves the rounding error of its product in
    place of 0; that error exceeds 700 once kappa does 1e19, and its exponential is 0 or infinite.
    A maximum in between, with a bound that nothing falls below, keeps the two apart.
    """
    lowest = np.finfo(margins.dtype).min
    return jnp.maximum(kappa * margins, jnp.where(jnp.isinf(kappa), -np.inf, lowest))


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
    zero = base == 0
    return jnp.where(zero, 0.0, jnp.where(zero, 1.0, base) ** exponent)


def steepest(gradient: jax.Array, order: float) -> jax.Array:
    """`argmax_{|v|_p <= 1} <gradient, v>`: the unit l_p vector of steepest ascent.

    With q dual to p, `v_j = sign(g_j) |g_j|^(q-1) / |g|_q^(q-1)`: `g / |g|_2` for p = 2, `sign(g)`
    for p = inf; for p = 1 the first coordinate of largest magnitude. Zero gradient gives zero.
    It is invariant under `g -> c g`, c > 0. Its derivative is finite everywhere; for p > 2 the
    true one is infinite where a coordinate passes through 0, and is taken as 0 there.
    """
    if math.isinf(order):
        return jnp.sign(gradient)
    if order == 2:
        return normalized(gradient)
    scaled, _ = _scaled(gradient)
    if order == 1:
        largest = jnp.argmax(jnp.abs(gradient))  # ravelled; unscaled, since rounding makes ties
        peak = jnp.zeros(scaled.size, scaled.dtype).at[largest].set(1.0)
        return peak.reshape(scaled.shape) * jnp.sign(scaled)
    magnitude = jnp.abs(scaled)
    total = jnp.sum(_safe_power(magnitude, dual_order(order)))
    denominator = jnp.where(total == 0, 1.0, total) ** (1 / order)
    return jnp.sign(scaled) * _safe_power(magnitude, 1 / (order - 1)) / denominator


def smoothed_sign(gradient: jax.Array, smoothing: Any) -> jax.Array:
    """`g / sqrt(g^2 + (mu rms(g))^2)`: sign(g) with kinks of relative width mu = `smoothing`.

    Like sign(g) it does not change under `g -> c g`, c > 0. Zero gradient gives zero.
    """
    scaled, _ = _scaled(gradient)
    square = scaled * scaled
    return ratio(scaled, square + smoothing**2 * jnp.mean(square))


@jax.jit
def ratio(value: jax.Array, square: jax.Array) -> jax.Array:
    """`value / sqrt(square)`, with value and derivative 0 where the square is 0."""
    zero = square == 0
    return jnp.where(zero, 0.0, value / jnp.sqrt(jnp.where(zero, 1.0, square)))


def nearby_direction(params: Params) -> Params:
    """A direction near that of `params`, at which biases that are still zero do not hide.

    In NumPy, since a normal draw in JAX takes most of a second to compile.
    """
    leaves, structure = jax.tree.flatten(params)
    flat = np.concatenate([np.ravel(leaf) for leaf in leaves])
    flat = flat / np.max(np.abs(flat))
    noise = np.random.default_rng(0).normal(size=flat.size)
    flat = flat / np.linalg.norm(flat) + 0.1 * noise / np.sqrt(flat.size)
    parts = np.split(flat / np.linalg.norm(flat), np.cumsum([leaf.size for leaf in leaves])[:-1])
    shaped = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    return structure.unflatten([jnp.asarray(leaf) for leaf in shaped])
