"""Clusters: how far an example must be moved before a network changes its mind."""

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from scipy.optimize import minimize

import gflow
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, panels

_CLUSTERS, _WIDTH = 8, 16
_COUNTS, _FULL_COUNTS = (4, 8), (4, 8, 16, 32)
_SEEDS, _FULL_SEEDS = (0,), (0, 1, 2)
# Radius of the l2 attack of training; half the distance of two clusters is 0.707.
_RADIUS = 0.3
_LOG_LOSS, _INITIAL_SCALE = -100.0, 0.1
_STEP, _STEPS = 0.02, 4000
_TRIES = 6


def _measure(small: bool) -> Measurement:
    seeds = _SEEDS if small else _FULL_SEEDS
    counts = _COUNTS if small else _FULL_COUNTS
    by_count = {count: _flip(count, 1, 0.0, seeds) for count in counts}
    findings = [
        Finding(f"ReLU, K = {count}: flip radius, 1 / √K", count**-0.5, found, 0.03, "ratio")
        for count, found in by_count.items()
    ]
    radii = {
        (power, radius): _flip(_CLUSTERS, power, radius, seeds)
        for power in (1, 2, 3)
        for radius in (0.0, _RADIUS)
    }
    powers = {1: "ReLU", 2: "ReLU²", 3: "ReLU³"}
    for power in (2, 3):
        quantity = (
            f"{powers[power]}, K = {_CLUSTERS}: flip radius, above that of {powers[power - 1]}"
        )
        smaller, larger = radii[power - 1, 0.0], radii[power, 0.0]
        findings.append(Finding(quantity, smaller + 0.02, larger, 0.0, "at least"))
    for power, name in powers.items():
        quantity = f"{name}, K = {_CLUSTERS}, adversarial training: above that of clean training"
        clean, attacked = radii[power, 0.0], radii[power, _RADIUS]
        findings.append(Finding(quantity, clean + 0.1, attacked, 0.0, "at least"))
    largest = max(radii.values())
    findings.append(
        Finding("none above half the distance, 1 / √2", 0.5**0.5, largest, 0, "at most")
    )
    return Measurement(tuple(findings), {"by_count": by_count, "radii": radii})


def _data(count: int) -> Any:
    """K orthonormal points, one for each cluster, labels in turn."""
    return gflow.Dataset(np.eye(count), np.where(np.arange(count) % 2 == 0, 1.0, -1.0))


def _flip(count: int, power: int, radius: float, seeds: tuple[int, ...]) -> float:
    """The median flip radius over examples, its mean over the starts."""
    return float(np.mean([_flip_radius(count, power, radius, seed) for seed in seeds]))


def _flip_radius(count: int, power: int, radius: float, seed: int) -> float:
    network = gflow.networks.mlp((count, _WIDTH, 1), power=power)
    problem = gflow.Problem(
        network,
        _data(count),
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.fgm(radius, order=2),
    )
    start = network.init(seed, scale=_INITIAL_SCALE)
    if power == 1:  # kinks everywhere, where the flow slides: steps divided by the loss
        run = gflow.descend(
            problem, start, _optimizer(), num_steps=_STEPS, objective="log_loss", save=2
        )
    else:
        until, solver = gflow.Until(log_loss=_LOG_LOSS), gflow.Rosenbrock()
        run = gflow.integrate(problem, start, until=until, solver=solver)
    inner, outer = (np.asarray(layer) for layer in run.direction)
    examples = zip(problem.dataset.x, problem.dataset.y, strict=True)
    return float(np.median([_distance(inner, outer[0], power, x, y) for x, y in examples]))


@cache
def _optimizer() -> Any:
    """One for all runs: another, even of the same kind, would be compiled anew."""
    import optax

    return optax.sgd(_STEP)


def _distance(inner: np.ndarray, outer: np.ndarray, power: int, x: np.ndarray, y: float) -> float:
    """`min |z|_2` subject to `y f(x + z) <= 0`, the best of several local solutions."""
    scale = abs(outer @ np.maximum(inner @ x, 0) ** power)

    def crossed(z: np.ndarray) -> float:
        return float(-y * (outer @ np.maximum(inner @ (x + z), 0) ** power) / scale)

    def slope(z: np.ndarray) -> np.ndarray:
        hidden = np.maximum(inner @ (x + z), 0)
        weights = outer * power * hidden ** (power - 1) * (hidden > 0)
        return -y * (weights @ inner) / scale

    generator = np.random.default_rng(0)
    found = [math.inf]
    for _ in range(_TRIES):
        solved = minimize(
            lambda z: (z @ z, 2 * z),
            0.1 * generator.normal(size=len(x)),
            jac=True,
            method="SLSQP",
            constraints={"type": "ineq", "fun": crossed, "jac": slope},
            options={"maxiter": 200},
        )
        if crossed(solved.x) > -1e-6:
            found.append(float(np.linalg.norm(solved.x)))
    return min(found)


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    counts = np.array(list(data["by_count"]))
    left.plot(counts, list(data["by_count"].values()), "o", label="ReLU, clean")
    line = np.linspace(2, counts.max() + 1)
    left.plot(line, line**-0.5, label="1 / √K", **GREY)
    left.set(xlabel="clusters K", ylabel="flip radius", ylim=(0, 0.8), xticks=counts)
    left.legend()
    powers = (1, 2, 3)
    for shift, radius, name, hatch in (
        (-0.2, 0.0, "clean training", ""),
        (0.2, _RADIUS, "adversarial training", "//"),
    ):
        heights = [data["radii"][power, radius] for power in powers]
        right.bar(np.array(powers) + shift, heights, 0.36, label=name, hatch=hatch)
    for level, name in ((_CLUSTERS**-0.5, "1/√K"), (0.5**0.5, "1/√2")):
        right.axhline(level, **GREY)
        right.text(3.95, level, name, va="bottom", ha="right")
    right.set_xticks(powers, ["ReLU", "ReLU²", "ReLU³"])
    right.set(ylabel=f"flip radius, K = {_CLUSTERS}", xlim=(0.5, 4), ylim=(0, 1.05))
    right.legend(loc="upper left")
    return figure


STUDY = Study(
    name="clusters",
    title="Clusters: ReLU is fragile, ReLU^k and adversarial training less",
    claim="On K orthogonal clusters with labels in turn the ReLU network that training finds is "
    "that of two neurons, the sums of the clusters of either label: a perturbation of length "
    "1/sqrt K flips it, although the clusters are sqrt 2 apart. ReLU^k networks keep clusters "
    "apart and are flipped later; so are networks of adversarial training.",
    setting="K orthonormal points, networks K-16-1, small random starts, exponential loss; l2-FGM "
    "of radius 0.3 or none. ReLU^k, k = 2 and 3, by the flow to a loss of e^-100; ReLU, where the "
    "flow slides along kinks, by 4000 steps of descent on the log-loss. Flip radius: the median "
    "over examples of the l2 distance to the nearest point of the other sign, by SLSQP from 6 "
    "starts, which is an upper bound.",
    source="Frei et al. 2023; Min & Vidal 2024 for ReLU^k",
    run=_measure,
    figure=_draw,
    full="4, 8, 16 and 32 clusters in place of 4 and 8, each from 3 starts in place of 1. The "
    "work is more than 15 times that of the small form.",
)
