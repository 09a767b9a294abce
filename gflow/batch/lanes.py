"""One step of the flow of one run, cheap enough to be made for many runs side by side.

Side by side, an exact Jacobian costs more a run than alone. So there are two kinds of steps that
take none:

- *explicit*, Tsit5, while the loss is not small: there the flow is not stiff;
- *implicit*, the W-method ROS34PW2, which keeps its order whatever matrix stands for the Jacobian.
  Here that is the part of it that makes the flow stiff, of low rank in the space of the examples,

      J ~ -kappa G^T C S - D,   C = -dp/d(kappa q),   D = L sum_i p_i q_i (I - u u^T),

  with the rows `((I - u u^T) grad q_i, L q_i)` of G, and in S with the margins' own slopes in place
  of `grad q_i`. Its systems are no larger than the number of margins.

The state is `(u, log rho)`: physical time is not followed. A run has two legs: the true flow, until
its smallest margin is so many logits, which sets the cap of its temperature, and the capped flow,
until it is nearly stationary.

Source of the methods: Tsitouras 2011, "Runge-Kutta pairs of order 5(4) satisfying only the first
column simplifying assumption", Comput. Math. Appl. 62; Rang & Angermann 2005, see
`gflow.stiff.tableaus`.
"""

from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from gflow._layout import Layout
from gflow._numerics import scaled_margins
from gflow.flow.landing import Bracket, landed, no_bracket
from gflow.kkt.system import gradient_rows
from gflow.measures import MAX_LOG_KAPPA
from gflow.problem import Problem
from gflow.stiff.operators import Operator
from gflow.stiff.tableaus import ROS34PW2

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

# The coefficients of Tsit5.
_TABLEAU = diffrax.Tsit5.tableau
_B, _E = np.asarray(_TABLEAU.b_sol), np.asarray(_TABLEAU.b_error)
_A = np.zeros((len(_B), len(_B)))
for _i, _row in enumerate(_TABLEAU.a_lower, 1):
    _A[_i, : len(_row)] = _row

ACTIVE, ARRIVED, FAR, SPENT, STUCK, NOT_FINITE = range(6)
"""How a run stands: under way; at the stationarity of the handover; as far as it is followed; its
steps are spent; its steps change nothing; no further step is finite."""


class Goals(NamedTuple):
    """What the runs are to reach, and how closely they are followed: the same for all.

    Attributes:
        log_logits: logarithm of the smallest margin at which the temperature is capped.
        cap_accuracy: how closely it is met.
        most_logits: of the coldest cap.
        handover: the stationarity at which a run ends.
        handover_accuracy: how closely it is met, relative.
        farthest: log kappa beyond the cap at which a run ends.
        tolerance: local error per step of the direction and of log rho.
        logit_tolerance: and of the logits.
        most_steps: of each leg.
    """

    log_logits: Any
    cap_accuracy: Any
    most_logits: Any
    handover: Any
    handover_accuracy: Any
    farthest: Any
    tolerance: Any
    logit_tolerance: Any
    most_steps: Any


class Point(NamedTuple):
    """What is computed of a state.

    Attributes:
        margins: q, in their own shape.
        slope: `d (u, log rho) / d tau`.
        stationarity: the sine of the angle between u and `sum_i p_i grad q_i`.
    """

    margins: Float[Array, "n ..."]
    slope: Float[Array, " path"]
    stationarity: Float[Array, ""]


class Lane(NamedTuple):
    """Where a run stands.

    Attributes:
        clock: tau, summed over the accepted steps.
        path: `(u, log rho)`.
        log_cap: log kappa_c; infinite on the first leg.
        step: the next one, on the clock of `gflow.flow.field`.
        error: of the last accepted step, in units of what is allowed.
        longest: the longest accepted step of this leg.
        bracket: of the target.
        point: what is computed of the path.
        num_steps: tried on this leg.
        cap_clock, at_cap: clock and path where the temperature was capped;
        num_to_cap: steps tried until then.
        status: how it stands.
    """

    clock: Float[Array, ""]
    path: Float[Array, " path"]
    log_cap: Float[Array, ""]
    step: Float[Array, ""]
    error: Float[Array, ""]
    longest: Float[Array, ""]
    bracket: Bracket
    point: Point
    num_steps: Int[Array, ""]
    cap_clock: Float[Array, ""]
    at_cap: Float[Array, " path"]
    num_to_cap: Int[Array, ""]
    status: Int[Array, ""]


def starting(problem: Problem, layout: Layout, goals: Goals, path: Array) -> Lane:
    """A run at its start, about to try a cautious first step."""
    none, one = jnp.zeros((), int), jnp.ones_like(path[-1])
    uncapped = jnp.full_like(one, jnp.inf)
    point = _point(problem, layout, path, uncapped)
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
    end, error, order = (_implicit if stiff else _explicit)(problem, layout, goals, lane)
    point = _point(problem, layout, end, lane.log_cap)
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
    """With how it stands now."""
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
    """On the second leg where it turns there: with its temperature capped from here on."""
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
    """To the target of the leg, and how closely that is to be met."""
    capped = jnp.isfinite(lane.log_cap)
    still = jnp.log(jnp.maximum(lane.point.stationarity, 1e-300)) - jnp.log(goals.handover)
    distance = jnp.where(capped, still, _logits_left(problem, goals, lane))
    accuracy = jnp.where(capped, goals.handover_accuracy, goals.cap_accuracy)
    return jnp.where(jnp.isnan(distance), jnp.inf, distance), accuracy


def _log_kappa(problem: Problem, path: Array, log_cap: Array) -> Array:
    return jnp.minimum(problem.degree * path[-1], log_cap)


def _unit(path: Array) -> Array:
    return path[:-1] / jnp.linalg.norm(path[:-1])


def _point(problem: Problem, layout: Layout, path: Array, log_cap: Array) -> Point:
    """What is computed of a path."""
    unit = _unit(path)
    ascent = problem.ascent(layout.unflatten(unit), _log_kappa(problem, path, log_cap))
    vector = layout.flatten(ascent.vector)
    along, length = unit @ vector, jnp.linalg.norm(vector)
    pull = vector - along * unit
    sine = jnp.linalg.norm(pull) / jnp.where(length > 0, length, 1.0)
    sine = jnp.where((along <= 0) | (length == 0), 1.0, jnp.minimum(sine, 1.0))
    growth = problem.degree * jnp.vdot(ascent.weights, ascent.margins)
    return Point(ascent.margins, jnp.append(pull, growth), sine)


def _explicit(
    problem: Problem, layout: Layout, goals: Goals, lane: Lane
) -> tuple[Array, Array, int]:
    """The end of an explicit step, its error in units of what is allowed, and its order."""
    stages = jnp.zeros((len(_B), lane.path.size)).at[0].set(lane.point.slope)
    for i in range(1, len(_B)):
        at = lane.path + lane.step * (jnp.asarray(_A[i]) @ stages)
        stages = stages.at[i].set(_point(problem, layout, at, lane.log_cap).slope)
    end = lane.path + lane.step * (jnp.asarray(_B) @ stages)
    size = _size(goals, lane, lane.step * (jnp.asarray(_E) @ stages))
    return end, jnp.where(jnp.isnan(size), jnp.inf, size), 5


def _implicit(
    problem: Problem, layout: Layout, goals: Goals, lane: Lane
) -> tuple[Array, Array, int]:
    """Likewise an implicit one, whose error is bounded in the logits too."""
    a, C, m, e = map(jnp.asarray, (ROS34PW2.a, ROS34PW2.C, ROS34PW2.m, ROS34PW2.e))
    h, rows = lane.step, _rows(problem, layout, lane)
    solve = _inverse(lane, rows, 1 / (h * ROS34PW2.gamma))
    stages = jnp.zeros((len(m), lane.path.size))
    for i in range(len(m)):
        at = lane.path + a[i] @ stages
        slope = _point(problem, layout, at, lane.log_cap).slope if i else lane.point.slope
        stages = stages.at[i].set(solve(slope + (C[i] / h) @ stages))
    error = e @ stages
    logit = rows.kappa * jnp.sqrt(jnp.vdot(rows.weights, (rows.slopes @ error) ** 2))
    size = jnp.maximum(_size(goals, lane, error), logit / goals.logit_tolerance)
    return lane.path + m @ stages, jnp.where(jnp.isnan(size), jnp.inf, size), 3


def _size(goals: Goals, lane: Lane, error: Array) -> Array:
    """Of an error of the path; that along u is none."""
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
