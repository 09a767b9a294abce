"""The Rosenbrock step of the flow, with physical time by quadrature along the step.

Time does not act back on the path, and where the flow is stiff `log(1 + t)` runs like kappa: as a
part of the linearised system it would overflow the stages. So a step moves `(u, log rho)` alone,
and `t` follows from `integral exp(E) d tau`, `E = log dt/dtau`, with E a polynomial through its
values at the ends and the middle of the step and its slopes at the ends.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array

from gflow.flow.field import Field, log_time_rate, path_slope
from gflow.flow.krylov import stiff_part, woodbury
from gflow.flow.rosenbrock import Rosenbrock, interpolate
from gflow.flow.systems import LinearSolver, Operator

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# Where E rises by more than this, the part of the step before adds nothing to the integral.
_RISE = 42.0
# Errors of the linear systems, relative to the step, in units of the tolerance of a step; at most.
_LINEAR, _LARGEST = 1e-2, 1e-4


class ClockedRosenbrock(Rosenbrock):
    """A Rosenbrock method for the state `(u, log rho, log(1 + t))` of `gflow.flow.field`."""

    def __init__(
        self,
        method: str = "Rodas5P",
        *,
        linear_solver: LinearSolver = None,
        tolerance: float = 1e-8,
    ):
        """`tolerance` is that of the run, of which the linear systems may add little."""
        super().__init__(method, linear_solver=linear_solver)
        self.tolerance = np.minimum(_LINEAR * np.asarray(tolerance, float), _LARGEST)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Array], Any, diffrax.RESULTS]:
        del terms, solver_state, made_jump
        field, h = args, t1 - t0

        def slope(path: Array) -> Array:
            state = jnp.append(path, y0[-1])
            return path_slope(field, state, field.ascent(state))

        # Where the direction hardly moves, log rho still does: in units in which both move alike,
        # an iterative solution is as right in the one as in the other.
        units = _units(slope(y0[:-1]))

        def precondition(most: int) -> Callable[[Array], Operator]:
            part = stiff_part(field, y0[:-1], most)

            def with_shift(shift: Array) -> Operator:
                solve = woodbury(part, shift)
                return lambda r: solve(r * units) / units

            return with_shift

        moved = self.advance(
            lambda _, path: slope(path * units) / units,
            jnp.asarray(t0),
            h,
            y0[:-1] / units,
            precondition,
        )
        inner, inner_error, inner_k = (part * units for part in moved)
        middle = interpolate(0.5, y0[:-1], inner, inner_k)
        # Beyond a cap time stands still.
        log_time, log_error = lax.cond(
            field.log_kappa(jnp.append(inner, 0.0)) <= field.log_cap,
            lambda: _log_time(field, h, y0, inner, middle),
            lambda: (y0[-1], jnp.zeros_like(y0[-1])),
        )
        y1, error = jnp.append(inner, log_time), jnp.append(inner_error, log_error)
        k = jnp.pad(inner_k, ((0, 0), (0, 1)))
        return y1, error, {"y0": y0, "y1": y1, "k": k}, None, diffrax.RESULTS.successful


def _units(slope: Array) -> Array:
    """Units of `(u, log rho)`: 1, and the ratio of the speeds of log rho and of u, at least 1."""
    speed = jnp.sqrt(slope[:-1] @ slope[:-1])
    ratio = jnp.abs(slope[-1]) / jnp.maximum(speed, 1e-12 * jnp.abs(slope[-1]))
    return jnp.ones_like(slope).at[-1].set(jnp.where(ratio > 1, ratio, 1.0))


def _log_time(field: Field, h: Array, y0: Array, end: Array, middle: Array) -> tuple[Array, Array]:
    """`log(1 + t)` at the end of the step, and how much the middle of the step changed it."""
    start_value, start_slope = _rate_and_slope(field, y0)
    end_value, end_slope = _rate_and_slope(field, jnp.append(end, y0[-1]))
    middle_state = jnp.append(middle, y0[-1])
    middle_value = log_time_rate(field, middle_state, field.ascent(middle_state))
    chord = end_value - start_value
    start, finish = h * start_slope - chord, chord - h * end_slope
    straight = 0.5 * (start_value + end_value) + 0.125 * (start + finish)
    bump = 16.0 * (middle_value - straight)
    window = jnp.clip(_RISE / jnp.maximum(h * end_slope, _RISE), 0.0, 1.0)
    # Counted back from the end, where all the time may be.
    back = 0.5 * window * (1.0 - _NODES)
    theta = 1.0 - back
    cubic = -back * chord + theta * back * (start * back + finish * theta)
    quartic = cubic + bump * (theta * back) ** 2
    log_scale = jnp.log(0.5 * h * window) + jnp.log(_WEIGHTS) + end_value

    def total(exponent: Array) -> Array:
        return jnp.logaddexp(y0[-1], logsumexp(log_scale + exponent))

    running = jnp.isfinite(end_value)
    log_time = jnp.where(running, total(quartic), y0[-1])
    # Rounding in E, as large as E is, is no error of the step.
    rounding = 64 * jnp.finfo(log_time.dtype).eps * jnp.abs(end_value)
    error = jnp.maximum(jnp.abs(log_time - total(cubic)) - rounding, 0.0)
    return log_time, jnp.where(running, error, 0.0)


def _rate_and_slope(field: Field, state: Array) -> tuple[Array, Array]:
    """`E = log dt/dtau` and `dE/dtau` along the flow."""
    direction = jnp.append(path_slope(field, state, field.ascent(state)), 0.0)
    return jax.jvp(lambda y: log_time_rate(field, y, field.ascent(y)), (state,), (direction,))
