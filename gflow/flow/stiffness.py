"""When the flow has become stiff, so that a linearly implicit solver is the cheaper one.

An explicit step is bounded by `h |lambda| < 3.3` (Tsit5), lambda the largest eigenvalue of the
field's Jacobian, which grows like kappa: kappa times as many steps for the same way. A Rosenbrock
step costs more, but its number per factor e of kappa does not grow: up to `DENSE_AT_MOST`
parameters a Jacobian, P + 2 derivatives of the field side by side; beyond, the iterations of
`gflow.Krylov`, whose number hardly depends on P. After `_FIRST_LOOK` steps, less than which do not
repay the compilation of another program, the switch is made once two things hold:

1. the explicit steps per factor e of kappa cost well more than `_STIFF_STEPS` Rosenbrock steps;
2. the steps are not far from as long as stability allows, `h |lambda| > _LIMIT`: kinks may also
   make steps short, and an implicit method is no remedy for those.
"""

from typing import Any, NamedTuple

import diffrax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array

from gflow._programs import compiled
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.field import Field, path_slope
from gflow.flow.segment import Cursor
from gflow.stiff.chebyshev import RungeKuttaChebyshev
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.stiff.systems import DENSE_AT_MOST

_LIMIT = 0.2
# Steps that Rodas5P needs for a factor e of kappa: 3 to 6 in benchmarks/far_flow.py.
_STIFF_STEPS = 5
# Evaluations of the field: of Tsit5; of a Rosenbrock step beside its Jacobian; of a derivative in
# the Jacobian (1.2 to 1.9 on 357 digits, 520 parameters).
_EXPLICIT, _STAGES, _DERIVATIVE = 6.0, 12.0, 1.5
# A whole matrix-free step, its preconditioner and iterations together: 100 to 270 gradients on 357
# digits, 4160 parameters (benchmarks/large.py).
_MATRIX_FREE = 250.0
# How many times cheaper it must be, since a run may be about to end.
_GAIN = 2.0
_POWER_STEPS = 12
_FIRST_LOOK, _STEPS_BETWEEN = 600, 100


def stiff_solver(tolerance: float) -> ClockedRosenbrock:
    """The solver that takes over where the flow is stiff."""
    return ClockedRosenbrock(tolerance=tolerance)


def step_cost(solver: diffrax.AbstractSolver, num_params: int) -> float:
    """Of a step of any solver, roughly, in evaluations of the field."""
    if isinstance(solver, RungeKuttaChebyshev):
        return solver.num_stages
    if isinstance(solver, (Rosenbrock, diffrax.AbstractImplicitSolver)):
        return implicit_cost(num_params)
    return _EXPLICIT


def implicit_cost(num_params: int) -> float:
    """Of a Rosenbrock step, in evaluations of the field."""
    if num_params <= DENSE_AT_MOST:
        return _STAGES + _DERIVATIVE * num_params
    return _MATRIX_FREE


class Watch(NamedTuple):
    """What the explicit steps cost is counted from here on.

    Attributes:
        num_steps: steps tried up to the last look.
        log_kappa: there; None before the first one.
    """

    num_steps: int = 0
    log_kappa: float | None = None


def looked(watch: Watch, field: Field, cursor: Cursor, num_steps: int) -> tuple[bool, Watch]:
    """Whether to switch now, `num_steps` into an explicit run; and the watch from here on.

    It looks again only after so many steps, however short the segments are.
    """
    made = num_steps - watch.num_steps
    if watch.log_kappa is not None and made < _STEPS_BETWEEN:
        return False, watch
    log_kappa = float(field.log_kappa(cursor.state))
    now = Watch(num_steps, log_kappa)
    if watch.log_kappa is None or cursor.num_accepted < _FIRST_LOOK or log_kappa < 0:
        return False, now
    cost = implicit_cost(field.layout.size)
    implicit = _STIFF_STEPS * cost * max(log_kappa - watch.log_kappa, 0.0)
    if _EXPLICIT * made <= _GAIN * implicit:
        return False, now
    return bool(cursor.control.step * spectral_radius(field, cursor.state) > _LIMIT), now


@compiled
def spectral_radius(field: Field, state: Any) -> Array:
    """`|lambda|_max` of the Jacobian of `(u, log rho)`, from below, by power iteration.

    Products with the Jacobian are differences of the field, so that the program holds it once.
    """
    size = state.size - 1
    # Short against the 1/kappa over which the weights p change.
    length = 1e-4 * jnp.exp(-jnp.maximum(field.capped(state), 0.0))
    start = np.random.default_rng(0).normal(size=size)

    def slope(at: Array) -> Array:
        return path_slope(field, at, field.ascent(at))

    def around(vector: Array) -> Array:
        shift = length * jnp.append(vector, 0.0)
        ends = lax.map(slope, state + jnp.stack([shift, -shift]))
        return (ends[0] - ends[1]) / (2 * length)

    def body(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        product = around(carry[0])
        growth = jnp.sqrt(product @ product)
        return product / jnp.where(growth > 0, growth, 1.0), growth

    vector = jnp.asarray(start / np.linalg.norm(start))
    return lax.fori_loop(0, _POWER_STEPS, body, (vector, jnp.zeros(())))[1]
