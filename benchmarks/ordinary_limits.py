"""Ordinary problems: how the search for the limit ends on 200 of them.

Two- and three-layer networks of ReLU^2 and of smoothed ReLU (mu = 0.05) on Gaussian points with
random labels, 30 points in 7 dimensions with 8 neurons a layer and 20 in 10 with 16: clean, under
FGM and under FGSM with smoothed signs (mu = 0.1), with frozen perturbations and with the total
gradient, radii 0.02, 0.05 and 0.1 in turn, every seed with data and initial weights of its own;
logistic loss. One row a problem. A problem ends well at a point that nothing leaves; or
unseparated, where SciPy's minimiser of the loss goes on from there and separates nothing either; or
drifting or circling, where SciPy's Radau, which follows the flow on from there at a fixed
temperature, moves at that speed, to a tenth, or keeps circling at that distance, to a factor 2.
"""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
from _common import run_case_by_case, show
from scipy.integrate import solve_ivp
from scipy.optimize import minimize

import gflow
from gflow import losses, networks, perturbations

SIZES = ((30, 7), (20, 10))
RADII = (0.02, 0.05, 0.1)
WIDTHS, NUM_SEEDS = {(30, 7): 8, (20, 10): 16}, 5
NETWORKS = {"relu_squared": {"power": 2}, "smoothed_relu": {"smoothing": 0.05}}
COLUMNS = ("network", "layers", "size", "attack", "radius", "gradient", "seed")
COLUMNS += ("end", "result", "verdict", "margin", "stationarity", "total", "num_steps", "seconds")
# Logits of the smallest margin at which SciPy's weights are held.
_CAP_LOGITS = 1e3
_SAME_WAY = 0.1


class Case(NamedTuple):
    """One problem, described."""

    network: str
    layers: int
    size: tuple[int, int]
    attack: str
    gradient: str
    seed: int

    @property
    def radius(self) -> float:
        return 0.0 if self.attack == "clean" else RADII[self.seed % len(RADII)]


def cases(smoke: bool) -> list[Case]:
    """All problems, seed by seed, so that a run that is stopped has some of every kind."""
    attacks = [("clean", "frozen")]
    attacks += [(attack, mode) for attack in ("fgm", "fgsm") for mode in ("frozen", "total")]
    kinds = [
        (network, layers, size, *attack)
        for size in SIZES
        for layers in (2, 3)
        for network in NETWORKS
        for attack in attacks
    ]
    return [Case(*kind, seed) for seed in range(NUM_SEEDS) for kind in kinds][
        : 2 if smoke else None
    ]


def add(measured: dict[str, Any], case: Case) -> None:
    rows = measured.setdefault("rows", [])
    if not rows:
        show({}, COLUMNS, header=True)
    rows.append(row(case))
    show(rows[-1], COLUMNS)


def problem_of(case: Case) -> tuple[gflow.Problem, Any]:
    """The problem, and where its flow starts."""
    generator = np.random.default_rng([case.seed, *case.size])
    x = generator.normal(size=case.size)
    y = np.where(generator.random(case.size[0]) < 0.5, -1, 1)
    widths = (case.size[1], *[WIDTHS[case.size]] * (case.layers - 1), 1)
    network = networks.mlp(widths, **NETWORKS[case.network])
    attack = {
        "clean": perturbations.clean,
        "fgm": lambda: perturbations.fgm(case.radius),
        "fgsm": lambda: perturbations.fgsm(case.radius, smoothing=0.1),
    }[case.attack]()
    problem = gflow.Problem(
        network,
        gflow.Dataset(x, y),
        loss=losses.logistic(),
        perturbation=attack,
        gradient=case.gradient,
    )
    return problem, network.init(case.seed)


def row(case: Case) -> dict[str, Any]:
    """How the search for the limit of one problem ends."""
    problem, start = problem_of(case)
    begin = time.perf_counter()
    limit = gflow.find_limit(problem, start, throw=False)
    seconds = time.perf_counter() - begin
    drifts = [stage for stage in limit.stages if stage.kind == "drift"]
    return case._asdict() | {
        "size": f"{case.size[0]}x{case.size[1]}",
        "radius": case.radius,
        "end": end_of(limit),
        "result": limit.result_name,
        "verdict": limit.verdict,
        "margin": limit.margin,
        "stationarity": limit.certificate.stationarity,
        "total": limit.certificate.total_stationarity,
        "num_steps": limit.num_flow_steps,
        "seconds": seconds,
        "stages": [stage.kind for stage in limit.stages],
        "log_growth": [stage.log_growth for stage in drifts],
        "smallest_eigenvalues": [] if limit.curvature is None else limit.curvature.values[:3],
    }


def end_of(limit: gflow.Limit) -> str:
    """In a word: "other" where what the result says is not confirmed."""
    if limit.successful:
        return "rest"
    if limit.result_name in ("not_separated", "radius_above_margin"):
        return "unseparated" if rests_unseparated(limit) else "other"
    if limit.result_name == "drifting":
        return "drift" if drift_is_reproduced(limit) else "other"
    if limit.result_name == "circling":
        return "circling" if circling_is_reproduced(limit) else "other"
    return "other"


def rests_unseparated(limit: gflow.Limit) -> bool:
    """Whether SciPy's minimiser of the loss, from the flow's end, separates nothing either."""
    problem = limit.problem
    flat, unflatten = jax.flatten_util.ravel_pytree(limit.trajectory.params)

    def loss(vector: np.ndarray) -> tuple[float, np.ndarray]:
        params = unflatten(jnp.asarray(vector))
        gradient = jax.flatten_util.ravel_pytree(problem.gradient(params))[0]
        return float(jnp.exp(problem.log_loss(params))), np.asarray(gradient)

    start = np.asarray(flat)
    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-6, "maxiter": 5000})
    return bool(np.min(problem.margins(unflatten(jnp.asarray(found.x)))) <= 0)


def drift_is_reproduced(limit: gflow.Limit) -> bool:
    """Whether SciPy's Radau, from the end of the drift, goes on at its speed."""
    drift = next(stage for stage in limit.stages if stage.kind == "drift")
    # So long that the speed hardly changes.
    span = 0.01 / drift.stationarity
    points = followed(limit, span)
    moved = np.linalg.norm(points[-1] - points[0])
    return bool(abs(moved - drift.stationarity * span) < _SAME_WAY * moved)


def circling_is_reproduced(limit: gflow.Limit) -> bool:
    """Whether SciPy's Radau, from beside there, keeps circling at that distance, to a factor 2."""
    circles = next(stage for stage in limit.stages if stage.kind == "circling")
    points = followed(limit, 2 * circles.log_growth, push=circles.moved)
    points = points[len(points) // 2 :]
    radius = np.linalg.norm(points - points.mean(axis=0), axis=1).mean()
    return bool(0.5 < radius / circles.moved < 2)


def followed(limit: gflow.Limit, span: float, push: float = 0.0) -> np.ndarray:
    """SciPy's flow of the direction against log |params|, with the weights of a fixed kappa, from
    the limit's direction or a random push beside it. Shape (steps, P).
    """
    problem, degree = limit.problem, limit.problem.degree
    flat, unflatten = jax.flatten_util.ravel_pytree(limit.direction)
    beside = np.random.default_rng(0).normal(size=flat.size)
    log_kappa = math.log(_CAP_LOGITS / limit.margin)

    @jax.jit
    def field(vector: Any) -> Any:
        unit = vector / jnp.linalg.norm(vector)
        ascent = problem.ascent(unflatten(unit), log_kappa)
        pull = jax.flatten_util.ravel_pytree(ascent.vector)[0]
        return (pull - unit * (unit @ pull)) / (degree * jnp.sum(ascent.weights * ascent.margins))

    jacobian = jax.jit(jax.jacfwd(field))
    run = solve_ivp(
        lambda _, u: np.asarray(field(u)),
        (0, span),
        np.asarray(flat) + push * beside / np.linalg.norm(beside),
        method="Radau",
        jac=lambda _, u: np.asarray(jacobian(u)),
        rtol=1e-5,
        atol=1e-8,
    )
    return run.y.T / np.linalg.norm(run.y.T, axis=1, keepdims=True)


def summary(measured: dict[str, Any]) -> dict[str, Any]:
    """Counts, and every problem that ends otherwise."""
    rows = measured["rows"]
    others = [row for row in rows if row["end"] == "other"]
    return {
        "num_problems": len(rows),
        "share_of_others": len(others) / len(rows),
        "ends": counts(rows, "end"),
        "results": counts(rows, "result"),
        "verdicts": counts(rows, "verdict"),
        "num_drifts": sum("drift" in row["stages"] for row in rows),
        "num_floors": sum("floor" in row["stages"] for row in rows),
        "median_steps": float(np.median([row["num_steps"] for row in rows])),
        "others": [{name: row[name] for name in COLUMNS} for row in others],
    }


def counts(rows: list[dict[str, Any]], name: str) -> dict[str, int]:
    values = [row[name] for row in rows]
    return {value: values.count(value) for value in dict.fromkeys(values)}


if __name__ == "__main__":
    run_case_by_case(__doc__, cases, add, summary)
