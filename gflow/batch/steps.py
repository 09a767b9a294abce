"""One step of the flow of one run, cheap enough to be made for many runs side by side.

Side by side, an exact Jacobian costs more a run than alone. So there are two kinds of steps that
take none:

- *explicit*, Tsit5, while the loss is not small: there the flow is not stiff;
- *implicit*, the W-method ROS34PW2, which keeps its order whatever matrix stands for the Jacobian.
  Here that is the part of it that makes the flow stiff, of low rank in the space of the examples,

      J ~ -kappa G^T C S - D,   C = -dp/d(kappa q),   D = L sum_i p_i q_i (I - u u^T),

  with the rows `((I - u u^T) grad q_i, L q_i)` of G, and in S with the margins' own slopes in place
  of `grad q_i`. Its systems are no larger than the number of margins.

Source of the methods: Tsitouras 2011, "Runge-Kutta pairs of order 5(4) satisfying only the first
column simplifying assumption", Comput. Math. Appl. 62; Rang & Angermann 2005, see
`gflow.stiff.tableaus`.
"""

from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._layout import Layout
from gflow._numerics import scaled_margins
from gflow.batch.lanes import Goals, Lane, Point
from gflow.kkt.system import gradient_rows
from gflow.problem import Problem
from gflow.stiff.operators import Operator
from gflow.stiff.tableaus import ROS34PW2

# The coefficients of Tsit5.
_TABLEAU = diffrax.Tsit5.tableau
_B, _E = np.asarray(_TABLEAU.b_sol), np.asarray(_TABLEAU.b_error)
_A = np.zeros((len(_B), len(_B)))
for _i, _row in enumerate(_TABLEAU.a_lower, 1):
    _A[_i, : len(_row)] = _row


def _log_kappa(problem: Problem, path: Array, log_cap: Array) -> Array:
    return jnp.minimum(problem.degree * path[-1], log_cap)


def _unit(path: Array) -> Array:
    return path[:-1] / jnp.linalg.norm(path[:-1])


def point_of(problem: Problem, layout: Layout, path: Array, log_cap: Array) -> Point:
    """Margins, slope and stationarity at a path."""
    unit = _unit(path)
    ascent = problem.ascent(layout.unflatten(unit), _log_kappa(problem, path, log_cap))
    vector = layout.flatten(ascent.vector)
    along, length = unit @ vector, jnp.linalg.norm(vector)
    pull = vector - along * unit
    sine = jnp.linalg.norm(pull) / jnp.where(length > 0, length, 1.0)
    sine = jnp.where((along <= 0) | (length == 0), 1.0, jnp.minimum(sine, 1.0))
    growth = problem.degree * jnp.vdot(ascent.weights, ascent.margins)
    return Point(ascent.margins, jnp.append(pull, growth), sine)


def explicit(
    problem: Problem, layout: Layout, goals: Goals, lane: Lane
) -> tuple[Array, Array, int]:
    """The end of an explicit step, its error in units of what is allowed, and its order."""
    stages = jnp.zeros((len(_B), lane.path.size)).at[0].set(lane.point.slope)
    for i in range(1, len(_B)):
        at = lane.path + lane.step * (jnp.asarray(_A[i]) @ stages)
        stages = stages.at[i].set(point_of(problem, layout, at, lane.log_cap).slope)
    end = lane.path + lane.step * (jnp.asarray(_B) @ stages)
    size = _size(goals, lane, lane.step * (jnp.asarray(_E) @ stages))
    return end, jnp.where(jnp.isnan(size), jnp.inf, size), 5


def implicit(
    problem: Problem, layout: Layout, goals: Goals, lane: Lane
) -> tuple[Array, Array, int]:
    """The same of an implicit step, whose error is bounded in the logits too."""
    a, C, m, e = map(jnp.asarray, (ROS34PW2.a, ROS34PW2.C, ROS34PW2.m, ROS34PW2.e))
    h, rows = lane.step, _rows(problem, layout, lane)
    solve = _inverse(lane, rows, 1 / (h * ROS34PW2.gamma))
    stages = jnp.zeros((len(m), lane.path.size))
    for i in range(len(m)):
        at = lane.path + a[i] @ stages
        slope = point_of(problem, layout, at, lane.log_cap).slope if i else lane.point.slope
        stages = stages.at[i].set(solve(slope + (C[i] / h) @ stages))
    error = e @ stages
    logit = rows.kappa * jnp.sqrt(jnp.vdot(rows.weights, (rows.slopes @ error) ** 2))
    size = jnp.maximum(_size(goals, lane, error), logit / goals.logit_tolerance)
    return lane.path + m @ stages, jnp.where(jnp.isnan(size), jnp.inf, size), 3


def _size(goals: Goals, lane: Lane, error: Array) -> Array:
    """The size of an error of the path, in units of the tolerance. One along u counts as none."""
    unit = _unit(lane.path)
    across = error[:-1] - (unit @ error[:-1]) * unit
    return jnp.maximum(jnp.linalg.norm(across), jnp.abs(error[-1])) / goals.tolerance


class _Rows(NamedTuple):
    """The stiff part of the Jacobian, `-kappa G^T C S`, and its margins' weights.

    Attributes:
        gradients: G. Shape (m, P + 1).
        slopes: S, without the factor kappa. Shape (m, P + 1).
    """

    gradients: Array
    slopes: Array
    weights: Array
    coupling: Array
    kappa: Array


def _rows(problem: Problem, layout: Layout, lane: Lane) -> _Rows:
    unit, margins = _unit(lane.path), lane.point.margins
    params, examples = layout.unflatten(unit), jnp.arange(len(margins))
    log_kappa = _log_kappa(problem, lane.path, lane.log_cap)
    logits = scaled_margins(jnp.exp(log_kappa), margins)

    def tangent(rows: Array) -> Array:
        return rows - (rows @ unit)[:, None] * unit

    def weights(moved: Array) -> Array:
        at = logits + moved.reshape(margins.shape)
        return jax.nn.softmax(problem.loss.log_weights(at), axis=None).ravel()

    gradients = tangent(gradient_rows(problem, params, examples))
    slopes = gradients
    if not problem.gradients_are_slopes:
        slopes = tangent(gradient_rows(problem, params, examples, "total"))
    none = jnp.zeros(margins.size)
    growth = problem.degree * margins.reshape(-1, 1)
    free = jnp.where(problem.degree * lane.path[-1] < lane.log_cap, growth, 0.0)
    return _Rows(
        jnp.concatenate([gradients, growth], axis=1),
        jnp.concatenate([slopes, free], axis=1),
        weights(none),
        -jax.jacfwd(weights)(none),
        jnp.exp(log_kappa),
    )


def _inverse(lane: Lane, rows: _Rows, shift: Array) -> Operator:
    """`r -> (shift - J)^-1 r` for the stiff part, by the Sherman-Morrison-Woodbury formula."""
    unit = _unit(lane.path)
    damped = shift + jnp.maximum(lane.point.slope[-1], 0.0)
    scale = jnp.append(jnp.full_like(unit, 1 / damped), 1 / shift)
    coupling = rows.kappa * rows.coupling
    # The rows of G and S are tangent to the sphere, so there D is a multiple of the identity.
    kernel = coupling @ ((rows.slopes * scale) @ rows.gradients.T)
    small = jnp.linalg.solve(jnp.eye(len(kernel)) + kernel, coupling)

    def solve(r: Array) -> Array:
        radial = (unit @ r[:-1]) * unit
        start = jnp.append((r[:-1] - radial) / damped + radial / shift, r[-1] / shift)
        return start - scale * ((small @ (rows.slopes @ start)) @ rows.gradients)

    return solve
