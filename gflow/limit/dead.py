"""Neurons that have died out: the direction in which their weights come to rest, and whether they
stay dead.

The weights y of a dead neuron are so small that they do not act on the other weights, and their own
motion is `dy/dt = -F(y)`, F their part of `theta - sum_i lambda_i grad q_i`, homogeneous of
degree 1 in y for a network of degree 2. Newton's method on the KKT system does not determine the
direction of y, and in an arbitrary one the curvature may be negative only because y would turn.
So y is turned as the flow turns it, until `u = y / |y|` rests. From then on y grows like
`exp(growth t)`, `growth = -u . F(u)`: the point is a saddle with respect to this neuron if growth
is positive.

The growth depends on the direction, which has several rest points. The flow stays if the neuron
died in one that does not grow. But if it would grow in another, there are points next to the KKT
point with a larger margin, and it is no maximum (`growth_elsewhere`).
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from scipy.integrate import solve_ivp
from scipy.sparse.csgraph import connected_components

from gflow._layout import Layout
from gflow.kkt.curvature import Curvature
from gflow.kkt.settings import DEAD, SIZES, DeadSettings, Sizes
from gflow.kkt.system import margins_and_rows, stationarity_and_margins
from gflow.kkt.within import is_factored, system_at
from gflow.problem import Problem

# Entries of an eigenvector of norm 1 above this are coordinates of its neurons; another eigenvector
# belongs to the same neurons where they hold this share of its square.
_BELONGS, _MOSTLY = 1e-6, 0.99
# Turning ends at this speed, in radians per unit of time, or after so long; it is integrated to
# these tolerances, relative and absolute, as only where it ends matters.
_AT_REST, _LONGEST, _RELATIVE, _ABSOLUTE = 1e-6, 1e4, 1e-6, 1e-9
# Entries of the Hessian above this part of the largest couple the weights of a neuron.
_COUPLED = 1e-4
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

    def force(near: np.ndarray) -> np.ndarray:
        return np.asarray(stationarity_and_margins(problem, layout, near, multipliers)[0])

    for _ in range(curvature.values.size):
        vector = _turning(theta, curvature, growing, dead.weight)
        if vector is None:
            break
        where = np.flatnonzero(np.abs(vector) > _BELONGS)

        field = _field_at(force, theta, where, size)
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


def growth_elsewhere(
    problem: Problem,
    layout: Layout,
    theta: np.ndarray,
    multipliers: np.ndarray,
    *,
    dead: DeadSettings = DEAD,
    sizes: Sizes = SIZES,
) -> float:
    """How fast a dead neuron would grow if it pointed in another direction than the one in which it
    has died: the first rate > 0 that is found, or 0. At a size e of it in that direction the margin
    can be larger by about `growth e^2`.

    Dead neurons do not act on each other. So all of them are given random directions at once, and
    each is turned by steps along `-F`; this is repeated. That none grows is found, not proved.

    Args:
        theta, multipliers: the KKT point, of the margins' own gradients. Shapes (P,), (m,).
    """
    largest = np.abs(theta).max()
    where = np.flatnonzero(np.abs(theta) < dead.weight * largest)
    if not where.size:
        return 0.0
    random, size = np.random.default_rng(0), dead.pointed * largest

    def force(near: np.ndarray) -> np.ndarray:
        return _force(problem, layout, near, multipliers, sizes)

    field = _field_at(force, theta, where, size)
    draws = random.normal(size=(dead.draws, where.size))
    points = (_with(theta, where, size * draw) for draw in draws)
    neurons = _neurons(problem, layout, points, multipliers, where, sizes)
    rounds = -(-dead.directions // (1 + neurons.max()))
    starts = (random.normal(size=where.size) for _ in range(rounds))
    return next((rate for start in starts if (rate := _growth(field, start, neurons, dead))), 0.0)


def _field_at(force: Field, theta: np.ndarray, where: np.ndarray, size: float) -> Field:
    """F of the dead weights `where`, as a function of them in units of `size`.

    Args:
        force: `theta - sum_i lambda_i grad q_i` as a function of theta. Shapes: (P,) -> (P,).
    """
    return lambda y: force(_with(theta, where, size * y))[where] / size


def _with(theta: np.ndarray, where: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A copy with other values at some places."""
    moved = theta.copy()
    moved[where] = values
    return moved


def _neurons(
    problem: Problem,
    layout: Layout,
    points: Iterable[np.ndarray],
    multipliers: np.ndarray,
    where: np.ndarray,
    sizes: Sizes,
) -> np.ndarray:
    """The number of the neuron to which each of the dead weights belongs: those that the Hessian
    couples. In problems too large to form it all count as one. Shape (n,).

    Args:
        points: with the dead weights at a tiny size, in random directions. A single one does not
            tell, since it may point to where no example activates the neuron.
        where: which weights are dead. Shape (n,).
    """
    if not is_factored(problem, layout.size, sizes) or where.size > sizes.factored:
        return np.zeros(where.size, int)
    coupled = np.zeros((where.size, where.size), bool)
    for theta in points:
        at = system_at(problem, layout, theta, multipliers, sizes=sizes)
        block = np.abs(at.entries(where))
        coupled |= block > _COUPLED * block.max()
    return connected_components(coupled, directed=False)[1]


def _force(
    problem: Problem, layout: Layout, theta: np.ndarray, multipliers: np.ndarray, sizes: Sizes
) -> np.ndarray:
    """`theta - sum_i lambda_i grad q_i`, by the program that Newton's method has compiled."""
    if theta.size <= sizes.formed:
        return theta - multipliers @ np.asarray(margins_and_rows(problem, layout, theta)[2])
    return np.asarray(stationarity_and_margins(problem, layout, theta, multipliers)[0])


def _growth(force: Field, units: np.ndarray, neurons: np.ndarray, dead: DeadSettings) -> float:
    """How fast one of the neurons grows after it has been turned, or on the way; 0 if none does.

    Args:
        units: the weights of all of them at the start. Shape (n,).
        neurons: to which each belongs. Shape (n,).
    """
    for _ in range(dead.turns):
        units = units / np.sqrt(np.bincount(neurons, units**2))[neurons]
        pull = force(units)
        growths = -np.bincount(neurons, units * pull)
        fastest = neurons == np.argmax(growths)
        if growths.max() > dead.growing:
            alone = _growth_alone(force, units * fastest)
            if alone > dead.growing:
                return alone
        across = np.sqrt(np.bincount(neurons, (pull + growths[neurons] * units) ** 2))
        if across.max() < dead.turned:
            break
        # Forces are as large as the multipliers, and a long step would leave the slope it climbs.
        largest = np.maximum(np.sqrt(np.bincount(neurons, pull**2)), 1.0)
        units = units - dead.turn * pull / largest[neurons]
    return 0.0


def _growth_alone(force: Field, unit: np.ndarray) -> float:
    """How fast these weights grow by themselves, all others being 0."""
    return float(-unit @ force(unit))


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
