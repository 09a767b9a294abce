"""Landing on a target: how steps are shortened until one ends on it.

A step that passes a target is rejected, and shortened by the secant method (Illinois) through the
distances at its two ends. So the last point is a step of the solver, as accurate as any other,
whereas an event of diffrax would give a point of the dense output.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from gflow.flow.field import Field, State
from gflow.flow.until import LANDED, Until, known_log_loss
from gflow.measures import PointMeasures

# After so many steps towards a target the next point past it is accepted. The distance may jump
# over 0, as at a kink, and then never becomes as small as asked for.
_MOST_LANDINGS = 60


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

    @property
    def known(self) -> Array:
        """Whether a step has passed the target."""
        return jnp.isfinite(self.width)


def no_bracket(like: Array) -> Bracket:
    """The bracket of a flow that has not passed its target yet."""
    one, zero = jnp.ones_like(like), jnp.zeros((), jnp.int64)
    return Bracket(one, jnp.inf * one, -one, zero, zero)


class Landing(NamedTuple):
    """Where a step ended with respect to the target.

    Attributes:
        arrived: whether its end counts as on the target.
        passed: whether it passed the target, so that it is to be repeated shorter.
        bracket: the bracket after it.
        step: the longest step that may come next; infinite while the target is not bracketed.
    """

    arrived: Array
    passed: Array
    bracket: Bracket
    step: Array


def landing(
    until: Until, targets: Array, bracket: Bracket, start: State, end: State, length: Any, keep: Any
) -> Landing:
    """What a step from `start` to `end` means for the target.

    Args:
        targets: the distance to each of them at its end.
        keep: whether its error is small enough.
    """
    distance = jnp.min(targets)
    # `until.accuracy` is for the targets that were asked for, not for the last one, overflow.
    accuracy = jnp.where(targets[-1] <= distance, LANDED, until.accuracy)
    return landed(distance, accuracy, moved(start, end), bracket, length, keep)


def landed(
    distance: Array, accuracy: Any, way: Array, bracket: Bracket, length: Any, keep: Any
) -> Landing:
    """What a step means for a target at this distance from its end, positive before it, which is
    to be met so closely.

    Args:
        way: how far the step went, `moved`.
    """
    exact = _indistinguishable(way, length, bracket)
    arrived = keep & _close(distance, accuracy, exact, bracket)
    passed = keep & (distance <= 0) & ~arrived
    bracket = _updated(bracket, keep, passed, distance, length)
    return Landing(arrived, passed, bracket, _aim(bracket, exact))


def distances(
    until: Until, field: Field, state: State, measures: PointMeasures
) -> Float[Array, " targets"]:
    """Distance to each target at a state where this was measured."""
    return until.remaining(
        field.log_kappa(state),
        field.log1p_time(state),
        known_log_loss(measures),
        measures.stationarity,
        measures.margin,
        field.ceiling,
    )


def measures_for(until: Until, field: Field, state: State) -> PointMeasures:
    """The measures of a state, if one of the targets depends on them; otherwise nothing is
    evaluated.
    """
    shapes = jax.eval_shape(field.measures, state)

    def skipped() -> PointMeasures:
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    return lax.cond(until.needs_margins, lambda: field.measures(state), skipped)


def moved(start: State, end: State) -> Array:
    """How far a step went, relative to where it began."""
    return jnp.max(jnp.abs(end - start) / (1.0 + jnp.abs(start)))


def _indistinguishable(way: Array, length: Any, bracket: Bracket) -> Array:
    """Whether the bracket is so narrow that its states cannot be told apart in float64."""
    # The states at the ends of the bracket differ by about `way * width / length`.
    rounding = 16 * jnp.finfo(jnp.float64).eps
    return bracket.known & (way * bracket.width <= rounding * length)


def _close(distance: Any, accuracy: Any, exact: Any, bracket: Bracket) -> Array:
    """Whether the end of the step is on the target, or past it and as close as possible."""
    tired = bracket.known & (bracket.tries >= _MOST_LANDINGS)
    return (jnp.abs(distance) <= accuracy) | ((distance <= 0) & (exact | tired))


def _updated(bracket: Bracket, keep: Any, passed: Any, distance: Any, length: Any) -> Bracket:
    """The bracket after a step that passed the target, or stayed before it (Illinois method)."""
    known = bracket.known
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
    known = bracket.known
    share = jnp.clip(bracket.before / (bracket.before - bracket.after), 0.01, 0.99)
    # If the log-loss is infinite at either end, the bracket is halved.
    share = jnp.where(jnp.isfinite(bracket.before - bracket.after), share, 0.5)
    return jnp.where(known, jnp.where(exact, 1.0, share) * bracket.width, jnp.inf)
