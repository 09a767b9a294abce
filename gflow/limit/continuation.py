"""A parameter led to its last value, with Newton's method at each value on the way.

Two parameters are led to 0 on the way to a KKT point: the temperature of the loss and the smoothing
of kinks. For either the solution at one value is where Newton's method starts at the next. The
parameter falls by a factor that adapts: by more while the solutions are easy to find, by less where
none is found. Where it cannot fall any further, the branch of solutions ends or turns.

Source: Allgower & Georg 1990, "Numerical Continuation Methods".
"""

import math
from collections.abc import Callable
from typing import TypeVar

from gflow.limit.settings import ContinuationSettings

State = TypeVar("State")


def continued(
    solve: Callable[[State, float], tuple[State | None, bool]],
    state: State,
    parameter: float,
    steps: ContinuationSettings,
) -> tuple[State, float]:
    """The last solution on the way, and the value of the parameter that it belongs to.

    Args:
        solve: the solution at a value of the parameter, from one at a larger value, or None; and
            whether it was easy to find.
        state: the solution at `parameter`.
        parameter: > 0.
    """
    factor = steps.first_factor
    while parameter > steps.last:
        lower = max(factor * parameter, steps.last)
        found, easy = solve(state, lower)
        if found is None:
            factor = math.sqrt(factor)
            if factor > steps.last_factor:
                break
            continue
        state, parameter = found, lower
        factor = max(factor**steps.exponent if easy else factor, steps.least_factor)
    return state, parameter
