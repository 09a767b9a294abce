"""Problems that several benchmarks share.

Linear and deep linear networks on Gaussian points, whose limit is known; and two-layer networks on
points with random labels, whose limits are not.
"""

import math
from typing import Any, NamedTuple

import numpy as np

import gflow
from gflow import losses, networks, perturbations


class Attack(NamedTuple):
    """A perturbation, and the radius and order of its l_p ball for `gflow.max_margin`."""

    perturbation: Any
    radius: float
    order: float


ATTACKS = {
    "clean": Attack(perturbations.clean(), 0.0, 2),
    "l2": Attack(perturbations.fgm(0.1), 0.1, 2),
    "linf": Attack(perturbations.fgsm(0.05), 0.05, math.inf),
}


def smoothed(attack: Attack, smoothing: float) -> Attack:
    """The l_inf attack with its sign smoothed."""
    return attack._replace(perturbation=perturbations.fgsm(attack.radius, smoothing=smoothing))


def linear_network(dim: int, degree: int):
    """A deep linear network with layers of width 6."""
    return networks.deep_linear((dim, *(6,) * (degree - 1), 1))


def linear_problem(network, data: gflow.Dataset, attack: Attack) -> gflow.Problem:
    return gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack.perturbation)


def max_margin(data: gflow.Dataset, attack: Attack) -> gflow.MaxMargin:
    """The convex reference."""
    return gflow.max_margin(data, radius=attack.radius, order=attack.order)


def predictor_direction(network, params) -> np.ndarray:
    """The product of the layers, normalised. Shape (d,)."""
    product = np.ravel(network.predictor(params))
    return product / np.linalg.norm(product)


def predictor_error(network, params, reference: np.ndarray) -> float:
    """Its distance to a direction."""
    return float(np.linalg.norm(predictor_direction(network, params) - reference))


def direction_error(left, right) -> float:
    """Distance of the directions of two pytrees of parameters."""
    return float(gflow.measures.direction_distance(left, right))


def random_labels(seed: int) -> gflow.Dataset:
    """20 Gaussian points in 10 dimensions with random labels."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 10))
    return gflow.Dataset(x, np.where(generator.random(20) < 0.5, -1, 1))


def two_layer() -> tuple[gflow.Problem, Any]:
    """A network 10-20-1 of smoothed ReLUs on such points, and the start of its flow."""
    network = networks.mlp((10, 20, 1), smoothing=0.05)
    problem = gflow.Problem(network, random_labels(0), loss=losses.exponential())
    return problem, network.init(0)
