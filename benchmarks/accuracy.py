"""How accurate the flow is: a closed form, a second integrator, conserved quantities.

1. `closed_form`: the examples x = 1, y = 1 and x = -1, y = -1 under a linear attack of radius 1 - c
   and the exponential loss: dw/dt = 2 c exp(-c w), so `w(t) = log(exp(c w(0)) + 2 c^2 t) / c`.
2. `raw_flow`: SciPy's DOP853 on dparams/dt = -grad Loss itself, in its own time.
3. `balancedness`: the conserved `W_{k+1}^T W_{k+1} - W_k W_k^T` of a deep linear net.
"""

import math
from typing import Any

import jax
import numpy as np
from _common import run_benchmark, show
from jax.flatten_util import ravel_pytree
from scipy.integrate import solve_ivp

import gflow
from gflow import losses, networks, perturbations


def attacked(network: Any, data: gflow.Dataset, perturbation: Any) -> gflow.Problem:
    return gflow.Problem(network, data, loss=losses.exponential(), perturbation=perturbation)


def closed_form(smoke: bool) -> list[dict[str, Any]]:
    """Relative error of w at t = 1e12, at a row of tolerances."""
    columns = ("tolerance", "num_steps", "error")
    radius, w0, time = 0.3, 0.5, 1e3 if smoke else 1e12
    c = 1 - radius
    data = gflow.Dataset(np.array([[1.0], [-1.0]]), np.array([1, -1]))
    problem = attacked(networks.linear(1), data, perturbations.fgm(radius))
    exact = math.log(math.exp(c * w0) + 2 * c**2 * time) / c
    rows = []
    show({}, columns, header=True)
    for tolerance in (1e-6, 1e-8) if smoke else (1e-6, 1e-8, 1e-10, 1e-12):
        start = (np.array([[w0]]),)
        until = gflow.Until(time=time)
        flow = gflow.integrate(problem, start, until=until, tolerance=tolerance, throw=False)
        row: dict[str, Any] = {"tolerance": tolerance, "result": flow.result_name}
        if flow.successful:
            error = abs(float(flow.params[0][0, 0]) / exact - 1)
            row |= {"num_steps": flow.stats["num_steps"], "error": error}
        rows.append(row)
        show(row, columns)
    return rows


def raw_flow(smoke: bool) -> list[dict[str, Any]]:
    """Relative distance of the parameters at equal time, DOP853 at 1e-12 on the raw flow."""
    columns = ("problem", "tolerance", "num_steps", "error")
    data = gflow.datasets.gaussian(20, 5)
    networks_ = {
        "deep linear": networks.deep_linear((5, 4, 1)),
        "ReLU^2": networks.mlp((5, 6, 1), power=2),
    }
    rows = []
    show({}, columns, header=True)
    for name, network in list(networks_.items())[: 1 if smoke else 2]:
        for attack in ("clean",) if smoke else ("clean", "FGM"):
            radius = {"clean": 0.0, "FGM": 0.1}[attack]
            problem = attacked(network, data, perturbations.fgm(radius))
            rows += by_tolerance(f"{name} {attack}", problem, smoke, columns)
    return rows


def by_tolerance(
    name: str, problem: gflow.Problem, smoke: bool, columns: tuple[str, ...]
) -> list[dict[str, Any]]:
    time = 0.5 if smoke else 20.0
    start = problem.network.init(0)
    reference = integrated_raw(problem, start, time)
    rows = []
    for tolerance in (1e-6,) if smoke else (1e-6, 1e-8, 1e-10):
        until = gflow.Until(time=time)
        flow = gflow.integrate(problem, start, until=until, tolerance=tolerance, throw=False)
        row: dict[str, Any] = {
            "problem": name,
            "tolerance": tolerance,
            "result": flow.result_name,
        }
        if flow.successful:
            difference = np.linalg.norm(ravel_pytree(flow.params)[0] - reference)
            error = float(difference / np.linalg.norm(reference))
            row |= {"num_steps": flow.stats["num_steps"], "error": error}
        rows.append(row)
        show(row, columns)
    return rows


def integrated_raw(problem: gflow.Problem, start: Any, time: float) -> np.ndarray:
    vector, shaped = ravel_pytree(start)

    @jax.jit
    def velocity(vector):
        return -ravel_pytree(problem.gradient(shaped(vector)))[0]

    solution = solve_ivp(
        lambda _, z: np.asarray(velocity(z)),
        (0.0, time),
        np.asarray(vector),
        method="DOP853",
        rtol=1e-12,
        atol=1e-13,
    )
    if not solution.success:
        raise RuntimeError(solution.message)
    return solution.y[:, -1]


def balancedness(smoke: bool) -> list[dict[str, Any]]:
    """Largest drift of the conserved matrices, over the squared norm of the parameters."""
    columns = ("tolerance", "num_steps", "drift")
    data = gflow.datasets.gaussian(20, 5)
    problem = attacked(networks.deep_linear((5, 4, 3, 1)), data, perturbations.fgm(0.1))
    start = problem.network.init(0)
    before = gflow.measures.balancedness(start)
    rows = []
    show({}, columns, header=True)
    for tolerance in (1e-6,) if smoke else (1e-6, 1e-8, 1e-10):
        until = gflow.Until(log_kappa=2.0 if smoke else 5.0)
        flow = gflow.integrate(problem, start, until=until, tolerance=tolerance, throw=False)
        row: dict[str, Any] = {"tolerance": tolerance, "result": flow.result_name}
        if flow.successful:
            after = gflow.measures.balancedness(flow.params)
            gaps = [np.max(np.abs(a - b)) for a, b in zip(after, before, strict=True)]
            drift = float(max(gaps) / np.exp(2 * flow.log_norm[-1]))
            row |= {"num_steps": flow.stats["num_steps"], "drift": drift}
        rows.append(row)
        show(row, columns)
    return rows


def measure(smoke: bool) -> dict[str, Any]:
    parts = (closed_form, raw_flow, balancedness)
    return {part.__name__: part(smoke) for part in parts}


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
