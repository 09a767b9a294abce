"""Whose limit is it? Whether the point that was found is the limit of this flow.

Newton's method finds a KKT point; that the flow from this start ends in it, and not in another, is
a claim of its own. It is confirmed where the flow came so close that only this point was left: it
arrived at the handover, met no saddle on the way, and Newton's displacement from there is small.

Near a saddle two paths part that were as close as the errors of any double-precision integration,
so a flow that met one is undecided until it is reproduced (`find_limit(reproduce=True)`): by a
tighter tolerance with a later handover, and by a colder cap. To let the doubtful ones go on to a
later handover, and to confirm those that come closer all the way, is no substitute: of 30 smoothed
ReLU networks 2 were then confirmed in a point that colder caps do not lead to, since errors as
small as 1/cap_logits grow a thousandfold on the way.
"""

from typing import NamedTuple

import numpy as np

SMALL_DISPLACEMENT = 0.015
"""Displacements from the flow to the KKT point, of directions, that leave no doubt. Measured by
benchmarks/basins.py."""
_SAME_MARGIN, _SAME_DIRECTION = 1e-7, 1e-2


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


def close(handover: Handover) -> bool:
    """Whether the flow arrived, and so closely that no other KKT point is as near."""
    return handover.arrived and handover.displacement < SMALL_DISPLACEMENT


def same_point(margins: tuple[float, float], directions: tuple[np.ndarray, np.ndarray]) -> bool:
    """Whether two limits are one, or two of one family. Directions are of norm 1, shapes (P,)."""
    alike = abs(margins[0] / margins[1] - 1) < _SAME_MARGIN if margins[1] else False
    return bool(alike and np.linalg.norm(directions[0] - directions[1]) < _SAME_DIRECTION)
