"""Is the point that was found the limit of the flow from this start?

Newton's method finds a KKT point. That the flow from this start ends there, and not at another one,
is a separate claim. It is confirmed where three things hold: the flow reached the stationarity of
the handover, it met no saddle on the way, and Newton's method moved the direction only a little.

Near a saddle two paths may part although they were closer to each other than the error of any
integration in double precision. So the limit of a flow that met a saddle is undecided until it is
reproduced (`find_limit(reproduce=True)`): by a search with a tighter tolerance and a later
handover, and by one with a colder cap. It is not enough to follow the same flow to a later handover
and to confirm the point if the flow comes ever closer to it: of 30 smoothed ReLU networks 2 were
then confirmed in a point to which colder caps do not lead, since errors as small as 1/cap_logits
grow a thousandfold on the way. With the bound on the displacement, at a second handover of a tenth
of the stationarity, 1 of 20 new ones that it confirmed was wrong in the same way
(`benchmarks/README.md`).
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
"""Of a search whose flow has not reached a handover yet."""


def close(handover: Handover, settings: BasinSettings = DEFAULT.basin) -> bool:
    """Whether the flow reached its handover, and ended so close to the KKT point that it can end in
    no other one.
    """
    return handover.arrived and handover.displacement < settings.displacement


def same_point(
    margins: tuple[float, float],
    directions: tuple[np.ndarray, np.ndarray],
    settings: BasinSettings = DEFAULT.basin,
) -> bool:
    """Whether two limits are the same, to within `settings`: their margins, and their directions of
    norm 1. Shapes (P,).
    """
    if margins[1] == 0 or not abs(margins[0] / margins[1] - 1) < settings.same_margin:
        return False
    return bool(np.linalg.norm(directions[0] - directions[1]) < settings.same_direction)
