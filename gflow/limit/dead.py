"""Neurons that have died out: the direction in which their weights come to rest, and whether they
stay dead.

The weights y of a dead neuron are so small that they do not act on the other weights, and their own
motion is `dy/dt = -F(y)`, F their part of `theta - sum_i lambda_i grad q_i`, homogeneous of
degree 1 in y for a network of degree 2. Newton's method on the KKT system does not determine the
direction of y, and in an arbitrary one the curvature may be negative only because y would turn.
So y is turned as the flow turns it, until `u = y / |y|` rests. From then on y grows like
`exp(growth t)`, `growth = -u . F(u)`: the point is a saddle with respect to this neuron if growth
is positive.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp

from gflow._layout import Layout
from gflow.kkt.curvature import Curvature
from gflow.kkt.settings import DEAD, DeadSettings
from gflow.kkt.system import stationarity_and_margins
from gflow.problem import Problem

# Entries of an eigenvector of norm 1 above this are coordinates of its neurons; another eigenvector
# belongs to the same neurons where they hold this share of its square.
_BELONGS, _MOSTLY = 1e-6, 0.99
# Turning ends at this speed, in radians per unit of time, or after so long; it is integrated to
# these tolerances, relative and absolute, as only where it ends matters.
_AT_REST, _LONGEST, _RELATIVE, _ABSOLUTE = 1e-6, 1e4, 1e-6, 1e-9
# How far a direction that is itself at rest, but not stably, is pushed off to begin with.
_PUSH = 1e-2

Field = Callable[[np.ndarray], np.ndarray]


def with_dead_at_rest(
    problem: Problem,
    layout: Layout,
    theta: np.ndarray,
    multipliers: np.ndarray,
    curvature: Curvature,
    *,
    dead: DeadSettings = DEAD,
) -> Curvature:
    """The curvature at a KKT point, with dead neurons turned to the direction in which they rest.

    Args:
        theta, multipliers: the KKT point. Shapes (P,), (m,).
        curvature: the curvature there. An unstable direction in which no weight is alive, and those
            of the same neurons, give way to the direction in which these rest, with `-growth`.
    """
    growing = np.zeros((theta.size, 0))
    size = dead.tried * np.abs(theta).max()
    for _ in range(curvature.values.size):
        vector = _turning(theta, curvature, growing, dead.weight)
        if vector is None:
            break
        where = np.flatnonzero(np.abs(vector) > _BELONGS)

        def field(y: np.ndarray, where: np.ndarray = where) -> np.ndarray:
            """F at the size where the neuron is tried."""
            near = theta.copy()
            near[where] = size * y
            force, _ = stationarity_and_margins(problem, layout, near, multipliers)
            return np.asarray(force)[where] / size

        unit = turned(field, _beside(theta[where], vector[where]))
        value = float(unit @ field(unit))
        curvature, direction = _replaced(curvature, where, value, unit)
        if value < -curvature.tolerance:
            growing = np.append(growing, direction[:, None], axis=1)
    return curvature


def turned(field: Field, start: np.ndarray) -> np.ndarray:
    """Where `du/dt = (u . F(u)) u - F(u)` brings u to rest, or nearly. Shapes (n,)."""

    def turning(_: float, y: np.ndarray) -> np.ndarray:
        unit = y / np.linalg.norm(y)
        force = field(unit)
        return (unit @ force) * unit - force

    def moving(time: float, y: np.ndarray) -> float:
        return float(np.linalg.norm(turning(time, y))) - _AT_REST

    event: Any = moving
    event.terminal = True
    tolerances: Any = {"rtol": _RELATIVE, "atol": _ABSOLUTE}
    run = solve_ivp(turning, (0, _LONGEST), start, "BDF", events=event, **tolerances)
    return run.y[:, -1] / np.linalg.norm(run.y[:, -1])


def _turning(
    theta: np.ndarray, curvature: Curvature, growing: np.ndarray, dead: float
) -> np.ndarray | None:
    """An unstable direction in which no weight is alive and that is not known to grow.

    Args:
        growing: unstable directions in which a neuron rests and grows, as columns. Shape (P, k).
        dead: weights below this part of the largest are dead.
    """
    sizes = (theta / np.abs(theta).max()) ** 2
    for vector in curvature.vectors[:, curvature.unstable].T:
        known = np.abs(vector @ growing).max(initial=0.0) > _MOSTLY
        if not known and np.sqrt(vector**2 @ sizes) < dead:
            return vector
    return None


def _beside(y: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """The direction of y, a little towards an unstable one."""
    length = np.linalg.norm(y)
    start = y / length + _PUSH * vector if length > 0 else vector
    return start / np.linalg.norm(start)


def _replaced(
    curvature: Curvature, where: np.ndarray, value: float, unit: np.ndarray
) -> tuple[Curvature, np.ndarray]:
    """The curvature with one direction in place of all those of some coordinates; and that one."""
    direction = np.zeros(len(curvature.vectors))
    direction[where] = unit
    others = np.sum(curvature.vectors[where] ** 2, axis=0) < _MOSTLY
    values = np.append(curvature.values[others], value)
    vectors = np.append(curvature.vectors[:, others], direction[:, None], axis=1)
    order = np.argsort(values)
    frequencies = np.broadcast_to(curvature.frequencies, curvature.values.shape)
    frequencies = np.append(frequencies[others], 0.0)[order]
    found = dataclasses.replace(
        curvature, values=values[order], vectors=vectors[:, order], frequencies=frequencies
    )
    return found, direction
