"""How the limit moves with the attack's radius and with the data.

A strict limit solves the KKT system `F(theta, lambda; s) = 0` with an invertible Jacobian K: by the
implicit function theorem `d(theta, lambda)/ds = -K^-1 dF/ds`, and the direction moves by
`(I - u u^T) dtheta / |theta|`. The set of active margins is held fixed; where every multiplier is
positive it does stay the same near the limit. At kinks the angles of the switches that stand there
are further unknowns, and that their values stay 0 are further equations.
"""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._checks import check_unmasked
from gflow._interrupts import interruptible
from gflow._layout import Layout
from gflow._minimum_norm import minimum_norm
from gflow._signatures import named
from gflow._typing import Params
from gflow.kkt.kinked_system import kinked_system_within, traced_residuals
from gflow.kkt.point import KKTPoint
from gflow.kkt.subspace import EXACT
from gflow.kkt.switches import named_for
from gflow.kkt.system import stationarity_and_margins
from gflow.kkt.within import system_within
from gflow.limit.result import Limit
from gflow.limit.verdict import STRICT
from gflow.problem import Problem


@named()
@interruptible
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
@interruptible
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


def _moved(
    limit: Limit, problem_at: Callable[[Array], Problem], point: Array, tangent: Array
) -> Params:
    """The direction's derivative where `problem_at(point)` moves along `tangent`."""
    layout = Layout.of(limit.direction)
    found = limit.polished if limit.kinks is None else limit.kinks
    assert found is not None
    equations = _equations_at(layout, found)
    force = np.asarray(jax.jvp(lambda s: equations(problem_at(s)), (point,), (tangent,))[1])
    theta = -_solved(problem_at(point), layout, found, force)
    across = (theta - found.direction * (found.direction @ theta)) / np.linalg.norm(found.theta)
    return layout.unflatten(across)


def _solved(problem: Problem, layout: Layout, found: KKTPoint, right: np.ndarray) -> np.ndarray:
    """The part of theta in the solution of the linearised equations. Shapes: (r,) -> (P,)."""
    at = found.linearized
    across, others = np.split(right, [layout.size])
    if at.basis is not None and not found.has_switches:
        given = problem, layout, found.theta, found.multipliers
        at = system_within(*given, found.active, force=across)
    elif at.basis is not None:  # within a subspace of this right-hand side
        named, index = named_for(problem, found.coefficients), np.flatnonzero(found.at_kink)
        given = named, layout, found.variables, 0.0, index
        at = kinked_system_within(*given, drop=EXACT, margins=found.active, force=across)
    matrix = at.bordered(found.active)
    # A weight that is 0 gives a kink to every example, and all of them the same equation: hence the
    # solution of minimum norm.
    solution = minimum_norm(matrix, np.append(at.coordinates(across), others))
    return at.vectors(solution[: len(at.hessian)])


def _equations_at(layout: Layout, found: KKTPoint) -> Callable[[Problem], Array]:
    """F of a problem at the limit's own unknowns: stationarity, the active margins and, at kinks,
    the values of the switches there. Shape (r,).
    """
    active, at_kink = np.flatnonzero(found.active), np.flatnonzero(found.at_kink)

    def equations(problem: Problem) -> Array:
        if not found.has_switches:
            unknown = found.theta, found.multipliers
            stationarity, margins = stationarity_and_margins(problem, layout, *unknown)
            return jnp.concatenate([stationarity, margins[active]])
        named = named_for(problem, found.coefficients)
        stationarity, margins, decided = traced_residuals(named, layout, found.variables, 0.0)
        return jnp.concatenate([stationarity, margins[active], decided.values.ravel()[at_kink]])

    return equations
