"""The flow far out, and its limit: steps, errors and times, beside those of other solvers.

Four tables: linear and deep linear networks to kappa 1e12 and in the limit, against the convex
reference; the same to kappa 1e8 with SciPy's and diffrax's implicit solvers and loss-normalised
gradient descent; limits of two-layer networks with random labels, smoothed ReLU and ReLU^2.
"""

import math
import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _common import run_benchmark, show, timed
from scipy.integrate import solve_ivp

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.field import Field, initial_state, path_slope

FAR, NEAR = 1e12, 1e8
ATTACKS = {
    "clean": (perturbations.clean(), 0.0, 2),
    "l2": (perturbations.fgm(0.1), 0.1, 2),
    "linf": (perturbations.fgsm(0.05), 0.05, math.inf),
}


def measure(smoke: bool) -> dict[str, Any]:
    return {
        "far": far_out(smoke),
        "peers": peers(smoke),
        "smoothed_relu": two_layer_limits(smoke, "smoothed ReLU"),
        "relu_squared": two_layer_limits(smoke, "ReLU^2"),
    }


def linear_network(dim: int, depth: int):
    return networks.deep_linear((dim, *(6,) * (depth - 1), 1))


def product_error(network, direction, reference) -> float:
    product = np.ravel(network.predictor(direction))
    return float(np.linalg.norm(product / np.linalg.norm(product) - reference))


def far_out(smoke: bool) -> list[dict[str, Any]]:
    """Steps to kappa 1e12, `kappa * error` there, and the error and time of the limit."""
    columns = ("data", "degree", "attack", "result", "num_steps", "error_kappa")
    columns += ("limit_error", "limit_seconds", "reference_seconds")
    rows = []
    show({}, columns, header=True)
    for count, dim in ((40, 5),) if smoke else ((40, 5), (74, 20)):
        data = gflow.datasets.gaussian(count, dim, gap=0.5, seed=0)
        for depth in (1, 2) if smoke else (1, 2, 3, 4):
            network = linear_network(dim, depth)
            for name, (attack, radius, order) in ATTACKS.items():
                row = far_row(network, data, attack, radius, order)
                rows.append({"data": f"{count}x{dim}", "degree": depth, "attack": name, **row})
                show(rows[-1], columns)
    return rows


def far_row(network, data, attack, radius: float, order: float) -> dict[str, Any]:
    problem = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    start = network.init(0, scale=0.5)
    convex = timed(lambda: gflow.max_margin(data, radius=radius, order=order))
    reference = convex.result.direction
    flow = far_flow(problem, start, FAR)
    row = {"result": flow.result_name, "reference_seconds": convex.seconds}
    if flow.successful:
        error = product_error(network, flow.direction, reference)
        row |= {"num_steps": flow.stats["num_steps"], "error_kappa": error * FAR}
    limit, seconds, _ = timed(lambda: gflow.find_limit(problem, start, throw=False), 1)
    row |= {"limit_result": limit.result_name, "limit_steps": limit.num_flow_steps}
    if limit.successful:
        error = product_error(network, limit.direction, reference)
        row |= {"limit_error": error, "limit_seconds": seconds}
    return row


def far_flow(problem, start, kappa: float):
    return gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_kappa=math.log(kappa)),
        solver=gflow.Rosenbrock(),
        tolerance=1e-2,
        throw=False,
        max_steps=5000,
    )


def peers(smoke: bool) -> list[dict[str, Any]]:
    """Steps, time and error of the direction at one kappa, all on the same field."""
    columns = ("degree", "attack", "solver", "result", "num_steps", "seconds", "error_kappa")
    kappa = 1e3 if smoke else NEAR
    data = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
    rows = []
    show({}, columns, header=True)
    for depth in (1,) if smoke else (1, 2):
        network = linear_network(5, depth)
        for name in ("clean",) if smoke else ("clean", "l2"):
            attack, radius, order = ATTACKS[name]
            problem = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
            reference = gflow.max_margin(data, radius=radius, order=order).direction
            for solver, run in solvers(problem, network.init(0, scale=0.5), kappa).items():
                row = {"degree": depth, "attack": name, "solver": solver, **run()}
                if "direction" in row:
                    error = product_error(network, row.pop("direction"), reference)
                    row["error_kappa"] = kappa * error
                rows.append(row)
                show(row, columns)
    return rows


def solvers(problem, start, kappa: float) -> dict[str, Any]:
    scipy = {
        f"SciPy {name}": lambda name=name: by_scipy(problem, start, kappa, name)
        for name in ("BDF", "Radau", "LSODA")
    }
    return {
        "gflow Rodas5P": lambda: by_gflow(problem, start, kappa, gflow.Rosenbrock(), 1e-2),
        "diffrax Kvaerno5": lambda: by_gflow(problem, start, kappa, diffrax.Kvaerno5(), 1e-8),
        **scipy,
        "normalised descent": lambda: by_descent(problem, start, kappa),
    }


def by_gflow(problem, start, kappa: float, solver, tolerance: float) -> dict[str, Any]:
    until = gflow.Until(log_kappa=math.log(kappa))
    flow, seconds, _ = timed(
        lambda: gflow.integrate(
            problem,
            start,
            until=until,
            solver=solver,
            tolerance=tolerance,
            throw=False,
            max_steps=20_000,
        ),
        1,
    )
    row = {"result": flow.result_name, "num_steps": flow.stats["num_steps"]}
    return row | ({"seconds": seconds, "direction": flow.direction} if flow.successful else {})


def by_scipy(problem, start, kappa: float, method: str) -> dict[str, Any]:
    """SciPy on (u, log rho), with the exact Jacobian and tolerances of 1e-8."""
    layout = Layout.of(start)
    field = Field(problem, layout)
    state = np.asarray(initial_state(layout, start))[:-1]

    @jax.jit
    def move(path):
        point = jnp.append(path, 0.0)
        return path_slope(field, point, field.ascent(point))

    jacobian = jax.jit(jax.jacfwd(move))
    target = math.log(kappa) / problem.degree

    def arrived(_, y):
        return y[-1] - target

    arrived.terminal = True

    def run():
        return solve_ivp(
            lambda _, y: np.asarray(move(y)),
            (0.0, 1e6),
            state,
            method=method,
            jac=lambda _, y: np.asarray(jacobian(y)),
            events=arrived,
            rtol=1e-8,
            atol=1e-10,
        )

    solution, seconds, _ = timed(run, 1)
    row = {"result": "successful" if solution.status == 1 else "failed"}
    row["num_steps"] = len(solution.t) - 1
    if solution.status != 1:
        return row
    return row | {"seconds": seconds, "direction": layout.unflatten(solution.y[:-1, -1])}


def by_descent(problem, start, kappa: float) -> dict[str, Any]:
    """Gradient descent on the log-loss, step 0.5, for at most 200 000 steps."""
    count = 2000 if kappa < NEAR else 200_000
    run = gflow.descend(
        problem, start, optax.sgd(0.5), num_steps=count, objective="log_loss", throw=False
    )
    reached = run.log_kappa[-1] >= math.log(kappa)
    row = {"result": "successful" if reached else f"kappa {np.exp(run.log_kappa[-1]):.1e}"}
    return row | {"num_steps": count, "direction": run.direction}


def two_layer_limits(smoke: bool, kind: str) -> list[dict[str, Any]]:
    """Limits of 10-20-1 networks on 20 random points with random labels, one row a seed."""
    columns = ("attack", "seed", "result", "verdict", "num_steps", "stationarity", "seconds")
    network = {
        "smoothed ReLU": networks.mlp((10, 20, 1), smoothing=0.05),
        "ReLU^2": networks.mlp((10, 20, 1), power=2),
    }[kind]
    attacks = {
        "clean": perturbations.clean(),
        "FGM 0.08": perturbations.fgm(0.08),
        "FGSM 0.03": perturbations.fgsm(0.03, smoothing=0.1),
    }
    rows = []
    show({}, columns, header=True)
    for name, attack in list(attacks.items())[: 1 if smoke else 3]:
        for seed in range(1 if smoke else 20):
            rows.append({"attack": name, "seed": seed, **limit_row(network, attack, seed)})
            show(rows[-1], columns)
    return rows


def limit_row(network, attack, seed: int) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(20, 10))
    y = np.where(generator.random(20) < 0.5, -1, 1)
    problem = gflow.Problem(
        network, gflow.Dataset(x, y), loss=losses.exponential(), perturbation=attack
    )
    start = network.init(seed)
    begin = time.perf_counter()
    limit = gflow.find_limit(problem, start, throw=False)
    seconds = time.perf_counter() - begin
    certificate = limit.certificate
    row = {"result": limit.result_name, "verdict": limit.verdict, "seconds": seconds}
    row |= {"num_steps": limit.num_flow_steps, "heading": limit.heading}
    if not limit.successful:
        return row
    violated = float(np.min(problem.margins(limit.direction)) - limit.margin)
    return row | {
        "stationarity": certificate.stationarity,
        "dual_infeasibility": certificate.dual_infeasibility,
        "violation": violated,
        "smallest_eigenvalue": float(limit.curvature.values.min()),
        "num_neutral": int(limit.curvature.neutral.sum()),
    }


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
