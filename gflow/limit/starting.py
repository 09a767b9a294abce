"""Where a search starts: at parameters, at the end of a trajectory, or at another limit."""

import math
from dataclasses import replace
from typing import Any

import equinox as eqx
import numpy as np

from gflow._description import encode_structure
from gflow._layout import Layout
from gflow._typing import Params
from gflow.flow.keeping import identity_of
from gflow.kkt.switches import has_kinks
from gflow.limit.result import Limit
from gflow.limit.state import Start
from gflow.problem import Problem
from gflow.trajectory import Trajectory
from gflow.validation import check_start


def started(problem: Problem, start: Params | Trajectory | Limit) -> tuple[Layout, Start]:
    """The layout of the parameters, as checked, and where the search starts, at any norm.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`.
    """
    if isinstance(start, Trajectory):
        return Layout.of(check_start(problem, start.direction)), _after(problem, start)
    params = check_start(problem, start.direction if isinstance(start, Limit) else start)
    layout = Layout.of(params)
    vector, log_norm = polar(layout.flatten_on_host(params))
    if not isinstance(start, Limit):
        return layout, Start(vector, problem.degree * log_norm)
    same = eqx.tree_equal(start.problem, problem)
    if math.isfinite(start.log_kappa_cap):
        place = Start(vector, start.log_kappa_cap, start.trajectory if same else None)
    else:  # its flow never came to the cap, and goes on
        place = _after(problem, start.trajectory)
    return layout, place._replace(stages=start.stages if same else ())


def _after(problem: Problem, flow: Trajectory) -> Start:
    """A start at the end of a trajectory. If that is the true flow of this problem, the search goes
    on with it; of any other run only the last direction and its kappa are taken. So it is where the
    problem has kinks, since the search follows the flow of another one, which has them rounded.
    """
    true_flow = flow.kind == "flow" and flow.settings.get("kappa_cap") is None
    true_flow = true_flow and not has_kinks(problem)
    joined = true_flow and flow.problem is not None and eqx.tree_equal(flow.problem, problem)
    vector, log_kappa = np.asarray(flow.vectors[-1]), float(flow.log_kappa[-1])
    return Start(vector, log_kappa, flow if joined else None, goes_on=bool(joined))


def polar(vector: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction and the logarithm of the norm, whose square may leave the range of numbers."""
    largest = np.abs(vector).max()
    length = np.linalg.norm(vector / largest)
    return vector / largest / length, math.log(largest) + math.log(length)


def start_of(start: Params | Trajectory | Limit) -> Any:
    """All of a start that a search depends on.

    Raises:
        TypeError: parameters that a file cannot hold.
    """
    if isinstance(start, Trajectory):
        return identity_of(start), start.problem
    if not isinstance(start, Limit):
        encode_structure(start)
        return start
    stages = [replace(stage, seconds=0.0) for stage in start.stages]
    place = start.direction, start.log_kappa_cap, identity_of(start.trajectory)
    return place, start.problem, stages
