"""The unknowns of the KKT system, and their first values from a direction of the flow."""

from typing import NamedTuple

import numpy as np

from gflow._layout import Layout
from gflow.problem import Problem


class Variables(NamedTuple):
    """A point with its multipliers and the angles of its switches (`gflow.kkt.switches`).

    Shapes: theta (P,), multipliers (m,), angles (n, s); s = 0 where the problem is smooth.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    angles: np.ndarray


def margins_at(problem: Problem, layout: Layout, vector: np.ndarray) -> np.ndarray:
    """The margins at parameters, flattened. They are computed by the program of `Problem.ascent`,
    which every search compiles anyway. Shapes: (P,) -> (m,).
    """
    return np.asarray(problem.ascent(layout.unflatten(vector)).margins).ravel()


def at_unit_margin(
    problem: Problem, layout: Layout, direction: np.ndarray, weights: np.ndarray
) -> Variables:
    """A direction scaled to a smallest margin of 1, with multipliers proportional to `weights`.

        theta = u / q_min(u)^(1/L),    lambda_i = w_i |theta|^2 / (L sum_j w_j q_j(theta)).

    At a KKT point `sum_i lambda_i L q_i = |theta|^2` by Euler's identity, which sets their size.

    Args:
        direction: u, a unit vector whose margins are positive. Shape (P,).
        weights: >= 0, of the loss at u or of another point. Shape (m,).
    """
    margins = margins_at(problem, layout, direction)
    smallest = margins.min()
    theta = direction / smallest ** (1 / problem.degree)
    size = (theta @ theta) / (problem.degree * (weights @ (margins / smallest)))
    return Variables(theta, size * weights, np.zeros((len(problem.dataset.x), 0)))
