"""Step-size control: a PI controller for diffrax, which also counts steps and lands on targets.

Once stability limits the steps of an explicit solver, they have to shrink like 1/kappa all the way.
diffrax's own `PIDController` never shortens a step after an accepted one, so that steps shrink only
by rejections. On six problems (linear, deep linear, ReLU^2 and smoothed ReLU; clean, FGM and
smoothed FGSM; Tsit5 at 1e-6 and 1e-8) it rejected 14 % of all steps and this controller 2 %, with
3 % fewer steps and a fifth of the error at the end (geometric means). Since the factor also depends
on the error of the step before, steps do not oscillate where stability limits them.
"""

from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow.flow.field import Field, State, error_norm, error_sizes
from gflow.flow.landing import Bracket, distances, landing, measures_for, moved, no_bracket
from gflow.flow.until import Until
from gflow.measures import PointMeasures
from gflow.stiff.traits import ORDINARY, Gains

# Errors below this fraction of the tolerance are mostly rounding, and count as this large.
_LEAST_ERROR = 1e-5
# A step this much shorter than the longest that changes nothing has underflowed.
_SHORTEST = 1e-12


class ControlState(NamedTuple):
    """The state of the controller between two steps.

    Attributes:
        error: of the last accepted step, in units of the tolerance.
        start: where the clock of diffrax stands, see `FlowController`.
        step: the next step.
        longest: the longest accepted step so far.
        count: steps tried.
        ceiling, rise: the longest step that may come next (`Gains.reach`), and the factor by which
            it was raised last.
        bracket: where the target lies, see `gflow.flow.landing`.
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

    With `atol_logit` the error is also measured in the logits `kappa q_i`, on which the loss
    depends. An error of the direction is one of kappa times its size in the logits. So with a
    tolerance for the direction alone a stiff solver either needs a tolerance like 1/kappa, and
    stalls, or has wrong weights p.

    The budget lets a compiled segment stop after a number of steps decided at run time. The next
    step is a part of the state, so that the next segment begins with the step that this one would
    have tried. A step that passes a target is rejected and shortened by the secant method
    (Illinois) until it ends on the target. So the last point is a step of the solver, as accurate
    as any other, whereas an event of diffrax gives a point of the dense output; and it needs one
    evaluation of the margins in the program where an event needs three.

    The field does not depend on the clock, so diffrax's clock begins anew at every step: where a
    step starts it stands at the length of the accepted step before. On a clock that ran on, no step
    could be shorter than its rounding: after a long rest near a saddle, at a clock of 1e8, a step
    of 1e-8 would be impossible, and with it a closer landing on a target. The sum of all steps is
    kept by `gflow.flow.segment.Cursor`.

    Attributes:
        rtol, atol, norm: what implicit solvers take as the tolerances of their equations: rtol is
            0, atol the smaller of the next two.
        rtol_direction: largest `|du|_2` of an accepted step.
        tolerance: largest `|d log rho|` and `|d log(T+t)|`.
        budget: number of steps after which it reports `max_steps_reached`.
        until: the targets; it reports `event_occurred` on arrival.
        atol_logit: largest `StepError.logit` of an accepted step; None for solvers without one.
        gains: of the PI controller.
        step: the first step. It is given here, with None for diffrax's `dt0`: that is checked by a
            host callback, and programs with callbacks are never cached on disk.
    """

    rtol: Any
    atol: Any
    norm: Any
    rtol_direction: Any
    tolerance: Any
    budget: Any
    until: Until
    atol_logit: Any = None
    gains: Gains = ORDINARY
    step: Any = 1.0

    def wrap(self, direction: Any) -> "FlowController":
        return self

    def init(self, terms, t0, t1, y0, dt0, args, func, error_order):
        step = jnp.asarray(self.step)
        one, none = jnp.ones_like(step), jnp.zeros((), jnp.int64)
        start, bracket = jnp.asarray(t0), no_bracket(step)
        state = ControlState(one, start, step, 0 * one, none, jnp.inf * one, one, bracket)
        return t0 + step, state

    def adapt_step_size(
        self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state
    ):
        measures = measures_for(self.until, args, y1_candidate)
        keep, start, end, state, verdict = self.controlled(
            t1 - t0, y0, y1_candidate, args, y_error, error_order, controller_state, measures
        )
        return keep, start, end, False, state, verdict

    def controlled(
        self,
        length: Any,
        y0: State,
        y1_candidate: State,
        field: Field,
        y_error: Any,
        error_order: Any,
        controller_state: ControlState,
        measures: PointMeasures,
    ) -> tuple[Array, Array, Array, ControlState, Any]:
        """What to do after a step of this length: whether to keep it, the start and the end of the
        next one, the state of the controller, and diffrax's result.

        Args:
            measures: at the end of the step.
        """
        last_error, begun, _, longest, count, ceiling, rise, bracket = controller_state
        error = jnp.maximum(self._error(y_error), _LEAST_ERROR)
        keep = error < 1
        factor = _factor(self.gains, error, last_error, error_order, keep)
        last_error = jnp.where(keep, error, last_error)
        rise = jnp.where(keep, self.gains.recover * rise, 1.0)
        ceiling = jnp.where(keep, rise * ceiling, self.gains.reach * length)
        targets = distances(self.until, field, y1_candidate, measures)
        ahead = landing(self.until, targets, bracket, y0, y1_candidate, length, keep)
        keep = keep & ~ahead.passed
        start = jnp.where(keep, length, begun)
        # The length of a step that passed the target follows from the bracket alone.
        free = jnp.where(ahead.passed, jnp.inf, jnp.minimum(factor * length, ceiling))
        step = jnp.minimum(free, ahead.step)
        next_t1 = start + step
        longest = jnp.maximum(longest, jnp.where(keep, length, 0.0))
        memory = longest, count + 1, ceiling, rise, ahead.bracket
        state = ControlState(last_error, start, step, *memory)
        moving = (next_t1 > start) & ~_stuck(moved(y0, y1_candidate), length, state)
        verdict = self._verdict(state, moving, ahead.arrived)
        return keep, start, next_t1, state, verdict

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
    gains: Gains = ORDINARY,
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


def _factor(gains: Gains, error: Array, last_error: Array, order: Any, keep: Array) -> Array:
    """By what to multiply the step: of a PI controller."""
    factor = gains.safety * error ** (-gains.this / order) * last_error ** (gains.last / order)
    # Where there is no error estimate, since Newton's method of an implicit solver failed, the step
    # is shortened as far as allowed.
    factor = jnp.where(jnp.isfinite(error), factor, 0.0)
    return jnp.clip(factor, gains.shrink, jnp.where(keep, gains.grow, gains.safety))


def _stuck(way: Array, length: Any, state: ControlState) -> Array:
    """Whether steps have become so short that they change nothing, without a target ahead.

    A flow at rest is not stuck: its steps are long.
    """
    nothing = way <= 4 * jnp.finfo(jnp.float64).eps
    short = length < _SHORTEST * state.longest
    return nothing & short & ~state.bracket.known
