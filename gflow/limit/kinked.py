"""The search for a limit at kinks: with plain ReLUs, or attacks that follow signs.

The flow slides along kinks, where no solver of smooth equations follows it. So it is followed with
its kinks rounded (`gflow.kkt.switches`), to a limit of that problem; from there the smoothing is
led to 0 on the KKT system (`gflow.limit.following`). Where that branch of KKT points ends, where
there was no limit, or from a saddle at kinks, the flow goes on by steps that slide along its kinks.
Where these fail, it is followed with less smoothing for a while.

What a limit is there. On clean data the margins of plain ReLUs have kinks but do not jump, and a
limit is a point at which 0 lies in Clarke's subdifferential of the Lagrangian. Under FGSM, and
under FGM with plain ReLUs, the perturbation itself jumps where a sign or a ReLU that it follows
turns, and so does the field. A solution then is one of Filippov's differential inclusion: on a kink
it moves with a mixture of the fields of the two sides, with coefficients in [0, 1] (`(1 + sin
phi)/2`) that keep it there, and a limit is a point where such a mixture vanishes, as a chattering
training run rests on average. One kink alone has one such mixture. Where two or more meet, the
mixtures that keep to all of them need not be unique, and with them neither the solution nor its
limit: gflow's is the one to which its rounding of the kinks leads. Its margin with the
coefficients held is `Limit.held_margin`, a value that no side of the kinks has; what is left on the
best side is `Limit.margin` (all sides of an example's kinks up to 10 switches, beyond that a
sample).

Source: Filippov 1988, "Differential Equations with Discontinuous Righthand Sides"; Clarke 1983.
"""

import dataclasses
import math
import time
from typing import Any

import numpy as np

from gflow._layout import Layout
from gflow.flow.outcome import unseparated_result
from gflow.kkt.certificate import Certificate, certify
from gflow.kkt.curvature import Curvature
from gflow.kkt.margin_next_to import margin_next_to
from gflow.kkt.open_curvature import open_curvature
from gflow.kkt.point import KKTPoint
from gflow.kkt.switches import smoothed
from gflow.kkt.variables import Variables
from gflow.limit.following import follow, follow_back, start_at
from gflow.limit.result import Limit, Stage
from gflow.limit.search import Search, Start
from gflow.limit.sliding import slide
from gflow.problem import Problem
from gflow.results import RESULTS

# More parameters than this make the dense systems of `gflow.limit.complementarity` too large.
_MOST_PARAMETERS = 2000
# Where sliding fails, the flow is followed with less smoothing; below the least no more.
_LEAST, _FACTOR = 6e-3, 0.25
# Of the flow with its kinks rounded: steps of a run at most, and colder caps tried.
_MOST_FLOW_STEPS, _MOST_RAISES = 1500, 1
# The verdict where coefficients at kinks decide between a maximum and a saddle.
DEPENDS = "depends on coefficients at kinks"
# Off a saddle at kinks, so short that margins and kinks hardly move.
_PUSH = 5e-3


class KinkedSearch(Search):
    """A search at kinks: a smooth one, and what leads from its end to the kinks."""

    def __init__(
        self, problem: Problem, layout: Layout, start: Start, smoothing: float, **settings: Any
    ):
        super().__init__(smoothed(problem, smoothing), layout, start, **settings)
        self.kinked_problem, self.smoothing = problem, smoothing
        self.kinks: KKTPoint | None = None
        self.last_kinks: KKTPoint | None = None
        self.last_saddle: tuple[KKTPoint, Curvature] | None = None
        # Where kinks stop the rounded flow, more of it or a colder one is no help.
        most = min(self.options["max_steps"], _MOST_FLOW_STEPS)
        self.options, self.most_raises = {**self.options, "max_steps": most}, _MOST_RAISES
        self.smooth = False  # what the rounded flow does, sliding does better

    def run(self, escape: bool, max_rounds: int) -> RESULTS:
        """All stages; how it ended."""
        while True:
            result = super().run(escape, max_rounds)
            if self.halted or not self.separated:
                return result
            if self.layout.size > _MOST_PARAMETERS:
                return result if self.polished is None else RESULTS.not_at_kink
            result = self.at_kinks(escape, max_rounds)
            if self.kinks is not None:
                return result
            if self.smoothing < _LEAST:
                return self.back_to_saddle() or self.unseparated() or result
            self.lower()

    def back_to_saddle(self) -> RESULTS | None:
        """Returns to the last KKT point at kinks, which nothing led on from; None without any."""
        if self.last_saddle is None:
            return None
        self.kinks, self.curvature = self.last_saddle
        self.last_kinks, self.verdict = self.kinks, "saddle"
        self.stages.append(
            Stage(
                "back",
                0,
                self.move_to(self.kinks.direction),
                *self.values(self.kinks),
                0.0,
                self.log_kappa,
            )
        )
        return RESULTS.saddle

    def unseparated(self) -> RESULTS | None:
        """Why there is no limit, where the smoothing alone separated the examples; else None."""
        problem, params = self.kinked_problem, self.layout.unflatten(self.now)
        margins = problem.margins(params), problem.clean_margins(params)
        return unseparated_result(problem, *(float(np.min(values)) for values in margins))

    def at_kinks(self, escape: bool, max_rounds: int) -> RESULTS:
        """From where the smooth search ended to a KKT point at kinks, and on from saddles."""
        self.to_kinks()
        for round_ in range(max_rounds):
            if self.kinks is None:
                return RESULTS.not_at_kink
            if self.verdict != "saddle":
                return self.settled()
            if not escape or round_ == max_rounds - 1:
                break
            if self.deadline.passed():
                return RESULTS.seconds_spent
            assert self.curvature is not None
            self.last_saddle = self.kinks, self.curvature
            self.leave(_PUSH)
            self.slide(self.pushed(self.kinks), 0.0, self.rate())
        return RESULTS.saddle

    def lower(self) -> None:
        """Makes ready for a smooth search with less smoothing, from where sliding stopped."""
        self.smoothing *= _FACTOR
        self.problem = smoothed(self.kinked_problem, self.smoothing)
        self.arrived, self.own_log_kappa, self.capped = self.now, self.log_cap, True

    def to_kinks(self) -> None:
        """From where the smooth search ended to a KKT point at kinks."""
        if self.polished is None:
            return self.slide(self.at_end(), self.smoothing)
        theta, multipliers = self.near_dead(self.polished.theta), self.polished.multipliers
        begin = time.perf_counter()
        start = start_at(self.kinked_problem, self.layout, theta, multipliers, self.smoothing)
        kinks = follow(
            self.kinked_problem, self.layout, start, self.smoothing, tolerance=self.tolerance
        )
        self.arrive("kinks", kinks, time.perf_counter() - begin)
        if self.kinks is None:
            self.slide(start, self.smoothing)

    def at_end(self) -> Variables:
        """Where the flow stopped, at unit margin, with its weights for multipliers."""
        margins = np.asarray(self.problem.margins(self.layout.unflatten(self.arrived))).ravel()
        theta = self.arrived / margins.min() ** (1 / self.problem.degree)
        multipliers = self.weights() * (theta @ theta) / self.problem.degree
        return start_at(self.kinked_problem, self.layout, theta, multipliers, self.smoothing)

    def pushed(self, kinks: KKTPoint) -> Variables:
        """Where a push off a saddle led, with the saddle's multipliers and coefficients."""
        return kinks.variables._replace(theta=self.now * np.linalg.norm(kinks.theta))

    def slide(self, start: Variables, smoothing: float, rate: float = 0.0) -> None:
        """The flow along kinks to its rest, and what kind of point that is."""
        begin = time.perf_counter()
        kinks, self.arrived = slide(
            self.kinked_problem, self.layout, start, smoothing, rate, tolerance=self.tolerance
        )
        self.arrive("sliding", kinks, time.perf_counter() - begin)

    def arrive(self, kind: str, kinks: KKTPoint, seconds: float) -> None:
        """Records what led to kinks, and judges it where it is a KKT point."""
        moved, values = self.move_to(kinks.direction), self.values(kinks)
        count = kinks.num_iterations
        self.stages.append(Stage(kind, count, moved, *values, seconds, self.log_kappa))
        self.last_kinks = kinks
        self.kinks = kinks if kinks.converged else None
        self.verdict, self.curvature = "unknown", None
        if self.kinks is not None:
            self.curvature = open_curvature(self.kinked_problem, self.layout, kinks)
            self.verdict = self.judged(self.curvature)
            self.visit_kinks()

    def visit_kinks(self) -> None:
        """Notes the KKT point at kinks, in place of the smoothed one from which it was found."""
        if self.visits and not math.isfinite(self.visits[-1].departure):
            self.visits.pop()
        self.visit()

    def close_by(self) -> bool:
        return False  # another smoothing may lead elsewhere

    def judged(self, curvature: Curvature) -> str:
        return DEPENDS if curvature.undecided else super().judged(curvature)

    def settled(self) -> RESULTS:
        return RESULTS.degenerate if self.verdict == DEPENDS else super().settled()

    def values(self, kinks: KKTPoint) -> tuple[float, float]:
        """Stationarity, and the margin of a KKT point."""
        margin = float(np.linalg.norm(kinks.theta)) ** -self.problem.degree
        return kinks.residual, margin if kinks.converged else math.nan

    def residual(self) -> float:
        return super().residual() if self.kinks is None else self.kinks.residual

    def problem_of_found(self) -> Problem:
        return super().problem_of_found() if self.kinks is None else self.kinked_problem

    def found(self) -> Any:
        return super().found() if self.kinks is None else self.kinks

    def polished_again(self, direction: np.ndarray) -> Any:
        if self.kinks is None:
            return super().polished_again(direction)
        theta = direction * np.linalg.norm(self.kinks.theta)
        return follow_back(
            self.kinked_problem, self.layout, self.kinks, theta, tolerance=self.tolerance
        )

    def certified(self) -> Certificate:
        if self.kinks is None:
            return super().certified()
        params = self.at_cap(self.now)
        return certify(self.problem, params, coefficients=self.kinks.coefficients)

    def limit(self, result: RESULTS) -> Limit:
        last = self.last_kinks
        heading = self.heading()  # in the smoothed problem, whose flow it was
        self.problem = self.kinked_problem
        limit = super().limit(result)
        margin = limit.margin
        if self.kinks is not None:
            margin = margin_next_to(self.problem, limit.direction, self.kinks.coefficients)
        return dataclasses.replace(
            limit,
            margin=margin,
            heading=heading,
            polished=None,
            kinks=last,
            smoothing=self.smoothing if last is None else last.smoothing,
        )
