"""From the capped flow to a KKT point: the temperature led to 0 by Newton's method.

Where the flow with capped temperature rests, at the norm where its heaviest margin is 1,

    theta = sum_i lambda_i grad q_i(theta),    q_i - 1 + log(lambda_i / max_j lambda_j) / s = 0,

s = kappa_c gamma its *sharpness*: the multipliers are its weights. For s -> infinity a margin is 1,
or its multiplier is 0: a KKT point, whose active margins nobody had to name. With the multipliers
as unknowns of their own the system stays well conditioned on the way, as interior points with an
entropic barrier do, while Newton's method on active margins alone needs the right ones to begin
with; with hundreds of examples the weights at a moderate temperature do not tell them.

`equations` linearises them at an iterate and solves for a step, `path` follows them to the last
temperature.
"""

import math

import numpy as np

from gflow._layout import Layout
from gflow.limit.cooling_equations import TINY
from gflow.limit.cooling_path import SHARPEST, VIOLATED, Cooled, Path
from gflow.problem import Problem

__all__ = ["Cooled", "cool", "cooled_again"]


def cool(
    problem: Problem, layout: Layout, direction: np.ndarray, weights: np.ndarray, log_kappa: float
) -> Cooled:
    """The KKT point, but for an error of about 1e-11, to which the capped flow's rest point leads.

    Args:
        direction: u, where the capped flow is nearly at rest; its margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened. Shape (m,).
        log_kappa: log kappa_c.
    """
    degree = problem.degree
    margins = np.asarray(problem.margins(layout.unflatten(direction))).ravel()
    gamma = float(margins[np.argmax(weights)])
    if not gamma > 0:  # the heaviest margin is the smallest but for rounding
        return Cooled(direction, weights, 0.0, 0)
    theta = direction / gamma ** (1 / degree)
    # Euler's identity.
    multipliers = weights * (theta @ theta) / (degree * (weights @ (margins / gamma)))
    path = Path(problem, layout, float(multipliers.max()))
    return path.follow(theta, multipliers, math.exp(log_kappa) * gamma)


def cooled_again(
    problem: Problem, layout: Layout, direction: np.ndarray, multipliers: np.ndarray
) -> Cooled:
    """The KKT point to which the last temperature alone leads from beside one; `sharpness` is 0
    where there is none.

    Args:
        direction: a unit vector close to the KKT point; its margins are positive. Shape (P,).
        multipliers: of the KKT point. Shape (m,).
    """
    margins = np.asarray(problem.margins(layout.unflatten(direction)))
    theta = direction / margins.min() ** (1 / problem.degree)
    path = Path(problem, layout, float(multipliers.max()))
    start = path.at(theta, np.maximum(multipliers, TINY), SHARPEST)
    found, _ = path.rest(start)
    if found is None or found.margins.min() < 1 - VIOLATED:
        return Cooled(theta, multipliers, 0.0, path.count)
    return Cooled(found.theta, found.multipliers, SHARPEST, path.count)
