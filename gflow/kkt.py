"""The KKT system of the adversarial max-margin problem, and its derivatives.

At the norm where the smallest margin is 1, a KKT point theta with multipliers lambda satisfies

    theta = sum_i lambda_i grad q_i(theta),    q_i(theta) = 1 where lambda_i > 0,

with `grad q_i` that of the gradient mode. With frozen perturbations these are not the derivatives
of the margins themselves, and the system's Jacobian is not symmetric: it is kept in three parts.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow.problem import Problem

# Directions along which the system is differentiated side by side.
_BATCH = 256


class System(NamedTuple):
    """The KKT system at a point, P parameters and m margins, on the host.

    Attributes:
        residual: `theta - sum_i lambda_i grad q_i`.
        margins: q, flattened.
        hessian: `I - sum_i lambda_i d(grad q_i)/d theta`, the Lagrangian's Hessian; not symmetric
            where frozen perturbations depend on theta.
        slopes: dq_i/dtheta, through the perturbations.
        gradients: grad q_i, in the gradient mode.
    """

    residual: Float[np.ndarray, " P"]
    margins: Float[np.ndarray, " m"]
    hessian: Float[np.ndarray, "P P"]
    slopes: Float[np.ndarray, "m P"]
    gradients: Float[np.ndarray, "m P"]


Vector = Float[Array, " _"] | Float[np.ndarray, " _"]


def residual(
    problem: Problem, layout: Layout, theta: Vector, multipliers: Vector
) -> tuple[Float[Array, " P"], Float[Array, " m"]]:
    """`theta - sum_i lambda_i grad q_i(theta)` and the margins, flattened.

    Shapes: theta (P,), multipliers (m,).
    """
    theta, multipliers = jnp.asarray(theta), jnp.asarray(multipliers)
    margins, pull_back = problem.linearize(layout.unflatten(theta))
    (pull,) = pull_back(multipliers.reshape(margins.shape))
    return theta - layout.flatten(pull), margins.ravel()


def system(problem: Problem, layout: Layout, theta: np.ndarray, multipliers: np.ndarray) -> System:
    """The system and its derivatives. Memory: 8 (P^2 + 2 m P) bytes, and 256 tangents.

    Shapes: theta (P,), multipliers (m,).
    """
    return System(*map(np.asarray, _system(problem, layout, theta, multipliers)))


@eqx.filter_jit
def _system(problem: Problem, layout: Layout, theta: Any, multipliers: Any) -> tuple[Array, ...]:

    def stationarity(point: Array) -> Array:
        return residual(problem, layout, point, multipliers)[0]

    value, product = jax.linearize(stationarity, theta)
    columns = lax.map(product, jnp.eye(theta.size), batch_size=min(_BATCH, theta.size))
    margins = problem.margins(layout.unflatten(theta))
    return value, margins.ravel(), columns.T, *slopes_and_gradients(problem, layout, theta)


def slopes_and_gradients(
    problem: Problem, layout: Layout, theta: Float[Array, " P"]
) -> tuple[Float[Array, "m P"], Float[Array, "m P"]]:
    """`dq_i/dtheta` through the perturbations, and `grad q_i` in the gradient mode."""
    margins, pull_back = problem.linearize(layout.unflatten(theta))
    _, pull_through = jax.vjp(lambda point: problem.margins(layout.unflatten(point)), theta)
    units = jnp.eye(margins.size).reshape(-1, *margins.shape)
    gradients = lax.map(lambda unit: layout.flatten(pull_back(unit)[0]), units, batch_size=_BATCH)
    slopes = lax.map(lambda unit: pull_through(unit)[0], units, batch_size=_BATCH)
    return slopes, gradients
