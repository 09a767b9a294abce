"""The unit l_p ball, p in {1, 2, inf}: the nearest point in it, and uniform points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from optax import projections

from gflow._numerics import lp_norm, norm


def onto_unit_ball(point: jax.Array, order: float) -> jax.Array:
    """The nearest point of the unit l_p ball, in the Euclidean norm.

    Its derivative is finite everywhere, at 0 and on the sphere too. It is right for points of any
    size whose norm is a floating-point number.
    """
    if order == 1:
        return _onto_unit_l1_ball(point)
    if order == 2:
        return point / jnp.maximum(norm(point), 1.0)
    return projections.projection_linf_ball(point)


@jax.custom_jvp
def _onto_unit_l1_ball(point: jax.Array) -> jax.Array:
    # A point of the simplex is next to |x| as it is next to |x| shifted by a constant, and what is
    # more than 1 below the largest entry becomes 0. So shifted, no 1 is lost beside a large number.
    size = jnp.abs(point)
    shifted = jnp.maximum(size - jnp.max(size, initial=0.0), -2.0)
    # optax divides floats by integers there, which strict dtype promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        onto_sphere = jnp.sign(point) * projections.projection_simplex(shifted)
    return jnp.where(lp_norm(point, 1) > 1, onto_sphere, point)


@_onto_unit_l1_ball.defjvp
def _onto_unit_l1_ball_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """From outside, the tangent's part within the face that holds the nearest point."""
    (point,), (tangent,) = primals, tangents
    projected = _onto_unit_l1_ball(point)
    signs = jnp.sign(projected)
    active = jnp.abs(signs)
    mean = jnp.sum(signs * tangent) / jnp.maximum(jnp.sum(active), 1.0)
    return projected, jnp.where(lp_norm(point, 1) > 1, active * tangent - mean * signs, tangent)


def uniform_in_unit_ball(
    generator: np.random.Generator, num_points: int, dimension: int, order: float
) -> np.ndarray:
    """Points uniform in the unit l_p ball, p in {1, 2, inf}. Shapes: (num_points, dimension).

    p = 2: the first d coordinates of a uniform point on the sphere in d + 2 dimensions; p = 1: of a
    uniform point on the l_1 sphere in d + 1 dimensions (Barthe, Guedon, Mendelson & Naor 2005).
    """
    if math.isinf(order):
        return generator.uniform(-1.0, 1.0, (num_points, dimension))
    if order == 2:
        normal = generator.normal(size=(num_points, dimension + 2))
        return normal[:, :-2] / np.linalg.norm(normal, axis=1, keepdims=True)
    laplace = generator.laplace(size=(num_points, dimension + 1))
    return laplace[:, :-1] / np.abs(laplace).sum(axis=1, keepdims=True)
