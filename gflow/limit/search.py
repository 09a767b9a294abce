"""The search for the direction in which the flow ends, and for what kind of point it is.

First the true flow, until its smallest margin is so many logits (`kappa min_i q_i(u)`); the kappa
that it has there is the cap kappa_c. Then four things in turn, until nothing is left to escape:

1. the flow with its temperature capped at kappa_c, until its direction hardly moves (the handover);
2. Newton's method on the KKT system, to rounding;
3. the second-order verdict: a maximum of the margin or, with frozen perturbations, a stable rest
   point; or a saddle;
4. from a saddle, a push along the directions in which the flow leaves it, in the proportions that
   the flow's own offset from the saddle grows to. A saddle that is met a second time tells that
   the cap holds the flow back where the true one would pass: the cap is raised.

Where the examples are never separated by so many logits, there is no capped stage and no limit.
"""

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from gflow._layout import Layout
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.flow.driver import integrate
from gflow.flow.outcome import unseparated_result
from gflow.flow.until import Until
from gflow.kkt.certificate import Certificate, certify
from gflow.kkt.curvature import Curvature, curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.system import kkt_system
from gflow.limit.basin import Handover, close
from gflow.limit.circling import circling
from gflow.limit.dead import with_dead_at_rest
from gflow.limit.drift import Drift, drift
from gflow.limit.earned import earned
from gflow.limit.itinerary import Visit, departure, growth_per_log_kappa
from gflow.limit.polish import polish_again, polish_capped, polish_drifted
from gflow.limit.result import Limit, Stage
from gflow.limit.verdict import is_maximum, verdict
from gflow.measures import MAX_LOG_KAPPA
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.trajectory import Trajectory

# Stationarity at which the flow is handed to Newton's method; and after a saddle, which must be
# left for good, however slowly.
CLOSE, _CLOSEST, _ACCURACY = 1e-3, 1e-7, 0.1
_MOST_RAISES = 4
# The flow is followed at infinite kappa where so many colder caps did not help.
_COLDER = 1
# Whether the flow circles about a point that it leaves in spirals is tried so cold, from so close
# by, in so many steps.
_CIRCLING_LOGITS, _CIRCLING_PUSH, _MOST_CIRCLING = 1e3, 1e-3, 1500
# Steps off a saddle, where cooling leads on from anywhere close by.
_MOST_FROM_SADDLE = 200
# Fewer margins than this get all steps of a run off a saddle too.
_FEW_MARGINS = 64
# In units of log kappa beyond the cap: no flow is followed farther.
_FARTHEST = 1e5
# How closely the cap's logits are met; and the most that a start may have, beyond which products of
# kappa with margins have lost too many digits for the weights p.
_CAP_ACCURACY, _MOST_LOGITS = 1e-2, 1e10
_PUSH = 5e-2
_CAP_FACTOR, _MOST_RAISED = 10.0, 1e4
_SAME = 1e-6
# Offsets from a saddle below this part of how far the flow stopped from it are rounding.
_ROUNDING = 1e-15
# Offsets from a saddle below this many tolerances of the flow may be its errors.
_TOLD_APART = 100.0
# Coordinates below this part of the largest belong to neurons that have died out.
_DEAD = 1e-7
# Of so many weights, those of neurons that are alive may be as small.
_MANY = 1500
_FAMILY_STEPS = 1e-3, -1e-3, 1e-5, -1e-5
# A log kappa beyond what a flow may have, which says so.
BEYOND_KAPPA = MAX_LOG_KAPPA + 1.0
# Outcomes after which no further stage is begun; and those of a run near its rest from which
# Newton's method may lead on all the same.
_HALTING = ("interrupted", "not_finite", "kappa_overflow", "seconds_spent")
_NEARLY = ("successful", "step_underflow", "chattering")


class Start(NamedTuple):
    """Where a search starts: a direction and its kappa, which may be no floating-point number.

    Attributes:
        vector: u, of norm 1. Shape (P,).
        log_kappa: `L log |params|`.
        first: the trajectory that led here, or None.
        goes_on: whether the true flow goes on with that trajectory.
        stages: what was done before.
    """

    vector: np.ndarray
    log_kappa: float
    first: Trajectory | None = None
    goes_on: bool = False
    stages: tuple[Stage, ...] = ()


class Cap(NamedTuple):
    """Where the temperature is capped.

    Attributes:
        logits: the smallest margin `kappa min_i q_i(u)` that the true flow reaches first.
        log_kappa: a log kappa that it reaches first too; minus infinity for none.
    """

    logits: float
    log_kappa: float = -math.inf


class Search:
    """The state of one search. Directions are flat vectors of norm 1."""

    def __init__(
        self,
        problem: Problem,
        layout: Layout,
        start: Start,
        *,
        cap: Cap,
        tolerance: float,
        handover: float,
        options: dict[str, Any],
        deadline: Deadline,
    ):
        self.problem, self.layout, self.tolerance = problem, layout, tolerance
        self.options, self.deadline, self.close = options, deadline, handover
        self.cap = cap
        # log kappa_c, infinite until the true flow has reached the logits of the first cap.
        self.log_cap, self.least_log_cap = math.inf, start.log_kappa
        self.capped, self.cap_logits = False, math.nan
        self.arrived = self.now = start.vector
        # Of the flow, which where it is capped may be far beyond the cap; and of its parameters.
        self.log_kappa = self.own_log_kappa = start.log_kappa
        self.most_raises = _MOST_RAISES
        # Whether the flow may drift or circle; one whose kinks are rounded slides instead.
        self.smooth = True
        self.stages: list[Stage] = list(start.stages)
        self.first, self.goes_on = start.first, start.goes_on
        self.polished: KKTPoint | None = None
        self.curvature: Curvature | None = None
        self.verdict = "unknown"
        # Which way a saddle was left: decided by rounding; or by errors of the flow.
        self.by_rounding = self.by_error = False
        self.separated = False
        # What ends the search at once: an interrupt, NaN, or the caller's own budget spent.
        self.halted, self.max_steps = False, options["max_steps"]
        self.saddles: list[np.ndarray] = []
        self.visits: list[Visit] = []
        self.handovers: list[Handover] = []

    def run(self, escape: bool, max_rounds: int) -> RESULTS:
        """All stages; how it ended."""
        close = self.close
        for round_ in range(max_rounds):
            result = self.approach(close)
            if result is not None:
                return result
            self.judge()
            self.visit()
            if self.verdict != "saddle":
                return self.settled()
            if not escape or round_ == max_rounds - 1:
                break
            if self.circles_about():
                return RESULTS.circling
            self.raise_cap_on_return()
            self.leave()
            # At a distance d along a direction left at rate r, the stationarity is r d.
            close = float(np.clip(0.1 * self.rate() * _PUSH, _CLOSEST, close))
        return RESULTS.saddle

    def approach(self, close: float) -> RESULTS | None:
        """The flow and Newton's method, until that converges; the outcome where it does not.

        Where it does not, margins that are not active in the limit still look so: a colder cap
        tells them apart. Or the flow has yet to come closer. Or it drifts, and no KKT point is
        near: then it is followed at infinite kappa.
        """
        for raises in range(1 + self.most_raises):
            if raises:
                self.now, close = self.arrived, max(0.1 * close, _CLOSEST)
                self.raise_cap()
            result = self.flow(close)
            if result is not None:
                return result
            self.newton()
            if self.polished is not None:
                return None
            drifted = self.drifted() if raises == _COLDER else None
            if drifted is not None:
                return None if self.polished is not None else RESULTS.drifting
        self.now = self.arrived
        return RESULTS.not_polished

    def flow(self, close: float) -> RESULTS | None:
        """The true flow to the cap, and the capped one until it is close to stationary; why there
        is nothing to hand over, or None.
        """
        if not self.capped:
            run = self.to_cap()
            if not run.successful:
                return run.result
            self.set_cap(run)
        return self.near_rest(self.capped_flow(close))

    def to_cap(self) -> Trajectory:
        """The true flow until its smallest margin is as many logits as the cap asks for."""
        run = self.flow_until(Until(logits=self.cap.logits, accuracy=_CAP_ACCURACY))
        if run.successful and run.log_kappa[-1] < self.cap.log_kappa:
            run = self.flow_until(Until(log_kappa=self.cap.log_kappa))
        return run

    def set_cap(self, run: Trajectory) -> None:
        """Caps the temperature where the true flow stands, never below where it started."""
        margin = float(run.margin[-1])
        coldest = min(math.log(_MOST_LOGITS) - math.log(margin), MAX_LOG_KAPPA)
        self.log_cap = min(max(float(run.log_kappa[-1]), self.least_log_cap), coldest)
        self.cap_logits = math.exp(self.log_cap) * margin
        self.own_log_kappa, self.capped = self.log_cap, True

    def capped_flow(self, close: float) -> Trajectory:
        """The capped flow until it is close to stationary."""
        farthest = self.log_cap + _FARTHEST
        return self.flow_until(Until(stationarity=close, log_kappa=farthest, accuracy=_ACCURACY))

    def near_rest(self, run: Trajectory) -> RESULTS | None:
        """Why a capped run cannot be handed to Newton's method; None where it can."""
        self.separated = bool(run.margin[-1] > 0)
        arrived = run.successful and run.stats["stopped_by"] == "stationarity"
        self.handovers.append(Handover(arrived, float(run.stationarity[-1]), math.nan))
        if run.result_name in _HALTING:
            return run.result
        if not self.separated:
            return unseparated_result(self.problem, run.margin[-1], run.clean_margin[-1])
        if self.circles(run):
            return RESULTS.circling  # pyright: ignore[reportReturnType]
        shortened = run.result_name == "step_budget_spent" and not self.halted
        return None if shortened or run.result_name in _NEARLY else run.result

    def flow_until(self, until: Until) -> Trajectory:
        """One run of the flow, capped once the cap is set."""
        seconds = time.perf_counter()
        cap = math.exp(self.log_cap) if self.capped else None
        start, before = self.at_kappa(self.own_log_kappa, self.arrived), 0
        if self.goes_on and self.first is not None:
            start, before = self.first, int(self.first.stats["num_steps"])
        run = integrate(self.problem, start, until=until, kappa_cap=cap, **self.budgeted())
        seconds = time.perf_counter() - seconds
        self.first = run if self.goes_on or self.first is None else self.first
        self.goes_on = False
        self.log_kappa += float(run.log_kappa[-1]) - self.own_log_kappa
        self.arrived = np.asarray(run.vectors[-1])
        self.own_log_kappa = float(run.log_kappa[-1])
        if self.capped:
            self.own_log_kappa = min(self.own_log_kappa, self.log_cap)
        count = int(run.stats["num_steps"]) - before
        spent = count >= self.max_steps
        self.halted |= run.result_name in _HALTING or (spent and not run.successful)
        values = float(run.stationarity[-1]), float(run.margin[-1])
        moved = self.move_to(self.arrived)
        self.stages.append(Stage("flow", count, moved, *values, seconds, self.log_kappa))
        return run

    def budgeted(self) -> dict[str, Any]:
        """The options of a run: off a saddle, with fewer steps where cooling leads on."""
        data = self.problem.dataset
        options = {**self.options, "max_seconds": self.deadline.left()}
        if not self.saddles or len(data.x) * max(data.num_outputs - 1, 1) <= _FEW_MARGINS:
            return options
        return {**options, "max_steps": min(self.options["max_steps"], _MOST_FROM_SADDLE)}

    def newton(self) -> KKTPoint:
        """Newton's method from where the flow stopped."""
        seconds = time.perf_counter()
        polished = polish_capped(
            self.problem, self.layout, self.arrived, self.weights(), self.log_cap, self.tolerance
        )
        seconds = time.perf_counter() - seconds
        self.keep(polished, seconds)
        return polished

    def keep(self, polished: KKTPoint, seconds: float) -> None:
        """Records where Newton's method ended."""
        good = polished.converged and polished.residual <= self.tolerance
        self.polished = polished if good else None
        self.verdict = "unknown" if self.polished is None else self.verdict
        length = float(np.linalg.norm(polished.theta))
        margin = length**-self.problem.degree if polished.converged else math.nan
        moved = self.move_to(polished.direction)
        if good and self.handovers:
            self.handovers[-1] = self.handovers[-1]._replace(displacement=moved)
        count = polished.num_iterations
        values = moved, polished.residual, margin, seconds, self.log_kappa
        self.stages.append(Stage("newton", count, *values))

    def circles_about(self) -> bool:
        """Whether the flow, let go beside a KKT point that it leaves in spirals, circles there."""
        assert self.curvature is not None and self.polished is not None
        if not (self.smooth and self.curvature.spirals):
            return False
        seconds, degree = time.perf_counter(), self.problem.degree
        margin = float(np.linalg.norm(self.polished.theta)) ** -degree
        log_kappa = math.log(_CIRCLING_LOGITS / margin)
        beside = self.now + _CIRCLING_PUSH * self.curvature.vectors[:, 0]
        length = math.exp(log_kappa / degree) / np.linalg.norm(beside)
        run = integrate(
            self.problem,
            self.layout.unflatten(length * beside),
            until=Until(stationarity=_CLOSEST, log_kappa=log_kappa + _FARTHEST, accuracy=_ACCURACY),
            kappa_cap=math.exp(log_kappa),
            **self.budgeted() | {"max_steps": min(self.options["max_steps"], _MOST_CIRCLING)},
        )
        moved = float(np.linalg.norm(np.asarray(run.vectors[-1]) - self.now))
        values = moved, float(run.stationarity[-1]), float(run.margin[-1])
        seconds = time.perf_counter() - seconds
        count = int(run.stats["num_steps"])
        self.stages.append(Stage("flow", count, *values, seconds, self.log_kappa))
        return self.circles(run)

    def circles(self, run: Trajectory) -> bool:
        """Whether the flow circles where it should have come to rest, which is recorded."""
        if run.successful or not self.smooth:
            return False
        found = circling(np.asarray(run.vectors), run.log_norm, run.margin)
        if found is not None:
            turns, radius, speed, margin, growth = found
            values = radius, speed, margin, 0.0, self.log_kappa
            self.stages.append(Stage("circling", round(turns), *values, log_growth=growth))
        return found is not None

    def drifted(self) -> Drift | None:
        """Follows the flow at infinite kappa from where it stopped, and Newton's method from there;
        None where its steps could not be solved, or are too large.
        """
        if not self.smooth or self.layout.size > _MANY:
            return None
        seconds = time.perf_counter()
        self.now, self.polished, self.verdict = self.arrived, None, "unknown"
        found = drift(self.problem, self.layout, self.arrived, self.weights())
        seconds = time.perf_counter() - seconds
        margin = float(np.linalg.norm(found.theta)) ** -self.problem.degree
        moved = self.move_to(found.direction)
        self.log_kappa += self.problem.degree * found.log_growth
        values = found.num_iterations, moved, found.speed, margin, seconds, self.log_kappa
        self.stages.append(Stage("drift", *values, log_growth=found.log_growth))
        if found.stuck:
            return None
        self.handovers.append(Handover(False, found.speed, math.nan))
        self.arrived = found.before
        if found.rests:
            seconds = time.perf_counter()
            polished = polish_drifted(self.problem, self.layout, found, self.tolerance)
            if polished.converged:
                self.keep(polished, time.perf_counter() - seconds)
        return found

    def judge(self) -> None:
        """What kind of point Newton's method found."""
        assert self.polished is not None
        self.curvature = self.curve(self.polished)
        self.verdict = self.judged(self.curvature)

    def visit(self) -> None:
        """Notes the KKT point that was found."""
        before = self.visits[-1] if self.visits else None
        told_apart = before is None or (before.certain and not self.by_error)
        self.visits.append(
            Visit(
                direction=self.layout.unflatten(self.now),
                margin=self.stages[-1].margin,
                verdict=self.verdict,
                arrival=self.log_kappa,
                departure=math.inf,
                growth=0.0,
                certain=told_apart and self.close_by(),
            )
        )

    def close_by(self) -> bool:
        """Whether the flow came so close to the point that it can end nowhere else."""
        return bool(self.handovers) and close(self.handovers[-1])

    def weights(self) -> np.ndarray:
        """The weights p of the capped flow where it stopped, flattened."""
        unit = self.layout.unflatten(self.arrived)
        return np.asarray(self.problem.ascent(unit, self.log_cap).weights).ravel()

    def curve(self, polished: KKTPoint) -> Curvature:
        """The curvature at the KKT point, dead neurons in the direction in which they arrived or,
        where that would turn, to which they turn.
        """
        theta, at = polished.theta, polished.linearized
        nearby = theta if theta.size > _MANY else self.near_dead(theta)
        if nearby is not theta:
            hessian = kkt_system(self.problem, self.layout, nearby, polished.multipliers).hessian
            at = at._replace(hessian=hessian)
        found = curvature(at, polished.active)
        return with_dead_at_rest(self.problem, self.layout, nearby, polished.multipliers, found)

    def near_dead(self, theta: np.ndarray) -> np.ndarray:
        """The point with dead neurons next to nothing in the direction in which they arrived."""
        dead = np.abs(theta) < _DEAD * np.abs(theta).max()
        remains = np.abs(self.arrived[dead]).max(initial=0.0)
        if not remains > 0:
            return theta
        return np.where(dead, 0.1 * _DEAD * np.abs(theta).max() / remains * self.arrived, theta)

    def raise_cap_on_return(self) -> None:
        """Raises the cap where the flow has come back to a saddle that it was to leave."""
        gaps = [np.linalg.norm(self.now - saddle) for saddle in self.saddles]
        if min(gaps, default=1.0) < _SAME and self.cap_logits < _MOST_RAISED * self.cap.logits:
            self.raise_cap()
        self.saddles.append(self.now)

    def raise_cap(self) -> None:
        """The next flow has a colder cap to reach first."""
        self.own_log_kappa, self.capped = self.log_cap, False
        self.cap = Cap(_CAP_FACTOR * self.cap_logits)

    def leave(self, length: float = _PUSH) -> None:
        """Starts the next flow a little off the saddle, where the flow itself would leave it.

        Args:
            length: of the push.
        """
        assert self.curvature is not None
        unstable = self.curvature.unstable
        vectors, rates = self.curvature.vectors[:, unstable], -self.curvature.values[unstable]
        gap = self.arrived - self.now
        offset = np.linalg.lstsq(vectors, gap, rcond=None)[0]
        self.by_rounding |= bool(np.abs(offset).max() < _ROUNDING * np.linalg.norm(gap))
        self.by_error |= bool(np.abs(offset).max() < _TOLD_APART * self.options["tolerance"])
        size = np.maximum(np.abs(offset), 1e-300)
        degree = self.problem.degree
        left = departure(self.log_kappa, offset, rates, length, degree)
        push = vectors @ (
            np.copysign(size, offset) * np.exp((left - self.log_kappa) / degree * rates)
        )
        self.log_kappa = left
        self.visits[-1] = dataclasses.replace(
            self.visits[-1],
            departure=left,
            growth=growth_per_log_kappa(float(rates.max()), degree),
        )
        pushed = self.now + push * (length / np.linalg.norm(push))
        moved = self.move_to(pushed / np.linalg.norm(pushed))
        self.arrived = self.now
        margin = float(np.min(self.problem.margins(self.layout.unflatten(self.now))))
        self.stages.append(Stage("escape", 0, moved, math.nan, margin, 0.0, self.log_kappa))

    def rate(self) -> float:
        """How fast the flow leaves the saddle."""
        assert self.curvature is not None
        return -float(self.curvature.values.min())

    def settled(self) -> RESULTS:
        """The outcome at a point that nothing leaves."""
        if self.verdict == "degenerate":
            return RESULTS.degenerate
        if self.by_rounding:
            return RESULTS.decided_by_rounding
        return RESULTS.successful  # pyright: ignore[reportReturnType]

    def judged(self, curvature: Curvature) -> str:
        """The second-order verdict in words."""
        here = self.problem_of_found(), self.layout, self.found()
        return verdict(curvature, lambda: self.in_family(curvature), lambda: is_maximum(*here))

    def in_family(self, curvature: Curvature) -> bool:
        """Whether KKT points of the same margin lie along the neutral directions."""
        neutral = curvature.vectors[:, curvature.neutral]
        side = neutral @ np.random.default_rng(0).normal(size=neutral.shape[1])
        side /= np.linalg.norm(side)
        # A family may end close by, at a kink or where another margin becomes active.
        return any(self.in_family_along(step * side) for step in _FAMILY_STEPS)

    def in_family_along(self, step: np.ndarray) -> bool:
        """Whether there is a KKT point of the same margin one such step away."""
        here = self.found()
        shifted = here.direction + step
        other = self.polished_again(shifted / np.linalg.norm(shifted))
        lengths = np.linalg.norm(other.theta), np.linalg.norm(here.theta)
        gone = np.linalg.norm(other.direction - here.direction)
        same = abs(lengths[0] / lengths[1] - 1) < 1e-9
        return bool(other.converged and same and gone > 0.1 * np.linalg.norm(step))

    def problem_of_found(self) -> Problem:
        """The problem whose KKT point was found."""
        return self.problem

    def found(self) -> Any:
        """The KKT point that was found, with its `theta` and its `direction`."""
        return self.polished

    def polished_again(self, direction: np.ndarray) -> Any:
        """The KKT point that Newton's method finds from beside the one that was found."""
        return polish_again(self.problem, self.layout, direction, self.found().multipliers)

    def heading(self) -> bool:
        """Whether the margin rises from the flow's end to the polished point."""
        if self.polished is None:
            return False
        shares = np.linspace(0.0, 1.0, 9)[:, None]
        line = (1 - shares) * self.arrived + shares * self.polished.direction
        line /= np.linalg.norm(line, axis=1, keepdims=True)
        values = [np.min(self.problem.margins(self.layout.unflatten(vector))) for vector in line]
        return bool(np.all(np.diff(values) >= -1e-3 * np.ptp(values)))

    def move_to(self, vector: np.ndarray) -> float:
        """Sets the present direction; how far it moved."""
        moved = float(np.linalg.norm(vector - self.now))
        self.now = vector
        return moved

    def at_cap(self, vector: np.ndarray) -> Params:
        """Parameters of this direction with kappa at the cap, or 1 where there is none yet."""
        return self.at_kappa(self.log_cap if math.isfinite(self.log_cap) else 0.0, vector)

    def at_kappa(self, log_kappa: float, vector: np.ndarray) -> Params:
        """Parameters of this direction with this kappa, or one just beyond what a flow may have."""
        length = math.exp(min(log_kappa, BEYOND_KAPPA) / self.problem.degree)
        return self.layout.unflatten(length * vector)

    def certified(self) -> Certificate:
        """The certificate of the present direction."""
        return certify(self.problem, self.at_cap(self.now))

    def basin(self) -> str:
        """Whether the point found is the limit of this flow; see `gflow.limit.basin`."""
        sure = not self.saddles and not self.by_rounding and self.polished is not None
        return "confirmed" if sure and self.close_by() else "undecided"

    def residual(self) -> float:
        """Of the KKT point that was found; infinite without one."""
        return math.inf if self.polished is None else self.polished.residual

    def limit(self, result: RESULTS) -> Limit:
        """Everything found, certified."""
        assert self.first is not None
        direction = self.layout.unflatten(self.now)
        certificate = self.certified()
        result = earned(result, certificate, self.residual(), self.tolerance, self.verdict)
        handover = self.handovers[-1] if self.handovers else Handover(False, math.nan, math.nan)
        return Limit(
            problem=self.problem,
            direction=jax.tree.map(np.asarray, direction),
            margin=certificate.normalized_margin,
            certificate=certificate,
            trajectory=self.first,
            result=result,
            verdict=self.verdict,
            curvature=self.curvature,
            stages=tuple(self.stages),
            heading=self.heading(),
            polished=self.polished,
            held_margin=certificate.held_margin,
            basin=self.basin(),
            cap_logits=self.cap_logits,
            log_kappa_cap=self.log_cap if math.isfinite(self.log_cap) else math.nan,
            handover_stationarity=handover.stationarity,
            newton_displacement=handover.displacement,
            itinerary=tuple(self.visits),
        )
