"""Settings that several studies share: what is compiled for one serves the next.

The radius of an attack is a number like any other to a compiled program, so that clean training is
an attack of radius 0.
"""

import math
from typing import Any

import numpy as np

import gflow

_STARTS = 300


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


def tilted() -> Any:
    """40 points in 5 dimensions whose l2-SVM (3 support vectors) is far from their l1-SVM (5).

    No coordinate of either, or of what lies between, is small: signs that an attack follows do not
    jump.
    """
    return gflow.datasets.gaussian(40, 5, gap=1.0, seed=73)


def deep_network(depth: int) -> Any:
    """A linear network of that depth on 5 inputs, hidden layers of width 4."""
    return gflow.networks.deep_linear((5, *(4,) * (depth - 1), 1))


def deep_flow(depth: int, radius: float, order: float, log_kappa: float, **options: Any) -> Any:
    """The flow of a linear network on `tilted()` under the fast gradient method of an l_p ball.

    It starts from that random start, of 300, whose product is closest to the limit, so that an
    attack which follows signs does not slide along a coordinate of 0.

    Args:
        depth: layers.
        radius: of the attack; 0 is clean training.
        order: p.
        log_kappa: where to stop.
        options: of `gflow.integrate`.
    """
    network, data = deep_network(depth), tilted()
    limit = gflow.max_margin(data, radius=radius, order=order)
    problem = gflow.Problem(
        network,
        data,
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.fgm(radius, order=order),
    )
    start = _start_near(network, limit.direction)
    until, solver = gflow.Until(log_kappa=log_kappa), gflow.Rosenbrock()
    return gflow.integrate(problem, start, until=until, solver=solver, **options), limit


def _start_near(network: Any, direction: np.ndarray) -> Any:
    """Of `_STARTS` random starts the one whose product is closest to `direction`.

    A single layer starts larger, where all examples push less alike than at 0.
    """
    scale = 10.0 if network.degree == 1 else 1.0
    starts = [network.init(seed, scale=scale) for seed in range(_STARTS)]
    cosines = [product(start) @ direction / np.linalg.norm(product(start)) for start in starts]
    return starts[int(np.argmax(cosines))]


def product(layers: Any) -> np.ndarray:
    """`W_L ... W_1`, the linear predictor of the layers. Shapes: (d,), or (s, d) for s points."""
    result = np.asarray(layers[-1])
    for weight in layers[-2::-1]:
        result = result @ np.asarray(weight)
    return result[..., 0, :]


def squared_relu(radius: float, gradient: Any) -> Any:
    """A ReLU^2 network 3-6-1 on 10 points in 3 dimensions under l2-FGM, exponential loss."""
    return gflow.Problem(
        gflow.networks.mlp((3, 6, 1), power=2),
        gflow.datasets.gaussian(10, 3, gap=0.3, seed=0),
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.fgm(radius, order=2),
        gradient=gradient,
    )
