"""How the limit moves with the attack's radius and with the data.

A strict limit solves the KKT system `F(theta, lambda; s) = 0` with an invertible Jacobian K: by the
implicit function theorem `d(theta, lambda)/ds = -K^-1 dF/ds`, and the direction moves by
`(I - u u^T) dtheta / |theta|`. The active margins are taken to stay the active ones, as they do in
a neighbourhood where every multiplier is positive. At kinks the system has the angles of the
switches that stand there for further unknowns, and their values, which stay 0, for equations.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._least_norm import least_norm
from gflow._numerics import check_unmasked
from gflow._signatures import named
from gflow._typing import Params
from gflow.kkt.kinked_equations import traced_equations
from gflow.kkt.kinks import Kinks
from gflow.kkt.system import residual
from gflow.limit.polish import Polished
from gflow.limit.result import Limit
from gflow.limit.verdict import STRICT
from gflow.problem import Problem


@named()
def radius_sensitivity(limit: Limit) -> Params:
    """`d(direction)/d(radius)` at a strict limit, with the structure of the direction.

    Args:
        limit: from `find_limit`, with verdict "strict maximum" or "stable rest point".

    Raises:
        TypeError: it is no `Limit`.
        ValueError: the limit is not strict, or its perturbation has no radius.
    """
    _check_strict(limit, "radius_sensitivity")
    problem = limit.problem
    leaves = jax.tree.leaves(problem.perturbation)
    moves = any(leaf is getattr(problem.perturbation, "radius", None) for leaf in leaves)
    if not moves or problem.starts is not None:
        raise ValueError(
            "`radius_sensitivity(limit)`: the perturbation has no radius to differentiate by; "
            "clean data have none, and random starts of PGD are drawn for one radius."
        )

    def with_radius(radius: Array) -> Problem:
        return eqx.tree_at(lambda p: p.perturbation.radius, problem, radius)

    radius = jnp.asarray(problem.perturbation.radius)
    return _moved(limit, with_radius, radius, jnp.ones_like(radius))


@named()
def data_sensitivity(limit: Limit, change: Float[np.ndarray, "n d"]) -> Params:
    """`d(direction)/ds` at a strict limit where the inputs are `x + s change`.

    Args:
        limit: from `find_limit`, with verdict "strict maximum" or "stable rest point".
        change: what moves the inputs. Shape (n, d).

    Raises:
        TypeError: it is no `Limit`.
        ValueError: the limit is not strict, or `change` has another shape than the inputs.
    """
    _check_strict(limit, "data_sensitivity")
    problem = limit.problem
    inputs = jnp.asarray(problem.dataset.x)
    check_unmasked(change, "`data_sensitivity(limit, change)`")
    if np.shape(change) != inputs.shape:
        raise ValueError(
            f"`data_sensitivity(limit, change)`: the inputs have the shape {inputs.shape}, "
            f"`change` has {np.shape(change)}."
        )

    def with_inputs(x: Array) -> Problem:
        return eqx.tree_at(lambda p: p.dataset.x, problem, x)

    return _moved(limit, with_inputs, inputs, jnp.asarray(change, inputs.dtype))


def _check_strict(limit: Limit, name: str) -> None:
    if not isinstance(limit, Limit):
        raise TypeError(f"`{name}({limit!r})`: expected a `Limit`, as `find_limit` returns.")
    if limit.verdict not in STRICT:
        raise ValueError(
            f"`{name}(limit)`: the verdict is {limit.verdict!r}. Only an isolated point that "
            "nothing leaves moves in one way; within a family, or at a saddle, where the flow ends "
            "may jump."
        )


class _Linear(NamedTuple):
    """The KKT system, linearised at a limit.

    Attributes:
        jacobian: K, by theta first.
        equations: F of a problem, at the limit.
        theta: the limit at unit margin.
    """

    jacobian: np.ndarray
    equations: Callable[[Problem], Array]
    theta: np.ndarray


def _moved(
    limit: Limit, problem_at: Callable[[Array], Problem], point: Array, tangent: Array
) -> Params:
    """The direction's derivative where `problem_at(point)` moves along `tangent`."""
    layout = Layout.of(limit.direction)
    if limit.kinks is not None:
        linear = _at_kinks(layout, limit.kinks)
    else:
        assert limit.polished is not None
        linear = _smooth(layout, limit.polished)

    def equations(value: Array) -> Array:
        return linear.equations(problem_at(value))

    force = np.asarray(jax.jvp(equations, (point,), (tangent,))[1])
    # One weight that is 0 for all examples stands on as many kinks: they are one equation.
    theta = -least_norm(linear.jacobian, force)[: layout.size]
    unit = linear.theta / np.linalg.norm(linear.theta)
    across = (theta - unit * (unit @ theta)) / np.linalg.norm(linear.theta)
    return layout.unflatten(across)


def _smooth(layout: Layout, polished: Polished) -> _Linear:
    """Unknown are theta and the multipliers of the active margins."""
    at, active = polished.system, np.flatnonzero(polished.active)
    corner = np.zeros((len(active), len(active)))
    jacobian = np.block([[at.hessian, -at.gradients[active].T], [at.slopes[active], corner]])

    def equations(problem: Problem) -> Array:
        stationarity, margins = residual(problem, layout, polished.theta, polished.multipliers)
        return jnp.concatenate([stationarity, margins[active]])

    return _Linear(jacobian, equations, polished.theta)


def _at_kinks(layout: Layout, kinks: Kinks) -> _Linear:
    """Unknown are also the angles of the switches at kinks."""
    active, at_kink = np.flatnonzero(kinks.active), np.flatnonzero(kinks.at_kink)

    def equations(problem: Problem) -> Array:
        stationarity, margins, decided = traced_equations(problem, layout, kinks.point, 0.0)
        return jnp.concatenate([stationarity, margins[active], decided.values.ravel()[at_kink]])

    return _Linear(kinks.jacobian, equations, kinks.theta)
