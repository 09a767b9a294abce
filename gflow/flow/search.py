"""The search for the direction in which the flow ends, and for what kind of point it is.

Four things in turn, until nothing is left to escape:

1. the flow with capped temperature, until its direction hardly moves;
2. Newton's method on the KKT system, to rounding;
3. the second-order verdict: a maximum of the margin or, with frozen perturbations, a stable rest
   point; or a saddle;
4. from a saddle, a push along the directions in which the flow leaves it, in the proportions that
   the flow's own offset from the saddle grows to. A saddle that is met a second time tells that
   the cap holds the flow back where the true one would pass: the cap is raised.
"""

import math
import time
from typing import Any

import jax
import numpy as np

from gflow._layout import Layout
from gflow._typing import Params
from gflow.certificate import Certificate, certify
from gflow.curvature import Curvature, curvature
from gflow.dead import with_dead_at_rest
from gflow.drift import Drift, drift
from gflow.flow.circling import circling
from gflow.flow.driver import integrate
from gflow.flow.limit import Limit, Stage
from gflow.flow.until import Until
from gflow.kkt import system
from gflow.polish import FEW_MARGINS, Polished, polish_again, polish_capped, polish_drifted
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.trajectory import Trajectory
from gflow.verdict import is_maximum, verdict

# Stationarity at which the flow is handed to Newton's method; and after a saddle, which must be
# left for good, however slowly.
_CLOSE, _CLOSEST, _ACCURACY = 1e-3, 1e-7, 0.1
_MOST_RAISES = 4
# The flow is followed at infinite kappa where so many colder caps did not help.
_COLDER = 1
# Whether the flow circles about a point that it leaves in spirals is tried so cold, from so close
# by, in so many steps.
_CIRCLING_LOGITS, _CIRCLING_PUSH, _MOST_CIRCLING = 1e3, 1e-3, 1500
# Steps off a saddle, where cooling leads on from anywhere close by.
_MOST_FROM_SADDLE = 200
# The flow's direction moves less and less; this far out it has nowhere to go.
_FARTHEST = 1e5
_PUSH = 5e-2
_CAP_FACTOR, _LARGEST_CAP = 10.0, 1e7
_SAME = 1e-6
# Offsets from a saddle below this part of how far the flow stopped from it are rounding.
_ROUNDING = 1e-15
# Coordinates below this part of the largest belong to neurons that have died out.
_DEAD = 1e-7
# Of so many weights, those of neurons that are alive may be as small.
_MANY = 1500
_FAMILY_STEPS = 1e-3, -1e-3, 1e-5, -1e-5


class Search:
    """The state of one search. Directions are flat vectors of norm 1."""

    def __init__(
        self,
        problem: Problem,
        params: Params,
        *,
        tolerance: float,
        kappa_cap: float,
        options: dict[str, Any],
    ):
        self.problem, self.tolerance, self.options = problem, tolerance, options
        self.layout = Layout.of(params)
        self.log_cap = math.log(kappa_cap)
        self.params = params
        self.capped, self.most_raises = False, _MOST_RAISES
        self.smooth = True
        vector = np.asarray(self.layout.flatten(params))
        self.arrived = self.now = vector / np.linalg.norm(vector)
        self.stages: list[Stage] = []
        self.first: Trajectory | None = None
        self.polished: Polished | None = None
        self.curvature: Curvature | None = None
        self.verdict = "unknown"
        self.by_rounding = False
        self.separated = False
        self.saddles: list[np.ndarray] = []

    def run(self, escape: bool, max_rounds: int) -> RESULTS:
        """All stages; how it ended."""
        close = _CLOSE
        for round_ in range(max_rounds):
            result = self.approach(close)
            if result is not None:
                return result
            assert self.polished is not None
            self.curvature = self.curve(self.polished)
            self.verdict = self.judged(self.curvature)
            if self.verdict != "saddle":
                return self.settled()
            if not escape or round_ == max_rounds - 1:
                break
            if self.circles_about():
                return RESULTS.circling
            self.raise_cap_on_return()
            self.leave()
            # At a distance d along a direction left at rate r, the stationarity is r d.
            close = float(np.clip(0.1 * self.rate() * _PUSH, _CLOSEST, _CLOSE))
        return RESULTS.saddle

    def approach(self, close: float) -> RESULTS | None:
        """The flow and Newton's method, until that converges; the outcome where it does not.

        Where it does not, margins that are not active in the limit still look so: a colder cap
        tells them apart. Or the flow has yet to come closer. Or it drifts, and no KKT point is
        near: then it is followed at infinite kappa.
        """
        for attempt in range(1 + self.most_raises):
            run = self.flow(close)
            self.separated = bool(run.margin[-1] > 0)
            if not self.separated:
                return run.result
            if self.circles(run):
                return RESULTS.circling
            if self.newton().converged:
                return None
            drifted = self.drifted() if attempt == _COLDER else None
            if drifted is not None:
                return None if self.polished is not None else RESULTS.drifting
            self.now, close = self.arrived, max(0.1 * close, _CLOSEST)
            self.raise_cap()
        return RESULTS.not_polished

    def flow(self, close: float) -> Trajectory:
        """The capped flow, first to the cap and then until it is close to stationary."""
        if not self.capped:
            run = self.flow_until(Until(log_kappa=self.log_cap))
            if not run.successful:
                return run
        return self.flow_until(Until(stationarity=close, log_kappa=_FARTHEST, accuracy=_ACCURACY))

    def flow_until(self, until: Until) -> Trajectory:
        """One run of the capped flow."""
        seconds = time.perf_counter()
        cap = math.exp(self.log_cap)
        run = integrate(self.problem, self.params, until=until, kappa_cap=cap, **self.budgeted())
        seconds = time.perf_counter() - seconds
        self.first = run if self.first is None else self.first
        self.arrived = np.asarray(run.vectors[-1])
        self.params = self.at_kappa(run.log_kappa[-1], self.arrived)
        self.capped = bool(run.log_kappa[-1] >= self.log_cap * (1 - 1e-9))
        values = float(run.stationarity[-1]), float(run.margin[-1])
        moved = self.move_to(self.arrived)
        self.stages.append(Stage("flow", run.stats["num_steps"], moved, *values, seconds))
        return run

    def budgeted(self) -> dict[str, Any]:
        """The options of a run: off a saddle, with fewer steps where cooling leads on."""
        data = self.problem.dataset
        if not self.saddles or len(data.x) * max(data.num_outputs - 1, 1) <= FEW_MARGINS:
            return self.options
        return {**self.options, "max_steps": min(self.options["max_steps"], _MOST_FROM_SADDLE)}

    def newton(self) -> Polished:
        """Newton's method from where the flow stopped."""
        seconds = time.perf_counter()
        weights = self.weights()
        polished = polish_capped(self.problem, self.layout, self.arrived, weights, self.log_cap)
        seconds = time.perf_counter() - seconds
        self.keep(polished, seconds)
        return polished

    def keep(self, polished: Polished, seconds: float) -> None:
        """Records where Newton's method ended."""
        self.polished = polished if polished.residual <= self.tolerance else None
        self.verdict = "unknown" if self.polished is None else self.verdict
        length = float(np.linalg.norm(polished.theta))
        margin = length**-self.problem.degree if polished.converged else math.nan
        moved = self.move_to(polished.direction)
        count = polished.num_iterations
        self.stages.append(Stage("newton", count, moved, polished.residual, margin, seconds))

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
            until=Until(stationarity=_CLOSEST, log_kappa=_FARTHEST, accuracy=_ACCURACY),
            kappa_cap=math.exp(log_kappa),
            **self.options | {"max_steps": min(self.options["max_steps"], _MOST_CIRCLING)},
        )
        moved = float(np.linalg.norm(np.asarray(run.vectors[-1]) - self.now))
        values = moved, float(run.stationarity[-1]), float(run.margin[-1])
        seconds = time.perf_counter() - seconds
        self.stages.append(Stage("flow", run.stats["num_steps"], *values, seconds))
        return self.circles(run)

    def circles(self, run: Trajectory) -> bool:
        """Whether the flow circles where it should have come to rest, which is recorded."""
        if run.successful or not self.smooth:
            return False
        found = circling(np.asarray(run.vectors), run.log_norm, run.margin)
        if found is not None:
            turns, radius, speed, margin, growth = found
            self.stages.append(
                Stage("circling", round(turns), radius, speed, margin, 0.0, log_growth=growth)
            )
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
        values = found.num_iterations, moved, found.speed, margin, seconds
        self.stages.append(Stage("drift", *values, log_growth=found.log_growth))
        if found.stuck:
            return None
        self.arrived = found.before
        if found.rests:
            seconds = time.perf_counter()
            polished = polish_drifted(self.problem, self.layout, found)
            if polished.converged:
                self.keep(polished, time.perf_counter() - seconds)
        return found

    def weights(self) -> np.ndarray:
        """The weights p of the capped flow where it stopped, flattened."""
        unit = self.layout.unflatten(self.arrived)
        return np.asarray(self.problem.ascent(unit, self.log_cap).weights).ravel()

    def curve(self, polished: Polished) -> Curvature:
        """The curvature at the KKT point, dead neurons in the direction in which they arrived or,
        where that would turn, to which they turn.
        """
        theta, at = polished.theta, polished.system
        nearby = theta if theta.size > _MANY else self.near_dead(theta)
        if nearby is not theta:
            hessian = system(self.problem, self.layout, nearby, polished.multipliers).hessian
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
        if min(gaps, default=1.0) < _SAME and self.log_cap < math.log(_LARGEST_CAP):
            self.raise_cap()
        self.saddles.append(self.now)

    def raise_cap(self) -> None:
        """The next flow has a colder cap to reach first."""
        self.log_cap += math.log(_CAP_FACTOR)
        self.capped = False

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
        size = np.maximum(np.abs(offset), 1e-300)
        # The time at which the first of the growing offsets reaches the length of the push.
        wait = max(np.min(np.log(length / size) / rates), 0.0)
        push = vectors @ (np.copysign(size, offset) * np.exp(rates * wait))
        pushed = self.now + push * (length / np.linalg.norm(push))
        moved = self.move_to(pushed / np.linalg.norm(pushed))
        self.params = self.at_cap(self.now)
        margin = float(np.min(self.problem.margins(self.layout.unflatten(self.now))))
        self.stages.append(Stage("escape", 0, moved, math.nan, margin, 0.0))

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
        """Parameters of this direction with kappa at the cap."""
        return self.at_kappa(self.log_cap, vector)

    def at_kappa(self, log_kappa: float, vector: np.ndarray) -> Params:
        """Parameters of this direction with this kappa, or that of the cap if it is larger."""
        length = math.exp(min(float(log_kappa), self.log_cap) / self.problem.degree)
        return self.layout.unflatten(length * vector)

    def certified(self) -> Certificate:
        """The certificate of the present direction."""
        return certify(self.problem, self.at_cap(self.now))

    def limit(self, result: RESULTS) -> Limit:
        """Everything found, certified."""
        assert self.first is not None
        direction = self.layout.unflatten(self.now)
        certificate = self.certified()
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
        )
