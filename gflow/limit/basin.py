"""Whose limit is it? Whether the point that was found is the limit of this flow.

Newton's method finds a KKT point. That the flow from this start ends there, and not at another one,
is a claim of its own. It is confirmed where three things hold: the flow arrived at the stationarity
of the handover, it met no saddle on the way, and Newton's method moved the direction only a little.

Near a saddle paths part that were closer to each other than the errors of any double-precision
integration. So a flow that met one is undecided until it is reproduced
(`find_limit(reproduce=True)`): by a tighter tolerance with a later handover, and by a colder cap.
To follow the doubtful ones to a later handover, and to confirm those that come closer all the way,
is no substitute: of 30 smoothed ReLU networks 2 were then confirmed in a point that colder caps do
not lead to, since errors as small as 1/cap_logits grow a thousandfold on the way.
"""

import math
from typing import NamedTuple

import numpy as np

from gflow.limit.search_settings import DEFAULT, BasinSettings

BASINS = ("confirmed", "undecided", "reproduced")
"""Every word that `Limit.basin` can be."""


class Handover(NamedTuple):
    """Where the flow gave way to Newton's method.

    Attributes:
        arrived: whether the flow reached the stationarity that it was to reach.
        stationarity: of the capped flow there.
        displacement: distance from there to the KKT point, of directions.
    """

    arrived: bool
    stationarity: float
    displacement: float


NO_HANDOVER = Handover(False, math.nan, math.nan)
"""Before the flow has been handed over."""


def close(handover: Handover, settings: BasinSettings = DEFAULT.basin) -> bool:
    """Whether the flow arrived, and so closely that no other KKT point is as near."""
    return handover.arrived and handover.displacement < settings.displacement


def same_point(
    margins: tuple[float, float],
    directions: tuple[np.ndarray, np.ndarray],
    settings: BasinSettings = DEFAULT.basin,
) -> bool:
    """Whether two limits are one, or two of one family. Directions are of norm 1, shapes (P,)."""
    if margins[1] == 0 or not abs(margins[0] / margins[1] - 1) < settings.same_margin:
        return False
    return bool(np.linalg.norm(directions[0] - directions[1]) < settings.same_direction)
