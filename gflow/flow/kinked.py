"""The search for a limit at kinks: with plain ReLUs, or attacks that follow signs.

The flow slides along kinks, where no solver of smooth equations follows it. So it is followed with
its kinks rounded (`gflow.switches`), to a limit of that problem; from there the smoothing is led to
0 on the KKT system (`gflow.kinks`). Where that branch of KKT points ends, or its end is a saddle,
the flow goes on from there with less smoothing.
"""

import dataclasses
import math
import time
from typing import Any

import numpy as np

from gflow._typing import Params
from gflow.certificate import Certificate, certify
from gflow.curvature import kinked_curvature
from gflow.flow.limit import Limit, Stage
from gflow.flow.search import Search
from gflow.kinks import Kinks, follow, follow_back
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.switches import smoothed

# The least smoothing that the flow is asked to follow; and how much less it is each time.
_LEAST, _FACTOR = 5e-4, 0.5
# More parameters than this make the dense systems of `gflow.kinks` too large.
_MOST_PARAMETERS = 2000


class KinkedSearch(Search):
    """A search at kinks: a smooth one at every smoothing, and what leads from it to the kinks."""

    def __init__(self, problem: Problem, params: Params, smoothing: float, **options: Any):
        super().__init__(smoothed(problem, smoothing), params, **options)
        self.kinked_problem, self.smoothing = problem, smoothing
        self.reached = smoothing
        self.kinks: Kinks | None = None

    def run(self, escape: bool, max_rounds: int) -> RESULTS:
        """All stages; how it ended."""
        for _ in range(max_rounds):
            result = super().run(escape, max_rounds)
            if self.polished is None:
                # Where there is a limit that Newton's method does not find, less may make it clear.
                if not (self.separated and self.lower(self.smoothing)):
                    return result
                continue
            reached = self.to_kinks()
            if self.kinks is not None and self.verdict != "saddle":
                return self.settled()
            if self.kinks is not None:
                if not escape:
                    return RESULTS.saddle
                self.leave()
            if not self.lower(min(reached, self.smoothing)):
                break
        return RESULTS.not_at_kink if self.kinks is None else RESULTS.saddle

    def to_kinks(self) -> float:
        """Leads the smoothing towards 0 from the limit of the smoothed problem, and judges where
        that ends; the smoothing to go on from.
        """
        assert self.polished is not None
        seconds = time.perf_counter()
        self.kinks, self.verdict, self.curvature = None, "unknown", None
        self.reached = self.smoothing
        if self.layout.size > _MOST_PARAMETERS:
            return self.smoothing
        theta = self.near_dead(self.polished.theta)
        kinks = follow(
            self.kinked_problem, self.layout, theta, self.polished.multipliers, self.smoothing
        )
        seconds = time.perf_counter() - seconds
        moved = self.move_to(kinks.direction)
        margin = float(np.linalg.norm(kinks.theta)) ** -self.problem.degree
        values = kinks.residual, margin if kinks.converged else math.nan
        self.stages.append(Stage("kinks", kinks.num_iterations, moved, *values, seconds))
        self.reached = kinks.smoothing
        if not kinks.converged:
            return kinks.smoothing or self.smoothing
        self.kinks = kinks
        self.curvature = kinked_curvature(kinks)
        self.verdict = self.judged(self.curvature)
        return self.smoothing

    def lower(self, smoothing: float) -> bool:
        """Makes ready for a flow with less smoothing than this; False where that is too little."""
        smoothing *= _FACTOR
        if smoothing < _LEAST:
            return False
        self.problem, self.smoothing = smoothed(self.kinked_problem, smoothing), smoothing
        self.kinks, self.reached = None, smoothing
        self.curvature, self.verdict = None, "unknown"
        self.params = self.at_cap(self.now)
        return True

    def found(self) -> Any:
        return super().found() if self.kinks is None else self.kinks

    def polished_again(self, direction: np.ndarray) -> Any:
        if self.kinks is None:
            return super().polished_again(direction)
        theta = direction * np.linalg.norm(self.kinks.theta)
        return follow_back(self.kinked_problem, self.layout, self.kinks, theta)

    def certified(self) -> Certificate:
        if self.kinks is None:
            return super().certified()
        params = self.at_cap(self.now)
        return certify(self.problem, params, coefficients=self.kinks.coefficients)

    def limit(self, result: RESULTS) -> Limit:
        heading = self.heading()  # in the smoothed problem, whose flow it was
        self.problem = self.kinked_problem
        return dataclasses.replace(
            super().limit(result),
            heading=heading,
            polished=None,
            kinks=self.kinks,
            smoothing=self.reached,
        )
