"""How a run ended: which targets it met, or why it did not."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gflow._programs import compiled_for_few_calls
from gflow.flow.field import Field, State, vector_field
from gflow.flow.until import TARGETS, Until, known_log_loss
from gflow.measures import PointMeasures
from gflow.problem import Problem
from gflow.record import Record, Row
from gflow.results import RESULTS
from gflow.trajectory import HELD

# A target counts as met this close to it: the last step of a run aims at 1e-13, and rounding adds
# to it.
_ROUNDING = 1e-12
# Rounding error of a stationarity, a difference of vectors of norm 1.
_SINE = 1e-14
# A flow whose strength has fallen to this part of that at the start has come to rest.
_REST = 1e-10
# Under a cap a direction of at most this stationarity has come to rest.
_STILL = 1e-6
# A norm that has shrunk by exp(-300) counts as 0, since its square soon underflows.
_LOG_NOTHING = 300.0
# After fewer steps it is too early to say whether the loss still falls.
_STEPS_TO_TELL = 1000


def targets_met(until: Until, field: Field, row: Row, *, landed: bool = False) -> list[str]:
    """The targets that a point meets, to rounding or `until.accuracy`, in the order of `TARGETS`.

    A NaN meets no target. A small stationarity is the norm of a difference of vectors of norm 1,
    with few right digits, so that its target is met to a larger error.

    Args:
        landed: whether the solver ended the run here because it had reached a target. If no target
            is met to rounding then, those count that are met to `HELD`.
    """
    distance = _distances(until, field, row)
    for closely in (_ROUNDING, HELD) if landed else (_ROUNDING,):
        accuracy = np.full(len(TARGETS), max(float(until.accuracy), closely))
        accuracy[TARGETS.index("stationarity")] += _SINE / max(float(until.stationarity), _SINE)
        accuracy[TARGETS.index("kappa_overflow")] = closely
        met = np.flatnonzero(np.asarray(distance) <= accuracy)
        if len(met):
            return [TARGETS[index] for index in met]
    return []


def _distances(until: Until, field: Field, row: Row) -> np.ndarray:
    """Distances to the targets, in NumPy, which is faster than JAX for so few numbers."""
    measures = row.measures
    place = field.problem.degree * row.state[-2], row.state[-1]
    with np.errstate(all="ignore"):
        known = known_log_loss(measures, xp=np), measures.stationarity, measures.margin
        return until.remaining(*place, *known, np.asarray(field.ceiling), xp=np)


def outcome_at(until: Until, field: Field, row: Row, *, landed: bool = False) -> RESULTS | None:
    """`successful` where the last point of a run meets a target that was asked for, else
    `kappa_overflow` where it lies that far out, else None.

    Nothing else makes a run of the flow successful. `landed`: see `targets_met`.
    """
    met = targets_met(until, field, row, landed=landed)
    if met and met != ["kappa_overflow"]:
        return RESULTS.successful  # pyright: ignore[reportReturnType]
    return RESULTS.kappa_overflow if met else None


def hopeless(until: Until, problem: Problem, record: Record, *, spent: bool) -> bool:
    """Whether the examples are not separated and more steps would not separate them.

    That is so where the flow has come to rest, where its parameters decay to 0, and where all steps
    are spent and the loss no longer falls.
    """
    first, last = record.first(), record.last()
    if last.measures.margin > 0:
        return False
    return (
        at_rest(until, first.measures, last.measures)
        or faded(until, problem.degree, first, last)
        or fixed(until, last.measures)
        or (spent and stalled(record) and not falls(problem.degree, last))
    )


def at_rest(until: Until, start: PointMeasures, now: PointMeasures) -> bool:
    """Whether the flow has stopped moving.

    False if a time is a target, since a flow at rest still reaches it.
    """
    slow = float(now.strength) <= _REST * float(start.strength)
    return bool(slow and not np.isfinite(until.log1p_time))


def fixed(until: Until, now: PointMeasures) -> bool:
    """Whether a capped flow no longer turns while its loss is infinite: kappa grows at a direction
    with a negative margin.

    False if a log kappa or a stationarity is a target, since this flow still reaches these.
    """
    still = now.stationarity <= _STILL
    still = still and np.isposinf(until.log_kappa) and until.stationarity == 0
    with np.errstate(all="ignore"):
        return bool(still and np.isposinf(known_log_loss(now, xp=np)))


def faded(until: Until, degree: float, start: Row, now: Row) -> bool:
    """Whether the norm has decayed to 0, to `exp(-300)` of 1 and of its start.

    For degrees of 2 and more the decay takes infinite time: False if a time is a target, since the
    flow reaches it. For smaller degrees the flow arrives at 0 at a finite time and ends there.
    """
    decayed = float(now.state[-2]) <= min(float(start.state[-2]), 0.0) - _LOG_NOTHING
    return decayed and not (degree >= 2 and np.isfinite(until.log1p_time))


def stalled(record: Record) -> bool:
    """Whether the loss hardly fell over the last half of the saved points.

    The log-loss fell by at most 1e-3, and by at most 1e-3 of its fall over the whole run. False for
    runs of fewer than 1000 accepted steps.
    """
    log_loss = record.log_losses()
    if record.last().num_accepted < _STEPS_TO_TELL or len(log_loss) < 3:
        return False
    late = log_loss[len(log_loss) // 2] - log_loss[-1]
    return bool(late <= 1e-3 * min(1.0, log_loss[0] - log_loss[-1]))


def falls(degree: float, now: Row) -> bool:
    """Whether the loss still falls at this point, however little it fell over the last steps, which
    may have become so short that no time passed.

    That is so if `-d log Loss / d log(1 + t) = (1 + t) |grad Loss|^2 / Loss` may exceed 1e-2, that
    is, if the loss may fall by about 1 % or more while 1 + t grows by a factor e. `|grad Loss|` is
    bounded by `Loss |params|^(L-1)` times the strength, since `-l' <= l` for both losses.
    """
    log_norm, log1p_time = now.state[-2:]
    measures = now.measures
    slope = log1p_time + measures.log_loss + 2 * ((degree - 1) * log_norm)
    return bool(slope + 2 * np.log(max(float(measures.strength), 1e-300)) > np.log(1e-2))


@compiled_for_few_calls
def _slopes_ahead(field: Field, state: State) -> Any:
    slope = vector_field(0.0, state, field)
    steps = 10.0 ** -jnp.arange(6.0, 13.0) / jnp.maximum(1.0, jnp.max(jnp.abs(slope)))
    return jax.vmap(lambda step: vector_field(0.0, state + step * slope, field))(steps)


def not_finite_ahead(field: Field, state: State) -> bool:
    """Whether the flow would run into NaN or infinity right after this point."""
    return not np.all(np.isfinite(np.asarray(_slopes_ahead(field, state))))


def unseparated_result(problem: Problem, margin: Any, clean_margin: Any) -> RESULTS | None:
    """Why the perturbed examples are not separated, or None where they are.

    Args:
        margin, clean_margin: the smallest, with and without perturbation.
    """
    if margin > 0:
        return None
    attacked = np.any(np.asarray(problem.perturbation.radius) > 0)
    if attacked and clean_margin > 0:
        return RESULTS.radius_above_margin
    return RESULTS.not_separated
