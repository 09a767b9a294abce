"""Limits of two-layer networks with random labels: stationarity, verdicts, steps and times.

Networks 10-20-1 on 20 Gaussian points with random labels, every seed with data and initial weights
of its own, clean and attacked: smoothed ReLU (mu = 0.05) and ReLU^2. One row a limit, and one
summary a table. The stationarity is that of the certificate; the violation and the multipliers are
those of the KKT point at unit margin.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from _common import run_benchmark, show

import gflow
from gflow import losses, networks, perturbations

NETWORKS = {
    "smoothed_relu": networks.mlp((10, 20, 1), smoothing=0.05),
    "relu_squared": networks.mlp((10, 20, 1), power=2),
}
ATTACKS = {
    "clean": perturbations.clean(),
    "FGM 0.08": perturbations.fgm(0.08),
    "FGSM 0.03": perturbations.fgsm(0.03, smoothing=0.1),
}
NUM_SEEDS = 20
COLUMNS = ("attack", "seed", "result", "verdict", "num_steps", "stationarity", "seconds")
COLUMNS += ("num_compilations",)


def measure(smoke: bool) -> dict[str, Any]:
    return {name: table(network, smoke) for name, network in NETWORKS.items()}


def table(network, smoke: bool) -> dict[str, Any]:
    """The limits of one network, and their summary."""
    rows = []
    show({}, COLUMNS, header=True)
    for name, attack in list(ATTACKS.items())[: 1 if smoke else None]:
        for seed in range(1 if smoke else NUM_SEEDS):
            rows.append({"attack": name, "seed": seed, **limit_row(network, attack, seed)})
            show(rows[-1], COLUMNS)
    return {"summary": summary(rows), "rows": rows}


def random_labels(seed: int) -> gflow.Dataset:
    """20 Gaussian points in 10 dimensions."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 10))
    return gflow.Dataset(x, np.where(generator.random(20) < 0.5, -1, 1))


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
    return row | (evidence(limit) if limit.successful else {})


def evidence(limit) -> dict[str, Any]:
    """What the bars ask of a limit."""
    multipliers = limit.polished.multipliers[limit.polished.active]
    return {
        "margin": limit.margin,
        "stationarity": limit.certificate.stationarity,
        "complementarity": limit.certificate.complementarity,
        "least_multiplier": float(multipliers.min() / multipliers.max()),
        # At unit margin: by how much the smallest of all margins falls short.
        "violation": float(max(0.0, 1 - limit.polished.system.margins.min())),
        "num_active": len(multipliers),
        "num_kinks": len(limit.certificate.kinks),
        "smallest_eigenvalue": float(limit.curvature.values.min()),
        "num_neutral": int(limit.curvature.neutral.sum()),
    }


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
        "num_steps": spread(found, "num_steps"),
        "warm_seconds": spread(warm, "seconds"),
        "num_compilations": sum(row["num_compilations"] for row in rows),
        "num_that_compiled": sum(row["num_compilations"] > 0 for row in rows),
        "worst_stationarity": extreme(max, found, "stationarity"),
        "worst_complementarity": extreme(max, found, "complementarity"),
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
