"""Settings that several studies share: what is compiled for one serves the next.

The radius of an attack is a number like any other to a compiled program, so that clean training is
an attack of radius 0.
"""

import math
from typing import Any

import numpy as np

import gflow

TINY = np.finfo(float).tiny


def plane() -> Any:
    """40 points in 5 dimensions, separable with l2 margin 0.72; 5 support vectors."""
    return gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)


def linear_flow(radius: float, *, log_norm: float | None = None, log_time: float | None = None):
    """The flow of a linear predictor on `plane()` under an l2 attack, exponential loss.

    Args:
        radius: of the attack; 0 is clean training.
        log_norm: log |w| at which to stop; or
        log_time: log of the time at which to stop, at most 700.
    """
    problem = gflow.Problem(
        gflow.networks.linear(5),
        plane(),
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.fgm(radius, order=2),
    )
    time = None if log_time is None else math.exp(log_time)
    until = gflow.Until(log_kappa=log_norm, time=time)
    solver = gflow.Rosenbrock()
    return gflow.integrate(problem, problem.network.init(0), until=until, solver=solver)


def direction_error(flow: Any, direction: np.ndarray) -> np.ndarray:
    """`1 - cos` of the angle between every saved direction and `direction`, of norm 1.

    As `|u - v|^2 / 2`, which keeps its digits where the cosine is 1 to rounding.
    """
    return np.sum((flow.vectors - direction) ** 2, axis=1) / 2


def slope(x: Any, y: Any, start: float) -> float:
    """Slope of log y against log x between the first point with `x >= start` and the last."""
    first, last = int(np.argmax(np.asarray(x) >= start)), -1
    return float(np.log(y[last] / y[first]) / np.log(x[last] / x[first]))
