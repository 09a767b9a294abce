"""Limits where rival classes, coordinates or pixels tie: against the cone program and a KKT system.

Linear classifiers of three classes (clusters in 4 dimensions) and of ten (scikit-learn's digits,
two images of each class, averaged to 4 x 4 pixels), under FGM, FGSM and the l_1 attack. Attacked
against the worst rival or each rival, the limit is the direction of `gflow.max_margin`, a cone
program; against the runner-up at the clean input, its KKT system is checked with gradients of NumPy
and multipliers of SciPy's non-negative least squares. The radii are half of what the clean maximum
of the margin withstands. At last small networks with max pooling: outcomes and stationarity.
"""

import math
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from _common import run_benchmark, show
from scipy.optimize import nnls
from sklearn.datasets import load_digits

import gflow
from gflow import losses, networks, perturbations
from gflow.networks import Convolution, Dense, MaxPool

ORDERS = {"fgm": 2.0, "fgsm": math.inf, "fgm_1": 1.0}
DUAL = {2.0: 2.0, math.inf: 1.0, 1.0: math.inf}
# Within this of the reference, or with this KKT residual, a limit is right.
RIGHT = 1e-10
TIE = 1e-9
COLUMNS = ("data", "attack", "rivals", "right", "of", "worst", "seconds")


def measure(smoke: bool) -> dict[str, Any]:
    show({}, COLUMNS, header=True)
    rows = []
    sets = [("clusters", 1 if smoke else 15)] + ([] if smoke else [("digits", 5)])
    for name, count in sets:
        for attack in ["fgm"] if smoke else (ORDERS if name == "clusters" else ["fgm", "fgsm"]):
            for rivals in ("each", "runner_up") if smoke else ("worst", "each", "runner_up"):
                if name == "digits" and rivals == "runner_up":
                    continue
                rows.append(row_of(name, count, attack, rivals))
                show(rows[-1], COLUMNS)
    return {"classes": rows, "max_pooling": [] if smoke else list(pooled())}


def row_of(name: str, count: int, attack: str, rivals: str) -> dict[str, Any]:
    begin, errors = time.perf_counter(), []
    outcomes: Counter[str] = Counter()
    for dataset in {"clusters": clusters, "digits": digits}[name](count):
        limit, error = judged(dataset, attack, rivals)
        outcomes[limit.result_name] += 1
        errors.append(error if limit.successful else math.inf)
    return {
        "data": name,
        "attack": attack,
        "rivals": rivals,
        "right": sum(error < RIGHT for error in errors),
        "of": len(errors),
        "worst": max(errors),
        "errors": errors,
        "outcomes": dict(outcomes),
        "seconds": time.perf_counter() - begin,
    }


def clusters(count: int) -> Iterator[gflow.Dataset]:
    """Three separable clusters of five in 4 dimensions: the first such seeds."""
    for seed in range(10 * count):
        rng = np.random.default_rng(seed)
        x = np.repeat(1.5 * rng.normal(size=(3, 4)), 5, 0) + 0.5 * rng.normal(size=(15, 4))
        dataset = gflow.Dataset(x, np.repeat(np.arange(3), 5))
        if not np.isfinite(gflow.max_margin(dataset, radius=0.0).margin):
            continue
        yield dataset
        count -= 1
        if not count:
            return


def digits(count: int) -> Iterator[gflow.Dataset]:
    images, labels = load_digits(return_X_y=True)
    pixels = images.reshape(-1, 4, 2, 4, 2).mean(axis=(2, 4)).reshape(-1, 16) / 16
    for seed in range(count):
        rng = np.random.default_rng(seed)
        classes = [np.flatnonzero(labels == label) for label in range(10)]
        chosen = np.concatenate([rng.choice(of, 2, replace=False) for of in classes])
        yield gflow.Dataset(pixels[chosen], labels[chosen])


def judged(dataset: gflow.Dataset, attack: str, rivals: str) -> tuple[gflow.Limit, float]:
    """The limit, and its distance from the reference or the residual of its KKT system."""
    order = ORDERS[attack]
    radius = 0.5 * withstood(dataset, order)
    network = networks.linear(dataset.x.shape[1], num_outputs=dataset.num_classes)
    problem = gflow.Problem(
        network,
        dataset,
        loss=losses.exponential(),
        perturbation=perturbations.fgm(radius, order=order),
        rivals=rivals,
    )
    limit = gflow.find_limit(problem, network.init(0), throw=False)
    weights = np.asarray(limit.direction[0])
    if rivals == "runner_up":
        held = None if limit.kinks is None else limit.kinks.coefficients
        return limit, math.inf if held is None else residual(weights, dataset, radius, order, held)
    reference = gflow.max_margin(dataset, radius=radius, order=order).direction
    return limit, float(np.linalg.norm(weights - reference))


def withstood(dataset: gflow.Dataset, order: float) -> float:
    """The radius at which the clean maximum of the margin has a margin of 0."""
    weights = gflow.max_margin(dataset, radius=0.0).direction
    return min(
        (weights[label] - weights[rival])
        @ point
        / np.linalg.norm(weights[label] - weights[rival], ord=DUAL[order])
        for point, label in zip(dataset.x, dataset.y, strict=True)
        for rival in range(dataset.num_classes)
        if rival != label
    )


def residual(
    weights: np.ndarray, dataset: gflow.Dataset, radius: float, order: float, held: np.ndarray
) -> float:
    """`min |W - sum lambda_ij (e_y - e_j) (x_i + delta_i)| / |W|` over lambda >= 0 of the smallest
    margins, for three classes; where the clean margins of an example tie, or an entry of the
    gradient its attack follows is 0 or one of several largest, with the coefficients that are held.
    """
    columns, margins = [], []
    for point, label, coefficients in zip(dataset.x, dataset.y, held, strict=True):
        rivals = [(label + 1) % 3, (label + 2) % 3]
        differences = np.array([weights[label] - weights[rival] for rival in rivals])
        first, second = differences @ point
        # Of the two negative margins the larger one is selected.
        tie = abs(first - second) < TIE * max(abs(first), abs(second))
        share = (1 + coefficients[0]) / 2 if tie else float(first < second)
        gradient = share * differences[0] + (1 - share) * differences[1]
        moved = point - radius * step(gradient, order, coefficients[1:])
        for rival, difference in zip(rivals, differences, strict=True):
            margins.append(difference @ moved)
            column = np.zeros(weights.shape)
            column[label], column[rival] = moved, -moved
            columns.append(column.ravel())
    active = np.array(margins) <= min(margins) * (1 + 1e-7)
    found = nnls(np.array(columns)[active].T, weights.ravel())[1]
    return float(found / np.linalg.norm(weights))


def step(gradient: np.ndarray, order: float, held: np.ndarray) -> np.ndarray:
    """The step of unit l_p norm that the attack takes."""
    if order == 2:
        return gradient / np.linalg.norm(gradient)
    size = np.abs(gradient)
    if math.isinf(order):
        return np.where(size < TIE * size.max(), held, np.sign(gradient))
    # Rounds of neighbours: (0, 1) and (2, 3), then the winners.
    shares = []
    for turn, (left, right) in zip(
        held,
        [(size[0], size[1]), (size[2], size[3]), (size[:2].max(), size[2:].max())],
        strict=True,
    ):
        tie = abs(left - right) < TIE * size.max()
        shares.append((1 + turn) / 2 if tie else float(left > right))
    pairs = [shares[0], 1 - shares[0], shares[1], 1 - shares[1]]
    return np.sign(gradient) * pairs * np.repeat([shares[2], 1 - shares[2]], 2)


def pooled() -> Iterator[dict[str, Any]]:
    """Networks with ReLU^2 and max pooling on random data."""
    for seed in range(3):
        for attack in ("clean", "fgm"):
            rng, begin = np.random.default_rng(seed), time.perf_counter()
            dataset = gflow.Dataset(rng.normal(size=(12, 16)), np.where(np.arange(12) < 6, -1, 1))
            network = networks.conv(
                (1, 4, 4),
                [Convolution(3, 2, padding="VALID"), MaxPool(2, stride=1), Dense(1)],
                power=2,
            )
            problem = gflow.Problem(
                network,
                dataset,
                loss=losses.exponential(),
                perturbation=perturbations.clean() if attack == "clean" else perturbations.fgm(0.1),
            )
            limit = gflow.find_limit(problem, network.init(seed), throw=False)
            yield {
                "seed": seed,
                "attack": attack,
                "result": limit.result_name,
                "verdict": limit.verdict,
                "at_kink": 0 if limit.kinks is None else int(np.sum(limit.kinks.at_kink)),
                "stationarity": limit.certificate.stationarity,
                "num_steps": sum(stage.num_steps for stage in limit.stages),
                "seconds": time.perf_counter() - begin,
            }


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
