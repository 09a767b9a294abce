"""The KKT system of the adversarial max-margin problem, and its derivatives.

At the norm where the smallest margin is 1, a KKT point theta with multipliers lambda satisfies

    theta = sum_i lambda_i grad q_i(theta),    q_i(theta) = 1 where lambda_i > 0,

with `grad q_i` that of the gradient mode. With frozen perturbations these are not the derivatives
of the margins themselves, and the system's Jacobian is not symmetric: it is kept in three parts.
"""

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled
from gflow._typing import Params
from gflow.problem import GradientMode, Problem

# Directions along which the system is differentiated side by side are such that they take so many
# bytes: with 64 times as much, at 4160 parameters, it takes 1.5 to 1.8 times as long.
_TANGENTS = 2**18
# Weights below this part of the largest belong to dead neurons.
_DEAD = 1e-60
# Beyond so many parameters, examples that do not push are left out of the second derivatives.
_SMALL = 1000


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


residual_at = compiled(residual)
"""`residual`, compiled."""


def without_dead(theta: np.ndarray) -> np.ndarray:
    """The point with 0 for weights next to nothing, as of a neuron that has died out: the squares
    by which its second derivatives are divided would underflow. Shapes (P,).
    """
    return np.where(np.abs(theta) < _DEAD * np.abs(theta).max(), 0.0, theta)


def system(problem: Problem, layout: Layout, theta: np.ndarray, multipliers: np.ndarray) -> System:
    """The system and its derivatives, without dead neurons. Memory: 8 (P^2 + 2 m P) bytes, and some
    tangents.

    Shapes: theta (P,), multipliers (m,).
    """
    theta = without_dead(theta)
    if theta.size <= _SMALL:
        found = _system(problem, layout, theta, multipliers)
    else:
        fewer, kept = only_pushing(problem, multipliers != 0)
        found = _lagrangian(fewer, multipliers[kept], layout, theta)
        found = *found, *_margins(problem, layout, theta)
    value, hessian, margins, slopes, gradients = map(np.asarray, found)
    return System(value, margins, hessian, slopes, gradients)


def only_pushing(problem: Problem, pushing: np.ndarray) -> tuple[Problem, np.ndarray]:
    """The problem without the examples none of whose margins push; and which margins are left.

    It is filled up to a power of 2 examples, so that few programs are compiled.

    Args:
        pushing: which margins push. Shape (m,), m the number of examples times k - 1.
    """
    pushing = pushing.reshape(len(problem.dataset.x), -1)
    order = np.argsort(~pushing.any(axis=1), kind="stable")
    num_pushing = int(pushing.any(axis=1).sum())
    kept = np.sort(order[: 2 ** math.ceil(math.log2(max(num_pushing, 1)))])
    starts = problem.starts if problem.starts is None else np.asarray(problem.starts)[kept]
    fewer = eqx.tree_at(
        lambda p: (p.dataset.x, p.dataset.y, p.starts),
        problem,
        (problem.dataset.x[kept], problem.dataset.y[kept], starts),
        is_leaf=lambda leaf: leaf is None,
    )
    return fewer, np.arange(pushing.size).reshape(pushing.shape)[kept].ravel()


@compiled
def _system(problem: Problem, layout: Layout, theta: Any, multipliers: Any) -> tuple[Array, ...]:
    return *_lagrangian(problem, multipliers, layout, theta), *_margins(problem, layout, theta)


@compiled
def _lagrangian(
    problem: Problem, multipliers: Any, layout: Layout, theta: Any
) -> tuple[Array, Array]:
    """`theta - sum_i lambda_i grad q_i` and its derivative."""

    def stationarity(point: Array) -> Array:
        return residual(problem, layout, point, multipliers)[0]

    value, product = jax.linearize(stationarity, theta)
    batch = int(np.clip(_TANGENTS // (8 * theta.size), 1, theta.size))
    return value, lax.map(product, jnp.eye(theta.size), batch_size=batch).T


@compiled
def _margins(problem: Problem, layout: Layout, theta: Any) -> tuple[Array, Array, Array]:
    margins = problem.margins(layout.unflatten(theta))
    return margins.ravel(), *slopes_and_gradients(problem, layout, theta)


@compiled
def slopes_and_gradients(
    problem: Problem, layout: Layout, theta: Vector
) -> tuple[Float[Array, "m P"], Float[Array, "m P"]]:
    """`dq_i/dtheta` through the perturbations, and `grad q_i` in the gradient mode."""
    params, examples = layout.unflatten(theta), jnp.arange(len(problem.dataset.x))
    gradients = gradient_rows(problem, params, examples)
    if problem.gradients_are_slopes:
        return gradients, gradients
    return gradient_rows(problem, params, examples, "total"), gradients


def gradient_rows(
    problem: Problem, params: Params, examples: Array, mode: GradientMode | None = None
) -> Float[Array, "m P"]:
    """`grad q_i` of the margins of the named examples, flattened, a row each."""
    tree = problem.margin_gradients(params, examples, gradient=mode)
    of_class = 1 if problem.dataset.binary else problem.dataset.num_classes - 1
    leaves = [leaf.reshape(len(examples) * of_class, -1) for leaf in jax.tree.leaves(tree)]
    return jnp.concatenate(leaves, axis=1)
