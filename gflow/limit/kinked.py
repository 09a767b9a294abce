"""How a problem with kinks is searched: plain ReLUs, or attacks that follow signs.

The flow slides along kinks, where no solver of smooth equations can follow it. So the kinks are
first rounded (`gflow.kkt.switches`), and the flow of that problem is followed to its limit. From
there the smoothing is led to 0 on the KKT system (`gflow.limit.following`). The flow with exact
kinks is followed, by implicit steps that slide along them (`gflow.limit.sliding`), in three cases:
where that branch of KKT points ends, where the rounded problem had no limit, and from a saddle at
kinks. Where these steps fail, the search begins anew with less smoothing.

What a limit at kinks is. On clean data the margins of plain ReLUs have kinks but do not jump, and a
limit is a point at which 0 lies in Clarke's subdifferential of the Lagrangian. Under FGSM, and
under FGM with plain ReLUs, the perturbation itself jumps where a sign or a ReLU on which it depends
turns, and so does the field. A solution is then one of Filippov's differential inclusion: on a kink
it moves with a convex combination of the fields of the two sides, whose coefficient in [0, 1],
`(1 + sin phi)/2`, is the one that keeps it on the kink. A limit is a point where such a combination
vanishes; a training run that chatters rests there on average. One kink alone has one such
combination. Where two or more kinks meet, the combinations that keep to all of them need not be
unique, and then neither the solution nor its limit is: gflow finds the one to which its rounding of
the kinks leads. The margin of that point with the coefficients held is `Limit.held_margin`, which
is not the margin on any side of the kinks; the margin on the best side is `Limit.margin` (among all
sides of an example's kinks up to 10 switches, and among a sample of them beyond that).

Source: Filippov 1988, "Differential Equations with Discontinuous Righthand Sides"; Clarke 1983.
"""

import math
import time
from dataclasses import dataclass, replace

import numpy as np

from gflow.flow.outcome import unseparated_result
from gflow.kkt.curvature import Curvature
from gflow.kkt.open_curvature import open_curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.switches import alive, smoothed
from gflow.kkt.variables import Variables, at_unit_margin
from gflow.limit.approach import weights_at
from gflow.limit.dead import with_dead_at_rest
from gflow.limit.earned import separable
from gflow.limit.following import follow, follow_back, start_at
from gflow.limit.kinked_newton import KinkedNewton
from gflow.limit.leaving import pushed_off, times_left
from gflow.limit.result import margin_at
from gflow.limit.search import Refiner, Search, run
from gflow.limit.sliding import slide
from gflow.limit.smooth import Smooth, with_dead_as_they_arrived
from gflow.limit.state import Found, State
from gflow.results import RESULTS


def search_at_kinks(search: Search, state: State) -> tuple[State, float]:
    """Searches with rounded kinks and at kinks in turn, with less smoothing each time.

    Returns:
        the last state, and the smoothing with which it was reached.
    """
    settings, smoothing, saddle = search.settings.kinks, search.smoothing, None
    while True:
        rounded = replace(search, problem=smoothed(search.problem, smoothing))
        state = run(Smooth(rounded), state)
        if state.final:
            return state, smoothing
        if search.layout.size > search.settings.refine.sizes.at_kinks:
            return search_off_kinks(search, state, smoothing)
        state = run(Kinked(search, rounded, smoothing), _unended(state))
        if state.found is not None or state.final:
            return state, smoothing
        saddle = state.left or saddle
        if smoothing < settings.least_smoothing:
            return _given_up(search, state, saddle), smoothing
        smoothing *= settings.less
        state = begun_anew(search, state)


def search_off_kinks(search: Search, state: State, smoothing: float) -> tuple[State, float]:
    """The exact flow from where a search with rounded kinks ended, for problems too large for the
    equations at kinks. Its limit is accepted if it lies at no kink.

    Returns:
        the last state, and the smoothing with which it was reached.
    """
    if state.found is None:
        return state, smoothing
    settings = search.settings
    shorter = replace(settings.kinks, most_steps=settings.kinks.most_steps_off)
    start = replace(begun_anew(search, state), failures=settings.kinks.most_caps)
    exact = run(Smooth(replace(search, settings=replace(settings, kinks=shorter))), start)
    if exact.found is not None and not lies_at_kink(search, exact.found.point):
        return exact, 0.0
    at_kink = replace(state, stages=exact.stages, result=RESULTS.not_at_kink)
    return (exact if exact.final else at_kink), smoothing


def lies_at_kink(search: Search, point: KKTPoint) -> bool:
    """Whether a switch of an example that pushes stands at its kink, to rounding."""
    problem, layout, settings = search.problem, search.layout, search.settings.refine
    newton = KinkedNewton(problem, layout, float(point.multipliers.max()), settings=settings)
    here = start_at(problem, layout, point.theta, point.multipliers, 0.0)
    at = newton.residuals(here, 0.0)
    near = (np.abs(at.values) <= settings.smoothing.near * at.scales) & alive(problem, at.scales)
    return bool(np.any(near & newton.pushing(point.multipliers, 0.0)[:, None]))


@dataclass(frozen=True, eq=False)
class Kinked(Refiner):
    """A refiner at kinks, from where the search with rounded kinks ended.

    Attributes:
        search: of the problem with its kinks.
        rounded: the same search, of the problem with rounded kinks.
        smoothing: mu, to which they are rounded.
    """

    search: Search
    rounded: Search
    smoothing: float

    def approach(self, state: State) -> State:
        """The state as it is: the flow has been followed with rounded kinks already, and from a
        saddle `refine` follows it.
        """
        return state

    def refine(self, state: State) -> State:
        """The KKT point by leading the smoothing to 0; or, where that fails or the state has just
        left a saddle, by following the flow along kinks.
        """
        if state.left is not None:
            saddle = state.left.point
            _, rates = state.left.unstable
            theta = state.direction * np.linalg.norm(saddle.theta)
            return self._slide(
                state, saddle.variables._replace(theta=theta), 0.0, float(rates.max())
            )
        if state.found is None:
            return self._slide(state, self._where_the_flow_stopped(state), self.smoothing)
        polished = state.found.point
        theta = with_dead_as_they_arrived(self.rounded, state, polished.theta)
        start = self._at(theta, polished.multipliers)
        state = self._follow(state, start)
        return state if state.found is not None else self._slide(state, start, self.smoothing)

    def retry(self, state: State) -> State:
        """The end of this search: `search_at_kinks` begins another one with less smoothing."""
        return state.ended(RESULTS.not_at_kink)

    def curvature(self, state: State, point: KKTPoint) -> Curvature:
        """The curvature. In systems within a subspace neurons next to dead are led to 0 with their
        angles held; a direction that is unstable only because they are is one of them, and gives
        way to that in which they rest (`gflow.limit.dead`), with the least smoothing.
        """
        search, refine = self.search, self.search.settings.refine
        problem, layout = search.problem, search.layout
        found = open_curvature(problem, layout, point, settings=refine.curvature)
        if point.linearized.basis is None:
            return found
        turning = smoothed(problem, refine.smoothing.steps.last)
        return with_dead_at_rest(
            turning, layout, point.theta, point.multipliers, found, dead=refine.dead
        )

    def beside(self, point: KKTPoint, direction: np.ndarray) -> KKTPoint:
        search, theta = self.search, direction * np.linalg.norm(point.theta)
        return follow_back(
            search.problem,
            search.layout,
            point,
            theta,
            tolerance=search.tolerance,
            settings=search.settings.refine,
        )

    def leave(self, state: State) -> State:
        """The state a little off the saddle, with the multipliers and coefficients of the saddle;
        or the end, if the slide has come back to this saddle from either side.
        """
        if self.search.deadline.passed():
            return state.ended(RESULTS.seconds_spent, final=True)
        if times_left(self.search, state) > 1:
            return state.ended(RESULTS.saddle)
        return pushed_off(self.search, state, self.search.settings.saddles.push_at_kinks)

    def _follow(self, state: State, start: Variables) -> State:
        search, begin = self.search, time.perf_counter()
        kinks = follow(
            search.problem,
            search.layout,
            start,
            self.smoothing,
            tolerance=search.tolerance,
            settings=search.settings.refine,
        )
        return self._with("kinks", kinks, state, time.perf_counter() - begin)

    def _slide(self, state: State, start: Variables, smoothing: float, rate: float = 0.0) -> State:
        """The flow along kinks to its rest.

        Args:
            smoothing, rate: see `gflow.limit.sliding.slide`.
        """
        search, begin = self.search, time.perf_counter()
        kinks, before = slide(
            search.problem,
            search.layout,
            start,
            smoothing,
            rate,
            tolerance=search.tolerance,
            settings=search.settings.refine,
        )
        state = replace(state, flow=replace(state.flow, vector=before))
        return self._with("sliding", kinks, state, time.perf_counter() - begin)

    def _with(self, kind: str, kinks: KKTPoint, state: State, seconds: float) -> State:
        """The state after a stage that ended at a point at kinks."""
        found = Found(kinks) if kinks.converged else None
        values = _values(kinks, self.search.problem.degree)
        state = state.moved(
            kind, kinks.direction, num_steps=kinks.num_iterations, seconds=seconds, **values
        )
        return replace(state, found=found, kinks=kinks)

    def _where_the_flow_stopped(self, state: State) -> Variables:
        """The end of the flow, scaled to unit margin, with multipliers proportional to its weights
        (`gflow.kkt.variables.at_unit_margin`).
        """
        rounded, weights = self.rounded, weights_at(self.rounded, state)
        start = at_unit_margin(rounded.problem, rounded.layout, state.flow.vector, weights)
        return self._at(start.theta, start.multipliers)

    def _at(self, theta: np.ndarray, multipliers: np.ndarray) -> Variables:
        """A point with the angles of the rounded switches."""
        problem, layout = self.search.problem, self.search.layout
        return start_at(problem, layout, theta, multipliers, self.smoothing)


def _values(kinks: KKTPoint, degree: float) -> dict[str, float]:
    """Stationarity, and the margin of a KKT point."""
    margin = margin_at(kinks.theta, degree) if kinks.converged else math.nan
    return {"stationarity": kinks.residual, "margin": margin}


def _unended(state: State) -> State:
    """The last state of a search with rounded kinks, as the first one of a search at kinks.

    Saddles of the rounded problem are forgotten: they are not saddles of the problem with kinks.
    """
    return replace(state, result=None, left=None, failures=0)


def begun_anew(search: Search, state: State) -> State:
    """The state where a search at kinks failed, as the first one of a search with less smoothing or
    none, whose flow starts from this direction at the cap.
    """
    return replace(
        _unended(state),
        flow=replace(state.flow, vector=state.direction),
        cap=replace(state.cap, reached=True),
        handover_at=search.settings.flow.handover,
        found=None,
    )


def _given_up(search: Search, state: State, saddle: Found | None) -> State:
    """The end of the search where no smoothing led to a KKT point that the flow does not leave.

    If a saddle at kinks was met, the search ends at the last one. Otherwise it ends where it
    stands, as `not_separated` or `radius_above_margin` if the examples were separated only with
    rounded kinks: of networks that are linear in their inputs only if no direction separates them,
    since the search may have lost one of a tiny margin.
    """
    if saddle is not None:
        kinks = saddle.point
        values = _values(kinks, search.problem.degree)
        state = state.moved("back", kinks.direction, num_steps=0, seconds=0.0, **values)
        return replace(state, found=saddle, kinks=kinks, result=RESULTS.saddle)
    params = search.layout.unflatten(state.direction)
    smallest = (
        float(np.min(margins(params)))
        for margins in (search.problem.margins, search.problem.clean_margins)
    )
    if separable(search.problem):
        return state
    return replace(state, result=unseparated_result(search.problem, *smallest) or state.result)
