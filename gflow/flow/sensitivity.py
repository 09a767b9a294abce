"""How the limit moves with the attack's radius and with the data.

A strict limit solves the KKT system `F(theta, lambda; s) = 0` with an invertible Jacobian K: by the
implicit function theorem `d(theta, lambda)/ds = -K^-1 dF/ds`, and the direction moves by
`(I - u u^T) dtheta / |theta|`. The active margins are taken to stay the active ones, as they do in
a neighbourhood where every multiplier is positive.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._typing import Params
from gflow.flow.limit import Limit
from gflow.kkt import residual
from gflow.polish import Polished
from gflow.problem import Problem


def radius_sensitivity(limit: Limit) -> Params:
    """`d(direction)/d(radius)` at a strict limit, with the structure of the direction.

    Args:
        limit: from `find_limit`, with verdict "strict maximum".

    Raises:
        ValueError: the limit is not strict, lies at kinks, or its perturbation has no radius.
    """
    problem, polished = _strict(limit, "radius_sensitivity")
    if not hasattr(problem.perturbation, "radius") or problem.starts is not None:
        raise ValueError(
            "`radius_sensitivity(limit)`: the perturbation has no radius to differentiate by; "
            "clean data have none, and random starts of PGD are drawn for one radius."
        )

    def with_radius(radius: Array) -> Problem:
        return eqx.tree_at(lambda p: p.perturbation.radius, problem, radius)

    radius = jnp.asarray(problem.perturbation.radius)
    change = _force(with_radius, radius, jnp.ones_like(radius), polished, limit)
    return _moved(limit, polished, np.asarray(change))


def data_sensitivity(limit: Limit, change: Float[np.ndarray, "n d"]) -> Params:
    """`d(direction)/ds` at a strict limit where the inputs are `x + s change`.

    Args:
        limit: from `find_limit`, with verdict "strict maximum".
        change: what moves the inputs. Shape (n, d).

    Raises:
        ValueError: the limit is not strict, lies at kinks, or `change` has another shape than the
            inputs.
    """
    problem, polished = _strict(limit, "data_sensitivity")
    inputs = jnp.asarray(problem.dataset.x)
    if np.shape(change) != inputs.shape:
        raise ValueError(
            f"`data_sensitivity(limit, change)`: the inputs have the shape {inputs.shape}, "
            f"`change` has {np.shape(change)}."
        )

    def with_inputs(x: Array) -> Problem:
        return eqx.tree_at(lambda p: p.dataset.x, problem, x)

    force = _force(with_inputs, inputs, jnp.asarray(change, inputs.dtype), polished, limit)
    return _moved(limit, polished, np.asarray(force))


def _strict(limit: Limit, name: str) -> tuple[Problem, Polished]:
    if limit.kinks is not None:
        raise ValueError(
            f"`{name}(limit)`: the problem has kinks (plain ReLU, or signs without smoothing), at "
            "which sensitivities are not implemented. Smooth them to see how the limit moves."
        )
    if limit.verdict != "strict maximum" or limit.polished is None:
        raise ValueError(
            f"`{name}(limit)`: the verdict is {limit.verdict!r}. Only a strict maximum moves in "
            "one way; within a family, or at a saddle, where the flow ends may jump."
        )
    return limit.trajectory.require_problem(), limit.polished


def _force(
    problem_at: Callable[[Array], Problem],
    point: Array,
    tangent: Array,
    polished: Polished,
    limit: Limit,
) -> Array:
    """`dF/ds`: of the stationarity, then of the active margins. Shape (P + active,)."""
    layout = Layout.of(limit.direction)
    active = np.flatnonzero(polished.active)

    def equations(value: Array) -> Any:
        stationarity, margins = residual(
            problem_at(value), layout, polished.theta, polished.multipliers
        )
        return jnp.concatenate([stationarity, margins[active]])

    return jax.jvp(equations, (point,), (tangent,))[1]


def _moved(limit: Limit, polished: Polished, force: np.ndarray) -> Params:
    """The direction's derivative."""
    at, active = polished.system, polished.active
    count, size = np.count_nonzero(active), len(polished.theta)
    matrix = np.block(
        [[at.hessian, -at.gradients[active].T], [at.slopes[active], np.zeros((count, count))]]
    )
    theta = -np.linalg.solve(matrix, force)[:size]
    unit = polished.direction
    across = (theta - unit * (unit @ theta)) / np.linalg.norm(polished.theta)
    return Layout.of(limit.direction).unflatten(across)
