"""What the verdicts on many KKT points need, computed side by side."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gflow.batch.points import points_beside
from gflow.batch.stacked import Runs
from gflow.kkt.curvature import Curvature
from gflow.kkt.point import KKTPoint
from gflow.limit.search import Search
from gflow.limit.smooth import Smooth
from gflow.limit.state import State
from gflow.limit.verdict import beside_along


@dataclass(frozen=True, eq=False)
class Prepared(Smooth):
    """A refiner that knows the curvature at one KKT point, and the points beside it, beforehand.

    Attributes:
        known: the KKT point, or None; its curvature; and by the bytes of a direction beside it the
            KKT point near there.
    """

    known: tuple[KKTPoint, Curvature] | None = None
    points: dict[bytes, KKTPoint] = field(default_factory=dict)

    def curvature(self, state: State, point: Any) -> Curvature:
        if self.known is not None and point is self.known[0]:
            return self.known[1]
        return super().curvature(state, point)

    def beside(self, point: Any, direction: np.ndarray) -> KKTPoint:
        found = self.points.get(direction.tobytes()) if self._is_known(point) else None
        return super().beside(point, direction) if found is None else found

    def _is_known(self, point: Any) -> bool:
        return self.known is not None and point is self.known[0]


def judged_beside(
    runs: Runs, searches: Sequence[Search], states: Sequence[State | None]
) -> list[Smooth]:
    """Refiners of the runs, with what the verdicts on their KKT points need."""
    refiners: list[Smooth] = [Smooth(search) for search in searches]
    known, places = {}, {}
    for row, (refiner, state) in enumerate(zip(refiners, states, strict=True)):
        if state is None or state.found is None:
            continue
        point = state.found.point
        curvature = refiner.curvature(state, point)
        known[row] = point, curvature
        if curvature.neutral.any() and not curvature.unstable.any():
            settings = refiner.search.settings.verdict
            places[row] = next(beside_along(point, curvature, settings))[1]
    given = {row: (known[row][0], place) for row, place in places.items()}
    settings = searches[0].settings.refine
    near = points_beside(runs, given, settings) if given else {}
    for row, pair in known.items():
        there = {places[row].tobytes(): near[row]} if row in near else {}
        refiners[row] = Prepared(searches[row], known=pair, points=there)
    return refiners
