"""The Rosenbrock step of the flow, with physical time by quadrature along the step.

A step moves `(u, log rho)` alone, in the frame of `gflow.flow.frame`, and time follows along it
(`gflow.flow.quadrature`).

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
from jaxtyping import Array

from gflow.flow.field import Field, StepError, unit_direction
from gflow.flow.frame import Frame, FramedInterpolation, Polar, frame_at
from gflow.flow.krylov import stiff_part, woodbury
from gflow.flow.quadrature import Ends, log_time_after, rate
from gflow.problem import Ascent
from gflow.stiff.constrained import Coupled, Moved
from gflow.stiff.rosenbrock import Rosenbrock, interpolate
from gflow.stiff.systems import DENSE_AT_MOST, Krylov, LinearSolver, Operator, Preconditioner

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
        ends = Ends(field, jnp.stack([y0, y1]), jnp.stack([margins, end.margins]))
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
            lambda: log_time_after(
                h, y0[-1], ends.values(), rate(field, middle, between), slopes, smooth
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
