"""Step-size control of one run of many: the length of its next step, and when its legs end."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._layout import Layout
from gflow.batch.lanes import ACTIVE, ARRIVED, FAR, NOT_FINITE, SPENT, STUCK, Goals, Lane
from gflow.batch.steps import explicit, implicit, point_of
from gflow.flow.landing import landed, no_bracket
from gflow.measures import MAX_LOG_KAPPA
from gflow.problem import Problem

# Of the step-size control; see `gflow.stiff.traits.Gains`.
_THIS, _LAST, _SAFETY, _SHRINK, _GROW = 0.8, 0.3, 0.9, 0.2, 5.0
# Errors below this part of the tolerance are mostly rounding.
_LEAST_ERROR = 1e-5
# Steps that move the state by less than this change nothing.
_NOTHING, _SHORTEST = 4 * np.finfo(float).eps, 1e-12

# Explicit steps end at this smallest margin, or after so many. On 32 smoothed ReLU networks 7-8-1
# the true flow took 114 explicit and 105 implicit steps so, and 580 explicit ones to 30 logits.
_STIFF_LOGITS, _MOST_EXPLICIT = 3.0, 320

# A run that has not come to the cap by then is begun anew by itself: a search of one run knows the
# flows that never do. Those that do took 220 steps, see above.
_MOST_TO_CAP = 1000


def starting(problem: Problem, layout: Layout, goals: Goals, path: Array) -> Lane:
    """A run at its start, about to try a cautious first step."""
    none, one = jnp.zeros((), int), jnp.ones_like(path[-1])
    uncapped = jnp.full_like(one, jnp.inf)
    point = point_of(problem, layout, path, uncapped)
    lane = Lane(
        clock=0 * one,
        path=path,
        log_cap=uncapped,
        step=one,
        error=one,
        longest=0 * one,
        bracket=no_bracket(one),
        point=point,
        num_steps=none,
        cap_clock=0 * one,
        at_cap=path,
        num_to_cap=none,
        status=none,
    )
    lane = _turned(problem, goals, lane, _logits_left(problem, goals, lane) <= 0)
    length = goals.tolerance**0.2
    speed = jnp.linalg.norm(point.slope[:-1])
    return lane._replace(step=length / jnp.where(speed > 0, speed, 1.0))


def under_way(problem: Problem, lane: Lane, *, stiff: bool) -> Array:
    """Whether the run goes on with steps of this kind.

    It begins with explicit ones, and goes on with implicit ones for good from the first logits on,
    behind which the flow soon becomes stiff, and in any case after so many steps.
    """
    log_margin = jnp.log(jnp.maximum(jnp.min(lane.point.margins), 1e-300))
    far = problem.degree * lane.path[-1] + log_margin >= np.log(_STIFF_LOGITS)
    late = (lane.num_steps >= _MOST_EXPLICIT) | jnp.isfinite(lane.log_cap)
    return (lane.status == ACTIVE) & (stiff | ~(far | late))


def stepped(problem: Problem, layout: Layout, goals: Goals, lane: Lane, *, stiff: bool) -> Lane:
    """The run after one more step; one that has ended stays as it is.

    Args:
        stiff: whether the step is implicit.
    """
    end, error, order = (implicit if stiff else explicit)(problem, layout, goals, lane)
    point = point_of(problem, layout, end, lane.log_cap)
    finite = jnp.all(jnp.isfinite(end)) & jnp.all(jnp.isfinite(point.slope))
    error = jnp.where(finite, jnp.maximum(error, _LEAST_ERROR), jnp.inf)
    keep = error < 1
    after = lane._replace(clock=lane.clock + lane.step, path=end, point=point)
    distance, accuracy = _distance(problem, goals, after)
    way = jnp.max(jnp.abs(end - lane.path) / (1 + jnp.abs(lane.path)))
    ahead = landed(distance, accuracy, way, lane.bracket, lane.step, keep)
    keep = keep & ~ahead.passed
    factor = _SAFETY * error ** (-_THIS / order) * lane.error ** (_LAST / order)
    factor = jnp.clip(jnp.where(jnp.isfinite(error), factor, 0.0), _SHRINK, _GROW)
    factor = jnp.where(keep, factor, jnp.minimum(factor, _SAFETY))
    free = jnp.where(ahead.passed, jnp.inf, factor * lane.step)
    step = jnp.minimum(free, ahead.step)
    longest = jnp.maximum(lane.longest, jnp.where(keep, lane.step, 0.0))
    stuck = (way <= _NOTHING) & (lane.step < _SHORTEST * longest) & ~ahead.bracket.known
    kept = jax.tree.map(lambda new, old: jnp.where(keep, new, old), after, lane)
    kept = kept._replace(
        step=step,
        error=jnp.where(keep, error, lane.error),
        longest=longest,
        bracket=ahead.bracket,
        num_steps=lane.num_steps + 1,
    )
    kept = _judged(problem, goals, kept, ahead.arrived & keep, stuck | ~(step > 0), finite)
    capped = jnp.isfinite(lane.log_cap)
    kept = _turned(problem, goals, kept, ahead.arrived & keep & ~capped)
    going = under_way(problem, lane, stiff=stiff)
    return jax.tree.map(lambda new, old: jnp.where(going, new, old), kept, lane)


def _judged(
    problem: Problem, goals: Goals, lane: Lane, arrived: Array, stuck: Array, finite: Array
) -> Lane:
    """The run with its status: how it stands after this step."""
    capped = jnp.isfinite(lane.log_cap)
    far = capped & (problem.degree * lane.path[-1] >= lane.log_cap + goals.farthest)
    beyond = ~capped & (problem.degree * lane.path[-1] >= MAX_LOG_KAPPA)
    most = jnp.where(capped, goals.most_steps, jnp.minimum(goals.most_steps, _MOST_TO_CAP))
    status = jnp.where(lane.num_steps >= most, SPENT, ACTIVE)
    status = jnp.where(stuck | beyond, jnp.where(finite, STUCK, NOT_FINITE), status)
    status = jnp.where(far, FAR, status)
    status = jnp.where(arrived, jnp.where(capped, ARRIVED, ACTIVE), status)
    return lane._replace(status=status)


def _turned(problem: Problem, goals: Goals, lane: Lane, turns: Array) -> Lane:
    """The run; where it `turns`, on its second leg, with its temperature capped from here on."""
    margin = jnp.min(lane.point.margins)
    coldest = jnp.log(goals.most_logits) - jnp.log(jnp.where(margin > 0, margin, 1.0))
    log_cap = jnp.minimum(problem.degree * lane.path[-1], jnp.minimum(coldest, MAX_LOG_KAPPA))
    log_cap = jnp.where(turns, log_cap, lane.log_cap)
    one = jnp.ones_like(log_cap)
    new = lane._replace(
        log_cap=log_cap,
        longest=0 * one,
        bracket=no_bracket(one),
        cap_clock=lane.clock,
        at_cap=lane.path,
        num_to_cap=lane.num_steps,
        num_steps=jnp.zeros_like(lane.num_steps),
    )
    new = jax.tree.map(lambda there, here: jnp.where(turns, there, here), new, lane)
    # A start beyond the coldest cap has other weights under it.
    arrived = turns & (lane.point.stationarity <= goals.handover)
    return new._replace(status=jnp.where(arrived, ARRIVED, new.status))


def _logits_left(problem: Problem, goals: Goals, lane: Lane) -> Array:
    """`1 - kappa min_i q_i(u) / logits`, positive until they are reached."""
    margin = jnp.min(lane.point.margins)
    return 1 - jnp.exp(problem.degree * lane.path[-1] - goals.log_logits) * margin


def _distance(problem: Problem, goals: Goals, lane: Lane) -> tuple[Array, Array]:
    """How far the run is from the target of its leg, and how closely that is to be met."""
    capped = jnp.isfinite(lane.log_cap)
    still = jnp.log(jnp.maximum(lane.point.stationarity, 1e-300)) - jnp.log(goals.handover)
    distance = jnp.where(capped, still, _logits_left(problem, goals, lane))
    accuracy = jnp.where(capped, goals.handover_accuracy, goals.cap_accuracy)
    return jnp.where(jnp.isnan(distance), jnp.inf, distance), accuracy
