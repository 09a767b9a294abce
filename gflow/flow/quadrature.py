"""Physical time along a step of the flow, by quadrature.

The path of the flow does not depend on time. Where the flow is stiff, `log(1 + t)` grows in a step
by an amount of the order of kappa, and as a part of the linearised system it would overflow the
stages. So t follows from `integral exp(E) d tau`, `E = log dt/dtau`, where E is approximated by the
polynomial through its values at the ends and the middle of the step and its slopes at the ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from gflow.flow.field import Field, path_slope
from gflow.problem import Ascent

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# Only the last part of the step, over which E rises by this, is integrated: before, exp(E) is below
# rounding, relative to its value at the end.
_RISE = 42.0
# E counts as nearly constant in a step if its slopes at the ends change it by less than this.
_FLAT = 1.0


def log_time_after(
    h: Array,
    before: Array,
    values: Array,
    middle_value: Array,
    slopes: Array,
    smooth_slopes: Array | None,
) -> tuple[Array, Array]:
    """`log(1 + t)` at the end of the step, and its error: by how much the value of E in the middle
    of the step changed it.

    If E changes little over the step, `smooth_slopes` are used in place of `slopes`.

    Args:
        before: `log(1 + t)` at its start.
        values, slopes: E and dE/dtau at the two ends. Shapes (2,).
        smooth_slopes: `h dE/dtau` along the dense output, likewise.
    """
    start_value, end_value = values
    slopes = h * slopes
    if smooth_slopes is not None:
        slopes = jnp.where(jnp.max(jnp.abs(smooth_slopes)) < _FLAT, smooth_slopes, slopes)
    start_slope, end_slope = slopes
    # E is the cubic through the values and slopes at the ends, plus `bump theta^2 (1 - theta)^2`,
    # which vanishes there with its slopes and gives E its value in the middle.
    chord = end_value - start_value
    start, finish = start_slope - chord, chord - end_slope
    middle_of_cubic = 0.5 * (start_value + end_value) + 0.125 * (start + finish)
    bump = 16.0 * (middle_value - middle_of_cubic)
    window = jnp.clip(_RISE / jnp.maximum(end_slope, _RISE), 0.0, 1.0)
    # Positions are counted back from the end of the step, near which all of the time may pass.
    back = 0.5 * window * (1.0 - _NODES)
    theta = 1.0 - back
    cubic = -back * chord + theta * back * (start * back + finish * theta)
    quartic = cubic + bump * (theta * back) ** 2
    log_scale = jnp.log(0.5 * h * window) + jnp.log(_WEIGHTS) + end_value
    # Both integrals in one operation, so that the program holds the sum once.
    exponents = log_scale + jnp.stack([quartic, cubic])
    total, coarse = jnp.logaddexp(before, logsumexp(exponents, axis=1))
    running = jnp.isfinite(end_value)
    log_time = jnp.where(running, total, before)
    # The rounding of E, which is relative to the size of E, is not counted as an error of the step.
    rounding = 64 * jnp.finfo(log_time.dtype).eps * jnp.abs(end_value)
    error = jnp.maximum(jnp.abs(log_time - coarse) - rounding, 0.0)
    return log_time, jnp.where(running, error, 0.0)


class Ends(NamedTuple):
    """Both ends of a step.

    Attributes:
        field: the flow's.
        states, margins: at the start and at the end. Shapes (2, state), (2, n ...).
    """

    field: Field
    states: Array
    margins: Array

    def values(self) -> Array:
        """`E = log dt/dtau` there. Shape (2,)."""
        return jax.vmap(lambda state, q: rate(self.field, state, q))(self.states, self.margins)

    def slopes(self, ascents: tuple[Ascent, Ascent], turn: Array | None) -> Array:
        """`dE/dtau` there along the flow. Shape (2,).

        Args:
            ascents: at both ends.
            turn: by which the flow changes the margins at the start, if it is known.
        """
        field = self.field
        along = [path_slope(field, *at) for at in zip(self.states, ascents, strict=True)]

        def turned(state: Array, slope: Array) -> Array:
            return jax.jvp(field.margins, (state,), (jnp.append(slope, 0.0),))[1]

        turns = [turned(self.states[0], along[0]) if turn is None else turn]
        turns.append(turned(self.states[1], along[1]))
        return self._along(jnp.stack(along)[:, -1], jnp.stack(turns))

    def smooth_slopes(self, growths: Array, rows: Array) -> Array:
        """`h dE/dtau` there, along the dense output of the step. Shape (2,).

        The slope by the field at an end includes a fast motion, since the point is off the slow
        motion by rounding or by the error of a step: it returns at a rate of the order of kappa,
        and a change of the margins changes E by kappa times as much. That gives an error of
        `kappa^2 h` times the distance. It is negligible where E itself changes like kappa; where
        the logits are constant (a radius equal to the margin) it would exceed the true slope.

        Args:
            growths: of log rho along the dense output, at both ends. Shape (2,).
            rows: of the dense output of the flattened margins.
        """
        across = (self.margins[1] - self.margins[0]).ravel()
        turns = across + jnp.stack([rows[0], -jnp.sum(rows, axis=0)])
        return self._along(growths, turns.reshape(self.margins.shape))

    def _along(self, growths: Array, turns: Array) -> Array:
        """The change of E where log rho and the margins change by these. Shape (2,)."""

        def change(state: Array, margins: Array, growth: Array, turn: Array) -> Array:
            along = jnp.zeros_like(state[:-2]), jnp.stack([growth, jnp.zeros_like(growth)])
            along = jnp.concatenate(along), turn
            return jax.jvp(lambda at, q: rate(self.field, at, q), (state, margins), along)[1]

        return jax.vmap(change)(self.states, self.margins, growths, turns)


def rate(field: Field, state: Array, margins: Array) -> Array:
    """`E = log dt/dtau` for these margins."""
    return field.log_time_rate(state, field.log_weight(state, margins))
