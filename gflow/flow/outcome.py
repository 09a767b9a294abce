"""What the end of a run means."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from gflow._programs import compiled_for_few_calls
from gflow.flow.field import Field, State, vector_field
from gflow.flow.until import TARGETS, Until, known_log_loss
from gflow.measures import PointMeasures
from gflow.problem import Problem
from gflow.record import Record, Row
from gflow.results import RESULTS
from gflow.trajectory import HELD

# As close as this to a target it is met: a run's last step aims at 1e-13, the rest is rounding.
_ROUNDING = 1e-12
# Rounding of a stationarity.
_SINE = 1e-14
# Relative to the strength at the start: a flow that is this slow has come to rest.
_REST = 1e-10
# A direction that is so close to stationary under a cap has come to rest.
_STILL = 1e-6
# A norm that has shrunk by exp(-300) is nothing: its square underflows soon after.
_LOG_NOTHING = 300.0
# Fewer steps than this do not tell whether the loss still falls.
_STEPS_TO_TELL = 1000


def targets_met(until: Until, field: Field, row: Row, *, landed: bool = False) -> list[str]:
    """The targets that a point meets, to rounding or `until.accuracy`, in the order of `TARGETS`.

    What is NaN meets none. A small stationarity, a difference of vectors of norm 1, is known to few
    digits.

    Args:
        landed: whether the steps towards a target ended at this point by themselves. Where it then
            meets none to rounding, those count that are met to `HELD`.
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


@compiled_for_few_calls
def _distances(until: Until, field: Field, row: Row) -> Array:
    """To each target, as one program rather than one for each of its operations."""
    measures = row.measures
    place = field.problem.degree * row.state[-2], row.state[-1]
    known = known_log_loss(measures), measures.stationarity, measures.margin
    return until.remaining(*place, *known, field.ceiling)


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
    """Whether more steps would not separate the examples: none is separated by a flow that rests,
    fades away, or has spent its steps without lowering the loss any more.
    """
    first, last = record.first(), record.last()
    if last.measures.margin > 0:
        return False
    return (
        at_rest(until, first.measures, last.measures)
        or faded(until, problem.degree, first, last)
        or fixed(until, last.measures)
        or (spent and stalled(record))
    )


def at_rest(until: Until, start: PointMeasures, now: PointMeasures) -> bool:
    """Whether the flow has stopped moving.

    Where a time is asked for, waiting there reaches it.
    """
    slow = float(now.strength) <= _REST * float(start.strength)
    return bool(slow and not np.isfinite(until.log1p_time))


def fixed(until: Until, now: PointMeasures) -> bool:
    """Whether a capped flow keeps its direction, at a loss beyond all numbers that only rises.

    Where a log kappa or a stationarity is asked for, waiting there reaches it.
    """
    still = now.stationarity <= _STILL
    still = still and np.isposinf(until.log_kappa) and until.stationarity == 0
    # Last, since its operations are programs of their own here.
    return bool(still and np.isposinf(known_log_loss(now)))


def faded(until: Until, degree: float, start: Row, now: Row) -> bool:
    """Whether the norm has decayed to nothing.

    It takes all of time from degree 2 on, so that a time that is asked for is reached; below, the
    flow ends at zero at a finite time.
    """
    decayed = float(now.state[-2]) <= min(float(start.state[-2]), 0.0) - _LOG_NOTHING
    return decayed and not (degree >= 2 and np.isfinite(until.log1p_time))


def stalled(record: Record) -> bool:
    """Whether the loss hardly fell over the last half of the saved points.

    In logarithms: by at most a thousandth, and a thousandth of its fall over the run. A short run
    tells nothing.
    """
    log_loss = record.log_losses()
    if record.last().num_accepted < _STEPS_TO_TELL or len(log_loss) < 3:
        return False
    late = log_loss[len(log_loss) // 2] - log_loss[-1]
    return bool(late <= 1e-3 * min(1.0, log_loss[0] - log_loss[-1]))


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
