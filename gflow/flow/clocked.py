"""The Rosenbrock step of the flow, with physical time by quadrature along the step.

The path does not depend on time. Where the flow is stiff, `log(1 + t)` grows in a step by an amount
of the order of kappa, and as a part of the linearised system it would overflow the stages. So a
step moves `(u, log rho)` alone, in the frame of `gflow.flow.frame`, and t follows from
`integral exp(E) d tau`, `E = log dt/dtau`, where E is approximated by the polynomial through its
values at the ends and the middle of the step and its slopes at the ends.

The margins are unknowns of their own (`gflow.stiff.constrained`), and the weights p of a stage are
those of these margins. At large kappa the weights depend so steeply on u that the u of a stage is
too inaccurate to compute them from.
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array

from gflow.flow.field import Field, StepError, path_slope, unit_direction
from gflow.flow.frame import Frame, FramedInterpolation, Polar, frame_at
from gflow.flow.krylov import stiff_part, woodbury
from gflow.problem import Ascent
from gflow.stiff.constrained import Coupled, Moved
from gflow.stiff.rosenbrock import Rosenbrock, interpolate
from gflow.stiff.systems import DENSE_AT_MOST, Krylov, LinearSolver, Operator, Preconditioner

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
# Only the last part of the step, over which E rises by this, is integrated: before, exp(E) is below
# rounding, relative to its value at the end.
_RISE = 42.0
# E counts as nearly constant in a step if its slopes at the ends change it by less than this.
_FLAT = 1.0
# Tolerance of the linear systems, relative to the step, as a part of the tolerance of a step; and
# the largest.
_LINEAR, _LARGEST = 1e-2, 1e-4


class ClockedRosenbrock(Rosenbrock):
    """A Rosenbrock method for the state `(u, log rho, log(1 + t))` of `gflow.flow.field`."""

    interpolation_cls: ClassVar[Callable] = FramedInterpolation

    def __init__(
        self,
        method: str = "Rodas5P",
        *,
        linear_solver: LinearSolver = None,
        tolerance: float = 1e-8,
    ):
        """`tolerance` is that of the run; the linear systems are solved to a part of it."""
        super().__init__(method, linear_solver=linear_solver)
        self.tolerance = np.minimum(_LINEAR * np.asarray(tolerance, float), _LARGEST)

    @property
    def follows_margins(self) -> bool:
        """Whether the margins are unknowns of their own, which takes products with the Jacobian."""
        linear = self.linear_solver
        return not (isinstance(linear, Krylov) and linear.most_directions == 0)

    def _factorises(self, size: int) -> bool:
        """Whether the systems of so many unknowns are factorised: no preconditioner is built."""
        if self.linear_solver is None:
            return size <= DENSE_AT_MOST
        return isinstance(self.linear_solver, lx.LU)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, StepError, dict[str, Array], Any, diffrax.RESULTS]:
        del terms, solver_state, made_jump
        y1, errors, dense, _ = self.measured_step(args, t1 - t0, y0)
        return y1, errors, dense, None, diffrax.RESULTS.successful

    def measured_step(
        self, field: Field, h: Array, y0: Any
    ) -> tuple[Array, StepError, dict[str, Array], tuple[Ascent, Ascent]]:
        """A step of length h, with the ascents at its start and at its end, which it needs."""
        y0 = jnp.append(jnp.append(unit_direction(y0), y0[-2]), y0[-1])
        framed = self._factorises(y0.size - 1)
        scaled, coupled, start = _linearized(field, y0, self.follows_margins, framed)
        moved = self.moved(
            coupled,
            h,
            scaled.preconditioner(y0[:-1]) if not self._factorises(coupled.y.size) else None,
            scaled.gap_size if self.follows_margins else None,
        )
        return self._finished(scaled, h, y0, start, moved)

    def _finished(
        self, scaled: "_Scaled", h: Array, y0: Array, start: Ascent, moved: Moved
    ) -> tuple[Array, StepError, dict[str, Array], tuple[Ascent, Ascent]]:
        """The end of the step, its errors, its dense output and its ascents, with time added and
        with the error in the logits.
        """
        field, units, margins = scaled.field, scaled.units, start.margins
        size, shape, end = units.size, margins.shape, moved.more
        path, error, k = (part[..., :size] * units for part in moved[:3])
        frame = scaled.frame
        y1 = jnp.append(frame.polar(path), y0[-1])
        ends = _Ends(field, jnp.stack([y0, y1]), jnp.stack([margins, end.margins]))
        middle = jnp.append(frame.polar(interpolate(0.5, y0[:-1], path, k)), y0[-1])
        turns = moved.turn.reshape(shape) if self.follows_margins else None
        slopes = ends.slopes((start, end), turns)
        if self.follows_margins:
            last, change, rows = (part[..., size:] for part in moved[:3])
            between = interpolate(0.5, margins.ravel(), last, rows).reshape(shape)
            smooth = ends.smooth_slopes(frame.growths(path, k), rows)
            gap = moved.gap.reshape(shape)
            logit = jnp.maximum(
                field.logit_size(y0, margins, change.reshape(shape)),
                field.logit_size(y1, end.margins, gap),
            )
        else:
            between, smooth = field.margins(middle), None
            logit = field.logit_size(y0, margins, field.change_of_margins(y0, error[:-1]))
        # Beyond a cap time stands still.
        log_time, log_error = lax.cond(
            field.log_kappa(y1) <= field.log_cap,
            lambda: _log_time(
                h, y0[-1], ends.values(), _rate(field, middle, between), slopes, smooth
            ),
            lambda: (y0[-1], jnp.zeros_like(y0[-1])),
        )
        error = _seen(frame.error(error, path), h * _rate_rounding(field, y0, margins))
        dense = {"y0": y0, "y1": jnp.append(path, log_time), "k": jnp.pad(k, ((0, 0), (0, 1)))}
        dense["framed"] = jnp.asarray(isinstance(frame, Frame))
        y1 = y1.at[-1].set(log_time)
        errors = StepError(jnp.append(error, log_error), logit)
        return y1, errors, dense, (start, end)


class _Scaled(NamedTuple):
    """The field along a path in the frame, in units of a step, coupled through the margins.

    Attributes:
        field: the flow's.
        frame: of the step.
        log_time: at the start of the step; it does not act back.
        units: of the path. Shape (P + 1,).
        shape: of the margins.
        follows_margins: see `ClockedRosenbrock.follows_margins`.
    """

    field: Field
    frame: Frame | Polar
    log_time: Array
    units: Array
    shape: tuple[int, ...]
    follows_margins: bool

    def state(self, path: Array) -> Array:
        """The state of a path in these units."""
        return jnp.append(self.frame.polar(path * self.units), self.log_time)

    def evaluate(
        self, clock: Any, path: Array, margins: Array, own: Array
    ) -> tuple[Array, Array, Ascent]:
        """The slope with the weights of these margins, or of its own, the margins, and the ascent;
        see `gflow.stiff.constrained.Evaluation`.
        """
        del clock

        def seen(known: Array) -> Array:
            return jnp.where(own, known, margins.reshape(self.shape)) if margins.size else known

        state = self.state(path)
        ascent = self.field.ascent_and_pull(state, seen)[0]
        known = ascent.margins.ravel() if self.follows_margins else path[:0]
        slope = self.frame.slope(self.field, path * self.units, ascent)
        return slope / self.units, known, ascent

    def gap_size(self, path: Array, margins: Array, gap: Array) -> Array:
        """The size, in the logits, of an error `gap` of the margins."""
        gap, margins = gap.reshape(self.shape), margins.reshape(self.shape)
        return self.field.logit_size(self.state(path), margins, gap)

    def preconditioner(self, start: Array) -> Preconditioner:
        """The preconditioner of the systems of a step from `start`, a path not in these units."""

        def of_margins(most: int) -> Callable[[Array], Operator]:
            part = stiff_part(self.field, start, most)

            def with_shift(shift: Array) -> Operator:
                solve = woodbury(part, shift)
                return lambda r: solve(r * self.units) / self.units

            return with_shift

        return of_margins


def _linearized(
    field: Field, y0: Array, follows_margins: bool, framed: bool
) -> tuple["_Scaled", Coupled, Ascent]:
    """The field at the start of a step, in units of it, with its derivatives; and the ascent there.

    The margins and their gradients are evaluated once for all of it. The derivative with respect to
    the margins that the weights see is a weighted mean of the same gradients.

    Args:
        framed: whether the step is made in a frame, and not in polar coordinates.
    """
    path = y0[:-1]
    coordinates = Polar(path[:-1], path[-1])
    polar = (Frame(*coordinates, jnp.zeros(())) if framed else coordinates).polar

    def evaluated(at: Array) -> tuple[tuple[Array, Array], tuple[Ascent, Callable, Frame | Polar]]:
        ascent, pull_back = field.ascent_and_pull(jnp.append(polar(at), y0[-1]))
        frame = lax.stop_gradient(frame_at(field, path, ascent)) if framed else coordinates
        slope = frame.slope(field, at, ascent)
        return (slope, ascent.margins.ravel()), (ascent, pull_back, frame)

    (slope, margins), tangent, (start, pull_back, frame) = jax.linearize(
        evaluated, path, has_aux=True
    )
    # The direction may hardly move while log rho does. In units in which both move equally fast, an
    # iterative solution has the same relative accuracy in both.
    units = _units(slope, path[:-1])
    scaled = _Scaled(field, frame, y0[-1], units, start.margins.shape, follows_margins)

    def scaled_tangent(x: Array) -> tuple[Array, Array]:
        change, turn = tangent(x * units)
        return change / units, turn if follows_margins else path[:0]

    def along(gap: Array) -> Array:
        if not follows_margins:
            return jnp.zeros_like(path)
        gap = gap.reshape(start.margins.shape)
        weights = jax.jvp(lambda q: field.weights(y0, q), (start.margins,), (gap,))[1]
        return frame.along(field.layout.flatten(pull_back(weights)[0]), 0.0) / units

    known = margins if follows_margins else path[:0]
    at, none = path / units, jnp.zeros_like(path)
    place = y0[-1], at, known, slope / units
    coupled = Coupled(scaled.evaluate, *place, none, scaled_tangent, along, more=start)
    return scaled, coupled, start


def _units(slope: Array, unit: Array) -> Array:
    """Units of the path: 1, and the ratio of the speeds of log rho and of u, at least 1."""
    across = slope[:-1] - (unit @ slope[:-1]) * unit
    speed = jnp.sqrt(across @ across)
    ratio = jnp.abs(slope[-1]) / jnp.maximum(speed, 1e-12 * jnp.abs(slope[-1]))
    return jnp.append(jnp.ones_like(slope[:-1]), jnp.where(ratio > 1, ratio, 1.0))


def _rate_rounding(field: Field, y0: Array, margins: Array) -> Array:
    """An estimate of the rounding error of `L sum_i p_i q_i`, the rate of log rho.

    Its terms are as large as the largest margin; and a margin under attack is a difference of
    numbers as large as the clean one.
    """
    clean = jnp.max(jnp.abs(field.clean_margins(y0)))
    return 8 * jnp.finfo(margins.dtype).eps * jnp.maximum(jnp.max(jnp.abs(margins)), clean)


def _seen(error: Array, rounding: Array) -> Array:
    """The error of `(u, log rho)`, with that of log rho reduced where it is mostly rounding.

    If the margins cancel in the rate of log rho (a radius equal to the margin), a small error of
    log rho is nothing but rounding.
    """
    # It is reduced continuously: with an error of 0 the next step would grow too much.
    share = jnp.abs(error[-1]) / jnp.maximum(jnp.abs(error[-1]) + rounding, 1e-300)
    seen = jnp.where(jnp.isfinite(error[-1]), share**3 * error[-1], error[-1])
    return error.at[-1].set(seen)


def _log_time(
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


class _Ends(NamedTuple):
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
        return jax.vmap(lambda state, q: _rate(self.field, state, q))(self.states, self.margins)

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
            return jax.jvp(lambda at, q: _rate(self.field, at, q), (state, margins), along)[1]

        return jax.vmap(change)(self.states, self.margins, growths, turns)


def _rate(field: Field, state: Array, margins: Array) -> Array:
    """`E = log dt/dtau` for these margins."""
    return field.log_time_rate(state, field.log_weight(state, margins))
