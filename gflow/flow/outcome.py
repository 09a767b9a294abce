"""What the end of a run means."""

from typing import Any

import numpy as np

from gflow.flow.until import TARGETS, Until
from gflow.measures import PointMeasures
from gflow.problem import Problem
from gflow.results import RESULTS

# Relative to the strength at the start: a flow that is this slow has come to rest.
_REST = 1e-10


def targets_met(
    until: Until, log_kappa: Any, log1p_time: Any, measures: PointMeasures, ceiling: Any
) -> list[str]:
    """The targets that a point meets, to rounding, in the order of `TARGETS`."""
    distance = np.asarray(
        until.remaining(log_kappa, log1p_time, measures.log_loss, measures.stationarity, ceiling)
    )
    return [name for name, value in zip(TARGETS, distance, strict=True) if value <= 1e-12]


def at_rest(until: Until, start: PointMeasures, now: PointMeasures) -> bool:
    """Whether an unseparated flow has stopped moving, so that no more steps would help.

    Where a time is asked for, waiting there reaches it.
    """
    slow = float(now.strength) <= _REST * float(start.strength)
    return bool(slow and now.margin <= 0 and not np.isfinite(until.log1p_time))


def unseparated_result(problem: Problem, measures: PointMeasures) -> RESULTS | None:
    """Why the perturbed examples are not separated, or None where they are."""
    if measures.margin > 0:
        return None
    attacked = np.any(np.asarray(problem.perturbation.radius) > 0)
    if attacked and measures.clean_margin > 0:
        return RESULTS.radius_above_margin
    return RESULTS.not_separated
