"""Limits of two-layer networks with random labels: stationarity, verdicts, steps and times.

Networks 10-20-1 on 20 Gaussian points with random labels, every seed with data and initial weights
of its own, clean and attacked: smoothed ReLU (mu = 0.05), ReLU^2, and plain ReLU with exact signs,
whose limits lie on kinks. One row a limit, and one summary a table. The stationarity is that of the
certificate; the residual, the violation and the multipliers are those of the KKT point at unit
margin, at kinks with their Clarke coefficients. Last, linear predictors under l_inf attacks so
large that the limit has zeros, beside the convex reference: their error, and whether exactly those
entries are 0.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from _common import run_benchmark, show
from _problems import (
    Attack,
    linear_network,
    linear_problem,
    max_margin,
    predictor_error,
    random_labels,
)

import gflow
from gflow import losses, networks, perturbations
from gflow.reference import largest_feasible_radius

SMOOTH = {
    "clean": perturbations.clean(),
    "FGM 0.08": perturbations.fgm(0.08),
    "FGSM 0.03": perturbations.fgsm(0.03, smoothing=0.1),
}
TABLES = {
    "smoothed_relu": (networks.mlp((10, 20, 1), smoothing=0.05), SMOOTH),
    "relu_squared": (networks.mlp((10, 20, 1), power=2), SMOOTH),
    "plain_relu": (networks.mlp((10, 20, 1)), SMOOTH | {"FGSM 0.03": perturbations.fgsm(0.03)}),
}
NUM_SEEDS = 20
COLUMNS = ("attack", "seed", "result", "verdict", "num_steps", "stationarity", "residual")
COLUMNS += ("smoothing", "at_kink", "seconds", "num_compilations")
# Shares of the largest feasible radius.
SHARES = (0.5, 0.9, 0.99)


def measure(smoke: bool) -> dict[str, Any]:
    # A network without kinks and one with them are every branch.
    names = ("relu_squared", "plain_relu") if smoke else TABLES
    tables = {name: table(*TABLES[name], smoke) for name in names}
    return tables | {"sparse_linf": sparse_rows(smoke)}


def table(network, attacks: dict[str, Any], smoke: bool) -> dict[str, Any]:
    """The limits of one network, and their summary."""
    rows = []
    show({}, COLUMNS, header=True)
    for name, attack in list(attacks.items())[: 1 if smoke else None]:
        for seed in range(1 if smoke else NUM_SEEDS):
            rows.append({"attack": name, "seed": seed, **limit_row(network, attack, seed)})
            show(rows[-1], COLUMNS)
    return {"summary": summary(rows), "rows": rows}


def limit_row(network, attack, seed: int) -> dict[str, Any]:
    problem = gflow.Problem(
        network, random_labels(seed), loss=losses.exponential(), perturbation=attack
    )
    start = network.init(seed)
    with compilations() as compiled:
        begin = time.perf_counter()
        limit = gflow.find_limit(problem, start, throw=False)
        seconds = time.perf_counter() - begin
    row = {"result": limit.result_name, "verdict": limit.verdict, "seconds": seconds}
    row |= {"num_compilations": len(compiled), "compile_seconds": sum(compiled)}
    row |= {"num_steps": limit.num_flow_steps, "heading": limit.heading}
    row |= {"smoothing": limit.smoothing, "message": limit.message}
    if limit.successful or limit.result_name == "saddle":
        return row | evidence(limit)
    named = [] if limit.kinks is None else limit.kinks.examples
    return row | {"at_kink": len(named), "examples_at_kink": named}


def evidence(limit) -> dict[str, Any]:
    """What the bars ask of a limit."""
    kinks, polished = limit.kinks, limit.polished
    point = polished if kinks is None else kinks
    margins = (polished if kinks is None else kinks).system.margins
    multipliers = point.multipliers[point.active]
    return {
        "margin": limit.margin,
        "held_margin": limit.held_margin,
        "stationarity": limit.certificate.stationarity,
        "complementarity": limit.certificate.complementarity,
        "residual": point.residual,
        "least_multiplier": float(multipliers.min() / multipliers.max()),
        # At unit margin: by how much the smallest of all margins falls short.
        "violation": float(max(0.0, 1 - margins.min())),
        "num_active": len(multipliers),
        "at_kink": 0 if kinks is None else len(kinks.examples),
        "num_kinks": 0 if kinks is None else int(kinks.at_kink.sum()),
        "kinks_of_certificate": len(limit.certificate.kinks),
        "smallest_eigenvalue": float(limit.curvature.values.min(initial=math.inf)),
        "num_neutral": int(limit.curvature.neutral.sum()),
    }


def sparse_rows(smoke: bool) -> list[dict[str, Any]]:
    """Linear predictors, alone and as a product of two layers, under l_inf attacks."""
    columns = ("data", "degree", "share", "result", "verdict", "num_steps", "error")
    columns += ("num_zeros", "same_zeros", "residual", "seconds")
    kinds = {f"30x12 seed {seed}": sparse_data(30, 12, seed) for seed in range(10)}
    cases = [(*kind, d, s) for kind in kinds.items() for d in (1, 2) for s in SHARES]
    cases = cases[:1] if smoke else [*cases, ("200x100", sparse_data(200, 100, 0), 1, 0.5)]
    rows = []
    show({}, columns, header=True)
    for name, data, degree, share in cases:
        row = {"data": name, "degree": degree, "share": share}
        rows.append(row | sparse_row(data, degree, share))
        show(rows[-1], columns)
    return rows


def sparse_data(num_examples: int, dim: int, seed: int) -> gflow.Dataset:
    return gflow.datasets.gaussian(num_examples, dim, gap=0.5, seed=seed)


def sparse_row(data: gflow.Dataset, degree: int, share: float) -> dict[str, Any]:
    radius = share * largest_feasible_radius(data, order=math.inf)
    attack = Attack(perturbations.fgsm(radius), radius, math.inf)
    network = linear_network(data.x.shape[1], degree)
    problem = linear_problem(network, data, attack)
    reference = max_margin(data, attack).direction
    begin = time.perf_counter()
    limit = gflow.find_limit(problem, network.init(0, scale=0.5), throw=False)
    row = {"result": limit.result_name, "verdict": limit.verdict, "smoothing": limit.smoothing}
    row |= {"num_steps": limit.num_flow_steps, "seconds": time.perf_counter() - begin}
    zeros = np.ravel(network.predictor(limit.direction)) == 0
    row |= {"error": predictor_error(network, limit.direction, reference)}
    row |= {"num_zeros": int(zeros.sum())}
    row |= {"same_zeros": np.array_equal(zeros, np.abs(reference) < 1e-9)}
    return row | ({"residual": limit.kinks.residual} if limit.kinks is not None else {})


@contextmanager
def compilations() -> Iterator[list[float]]:
    """The seconds of every compilation in the block, tracing not included."""
    seconds: list[float] = []

    def listen(event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            seconds.append(duration)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield seconds
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts of outcomes; the worst evidence; steps; seconds of the runs that compiled nothing."""
    found = [row for row in rows if "stationarity" in row]
    warm = [row for row in found if row["num_compilations"] == 0]
    return {
        "num_problems": len(rows),
        "results": counts(rows, "result"),
        "verdicts": counts(rows, "verdict"),
        "num_kkt_points": len(found),
        "num_steps": spread(found, "num_steps"),
        "warm_seconds": spread(warm, "seconds"),
        "num_compilations": sum(row["num_compilations"] for row in rows),
        "num_that_compiled": sum(row["num_compilations"] > 0 for row in rows),
        "worst_stationarity": extreme(max, found, "stationarity"),
        "worst_complementarity": extreme(max, found, "complementarity"),
        "worst_residual": extreme(max, found, "residual"),
        "at_kink": spread(found, "at_kink"),
        "largest_smoothing": extreme(max, rows, "smoothing"),
        "worst_violation": extreme(max, found, "violation"),
        "least_multiplier": extreme(min, found, "least_multiplier"),
        "smallest_eigenvalue": extreme(min, found, "smallest_eigenvalue"),
    }


def counts(rows: list[dict[str, Any]], name: str) -> dict[str, int]:
    values = [row[name] for row in rows]
    return {value: values.count(value) for value in dict.fromkeys(values)}


def spread(rows: list[dict[str, Any]], name: str) -> dict[str, float] | None:
    """Median and largest; None where there is no row."""
    values = [row[name] for row in rows]
    return {"median": float(np.median(values)), "max": max(values)} if values else None


def extreme(choose, rows: list[dict[str, Any]], name: str) -> float | None:
    return choose((row[name] for row in rows), default=None)


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
