"""Step-size control: a PI controller for diffrax, which also counts steps and lands on targets.

The flow's steps shrink all the way, like 1/kappa, once stability limits them. diffrax's own
`PIDController` never shortens a step after an accepted one, so it shrinks by rejections alone: 14 %
of all steps on six problems (linear, deep linear, ReLU^2 and smoothed ReLU; clean, FGM and smoothed
FGSM; Tsit5 at 1e-6 and 1e-8), against 2 % for this one, with 3 % fewer steps and a fifth of the
error at the end (geometric means). Memory of the last error keeps it from oscillating where
stability limits the steps.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from gflow.flow.field import Field, State, error_norm, error_sizes
from gflow.flow.until import LANDED, Until, known_log_loss

_MOST_LANDINGS = 60


class Gains(NamedTuple):
    """A PI controller: by what to multiply a step.

    Attributes:
        this, last: exponents, times the order of the error estimate, of this step's error and of
            the last accepted one's.
        safety: factor beside them.
        shrink, grow: bounds.
        reach, recover: no later step is longer than `reach` times a rejected one, a bound which
            the n-th accepted step after it raises by the factor `recover^n`.
    """

    this: Any
    last: Any
    safety: Any = 0.9
    shrink: Any = 0.2
    grow: Any = 10.0
    reach: Any = np.inf
    recover: Any = 1.0


# Of the exponents (1, 0), (0.7, 0.1), (0.6, 0.2), (0.7, 0.3) and (0.7, 0.4) these need about the
# fewest steps at equal error.
EXPLICIT = Gains(this=0.6, last=0.2)
# Of a Rosenbrock method on the linear problems of benchmarks/far_flow.py: 5 to 15 % fewer steps
# than with the former. Longer growth, or no memory, is paid back in rejections.
STIFF = Gains(this=0.8, last=0.3, grow=5.0)
# Of a stabilised explicit method, whose error jumps at the end of its interval: a little below it
# all is well, and it should be met rarely. On MNIST 28 % of the steps were rejected without.
STABILIZED = Gains(this=0.6, last=0.2, shrink=0.6, grow=2.0, reach=0.8, recover=1.01)
# Errors below this fraction of the tolerance are mostly rounding, and count as this large.
_LEAST_ERROR = 1e-5


# A step this much shorter than the longest that changes nothing has underflowed.
_SHORTEST = 1e-12


class Bracket(NamedTuple):
    """Where the first target lies, once a step has passed it.

    Attributes:
        before: distance to it at the start of the step, positive.
        width: length of a step from there that passes it; infinite while none is known.
        after: distance at its end, not positive.
        side: which end moved last, -1 for the lower and +1 for the upper.
        tries: steps made towards it so far.
    """

    before: Float[Array, ""]
    width: Float[Array, ""]
    after: Float[Array, ""]
    side: Int[Array, ""]
    tries: Int[Array, ""]


class ControlState(NamedTuple):
    """What the controller remembers.

    Attributes:
        error: of the last accepted step, in units of the tolerance.
        start: where the clock of diffrax stands, see `FlowController`.
        step: the next step.
        longest: the longest accepted step so far.
        count: steps tried.
        ceiling, rise: the longest step that may come next, by `Gains.reach`, and the factor by
            which it rose last.
        bracket: of the target.
    """

    error: Float[Array, ""]
    start: Float[Array, ""]
    step: Float[Array, ""]
    longest: Float[Array, ""]
    count: Int[Array, ""]
    ceiling: Float[Array, ""]
    rise: Float[Array, ""]
    bracket: Bracket


class FlowController(diffrax.AbstractAdaptiveStepSizeController):
    """Error control with a step budget that ends a solve on the first target it meets.

    With `atol_logit` the error is also measured in the logits `kappa q_i`, which the loss sees. An
    error of the direction is one of kappa times that in the logits: with ordinary tolerances alone
    a stiff solver either stalls or leaves the weights to chance.

    The budget lets a compiled segment stop after a number of steps decided at run time; the
    remembered step lets the next segment go on with the very step that this one would have tried.
    A step that passes a target is rejected and shortened by the secant method (Illinois) until it
    ends on the target. So the last point is a step of the solver, as accurate as any other, where
    an event of diffrax would give a point of the dense output, and it costs one evaluation of the
    margins in the program where the event costs three.

    The field does not depend on the clock, so diffrax's clock begins anew at every step: where a
    step starts it stands at the length of the accepted step before. A clock that ran on would
    bound the steps from below by its rounding: after a long rest near a saddle, at a clock of 1e8,
    a step of 1e-8 could not be made any more, and no target be met more closely. The total is kept
    by `gflow.flow.segment.Cursor`.

    Attributes:
        rtol, atol, norm: what implicit solvers take as the tolerances of their equations: rtol is
            0, atol the smaller of the next two.
        rtol_direction: largest `|du|_2` of an accepted step.
        tolerance: largest `|d log rho|` and `|d log(T+t)|`.
        budget: number of steps after which it reports `max_steps_reached`.
        until: the targets; it reports `event_occurred` on arrival.
        atol_logit: largest `StepError.logit` of an accepted step; None for solvers without one.
        gains: of the PI controller.
        step: the first step. It is here, and `dt0` of diffrax None, since diffrax checks a `dt0`
            through a host callback, and programs with callbacks are never cached on disk.
    """

    rtol: Any
    atol: Any
    norm: Any
    rtol_direction: Any
    tolerance: Any
    budget: Any
    until: Until
    atol_logit: Any = None
    gains: Gains = EXPLICIT
    step: Any = 1.0

    def wrap(self, direction: Any) -> "FlowController":
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        step = jnp.asarray(self.step)
        one, zero = jnp.ones_like(step), jnp.zeros((), jnp.int64)
        bracket = Bracket(one, jnp.inf * one, -one, zero, zero)
        state = ControlState(one, jnp.asarray(t0), step, 0 * one, zero, jnp.inf * one, one, bracket)
        return t0 + step, state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        last_error, _, _, longest, count, ceiling, rise, bracket = controller_state
        length = t1 - t0
        error = jnp.maximum(self._error(y_error), _LEAST_ERROR)
        keep = error < 1
        factor = _factor(self.gains, error, last_error, error_order, keep)
        last_error = jnp.where(keep, error, last_error)
        rise = jnp.where(keep, self.gains.recover * rise, 1.0)
        ceiling = jnp.where(keep, rise * ceiling, self.gains.reach * length)
        targets = distances(self.until, args, y1_candidate)
        distance = jnp.min(targets)
        # The last one is none that was asked for.
        accuracy = jnp.where(targets[-1] <= distance, LANDED, self.until.accuracy)
        exact = _indistinguishable(y0, y1_candidate, length, bracket)
        arrived = keep & _close(distance, accuracy, exact, bracket)
        passed = keep & (distance <= 0) & ~arrived
        bracket = _updated(bracket, keep, passed, distance, length)
        keep = keep & ~passed
        start = jnp.where(keep, length, t0)
        free = jnp.where(passed, jnp.inf, jnp.minimum(factor * length, ceiling))
        step = jnp.minimum(free, _aim(bracket, exact))
        next_t1 = start + step
        longest = jnp.maximum(longest, jnp.where(keep, length, 0.0))
        state = ControlState(last_error, start, step, longest, count + 1, ceiling, rise, bracket)
        moving = (next_t1 > start) & ~_stuck(_moved(y0, y1_candidate), length, state)
        verdict = self._verdict(state, moving, arrived)
        return keep, start, next_t1, False, state, verdict

    def _error(self, error: Any) -> Array:
        """The error in units of what is allowed; a NaN counts as infinite."""
        logit = 0.0
        if self.atol_logit is not None:
            error, logit = error.state, error.logit / self.atol_logit
        across, along = error_sizes(error)
        size = jnp.maximum(across / self.rtol_direction, along / self.tolerance)
        size = jnp.maximum(size, logit)
        return jnp.where(jnp.isnan(size), jnp.inf, size)

    def _verdict(self, state: ControlState, moving: Any, arrived: Any) -> Any:
        results = diffrax.RESULTS
        result = results.where(moving, results.successful, results.dt_min_reached)
        spent = (state.count >= self.budget) & moving
        result = results.where(spent, results.max_steps_reached, result)
        return results.where(arrived, results.event_occurred, result)


def make_controller(
    tolerance: Any,
    budget: Any,
    until: Until,
    atol_logit: Any = None,
    rtol_direction: Any = None,
    gains: Gains = EXPLICIT,
) -> FlowController:
    """Control of `error_norm(error) <= tolerance` per step, for at most `budget` steps.

    With `rtol_direction` that is the bound on the direction's part of the error. The first step has
    yet to be set, with `starting`.
    """
    across = tolerance if rtol_direction is None else rtol_direction
    return FlowController(
        rtol=0.0,
        atol=np.minimum(tolerance, across),
        norm=error_norm,
        rtol_direction=across,
        tolerance=tolerance,
        budget=budget,
        until=until,
        atol_logit=atol_logit,
        gains=gains,
    )


def starting(controller: FlowController, step: Any) -> FlowController:
    """The controller with its first step set."""
    return eqx.tree_at(lambda c: c.step, controller, step)


def rewound(state: ControlState) -> ControlState:
    """The state with its step count at 0, for another segment."""
    return state._replace(count=jnp.zeros_like(state.count))


def distances(until: Until, field: Field, state: State) -> Float[Array, " targets"]:
    """Distance to each target. The margins are evaluated only where a target needs them."""
    log_kappa = field.log_kappa(state)

    def evaluated() -> tuple[Array, Array, Array]:
        measures = field.measures(state)
        return known_log_loss(measures), measures.stationarity, measures.margin

    def skipped() -> tuple[Array, Array, Array]:
        nothing = jnp.zeros_like(log_kappa)
        return nothing + jnp.inf, nothing + 1.0, nothing

    log_loss, stationarity, margin = lax.cond(until.needs_margins, evaluated, skipped)
    time = field.log1p_time(state)
    return until.remaining(log_kappa, time, log_loss, stationarity, margin, field.ceiling)


def _factor(gains: Gains, error: Array, last_error: Array, order: Any, keep: Array) -> Array:
    """By what to multiply the step: of a PI controller."""
    factor = gains.safety * error ** (-gains.this / order) * last_error ** (gains.last / order)
    # No error estimate at all, as where Newton's method fails, shortens the step as far as allowed.
    factor = jnp.where(jnp.isfinite(error), factor, 0.0)
    return jnp.clip(factor, gains.shrink, jnp.where(keep, gains.grow, gains.safety))


def _indistinguishable(start: State, end: State, length: Any, bracket: Bracket) -> Array:
    """Whether the bracket is so narrow that the states in it are one state to float64."""
    # Of the step that was tried; by what is left of the bracket, so much less or more.
    rounding = 16 * jnp.finfo(jnp.float64).eps
    moved = _moved(start, end) * bracket.width
    return jnp.isfinite(bracket.width) & (moved <= rounding * length)


def _moved(start: State, end: State) -> Array:
    """How far a step went, relative to where it began."""
    return jnp.max(jnp.abs(end - start) / (1.0 + jnp.abs(start)))


def _stuck(moved: Array, length: Any, state: ControlState) -> Array:
    """Whether steps have become so short that they change nothing, without a target ahead.

    A flow at rest is not stuck: its steps are long.
    """
    nothing = moved <= 4 * jnp.finfo(jnp.float64).eps
    short = length < _SHORTEST * state.longest
    return nothing & short & ~jnp.isfinite(state.bracket.width)


def _close(distance: Any, accuracy: Any, exact: Any, bracket: Bracket) -> Array:
    """Whether the end of the step is on the target, or past it as closely as can be."""
    tired = jnp.isfinite(bracket.width) & (bracket.tries >= _MOST_LANDINGS)
    return (jnp.abs(distance) <= accuracy) | ((distance <= 0) & (exact | tired))


def _updated(bracket: Bracket, keep: Any, passed: Any, distance: Any, length: Any) -> Bracket:
    """The bracket after a step that passed the target, or stayed before it (Illinois method)."""
    known = jnp.isfinite(bracket.width)
    below = keep & ~passed
    halve_after = below & known & (bracket.side < 0)
    halve_before = passed & (bracket.side > 0)
    before = jnp.where(below, distance, jnp.where(halve_before, 0.5, 1.0) * bracket.before)
    after = jnp.where(passed, distance, jnp.where(halve_after, 0.5, 1.0) * bracket.after)
    side = jnp.where(passed, 1, jnp.where(below & known, -1, bracket.side))
    width = jnp.where(passed, length, jnp.where(below, bracket.width - length, bracket.width))
    return Bracket(before, width, after, side, bracket.tries + jnp.where(known, 1, 0))


def _aim(bracket: Bracket, exact: Any) -> Array:
    """The step at whose end the secant through the bracket meets the target; infinite without one.

    Where the bracket is as narrow as can be, its far end.
    """
    known = jnp.isfinite(bracket.width)
    share = jnp.clip(bracket.before / (bracket.before - bracket.after), 0.01, 0.99)
    # A log-loss that is infinite at either end.
    share = jnp.where(jnp.isfinite(bracket.before - bracket.after), share, 0.5)
    return jnp.where(known, jnp.where(exact, 1.0, share) * bracket.width, jnp.inf)
