"""Large networks: steps of the flow, and what a step costs in gradients of the loss.

Digits 3 against 8, MLP 64-64-1 (4 160 weights, 357 images) to far beyond any floating-point kappa,
and to the limit; and one step with the dense Jacobian beside one without, by size. A gradient is
one of the adversarial loss, perturbation included, compiled, timed in the same process between
segments of the flow.
"""

import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from _common import run_benchmark, show
from _large import COLUMNS, Costs, flow_row, peak_gb

import gflow
from gflow import losses, networks, perturbations
from gflow.flow.clocked import ClockedRosenbrock
from gflow.flow.field import Field

DIGITS_ATTACKS = {
    "FGM 0.3": perturbations.fgm(0.3),
    "FGSM 0.05": perturbations.fgsm(0.05, smoothing=0.1),
    "PGD l2 0.3": perturbations.pgd(0.3, order=2, step_size=0.1, num_steps=5),
}


def measure(smoke: bool) -> dict[str, Any]:
    show({}, COLUMNS, header=True)
    return {
        "digits": digits_rows(smoke),
        "digits_limits": limit_rows(smoke),
        "dense_or_not": crossover(smoke),
    }


def digits_rows(smoke: bool) -> list[dict[str, Any]]:
    """One row for an attack and a cap; the margin is near 0.03, so that they are 30 to 300."""
    network = networks.mlp((64, 64, 1), smoothing=0.05)
    rows = []
    for name, attack in list(DIGITS_ATTACKS.items())[: 1 if smoke else 3]:
        problem = gflow.Problem(
            network, gflow.datasets.digits(), loss=losses.exponential(), perturbation=attack
        )
        for cap in (1e3,) if smoke else (1e3, 1e4):
            budget = 24 if smoke else 250
            row = flow_row(problem, network.init(0), gflow.Rosenbrock(), cap, 1e5, budget)
            rows.append({"problem": "digits", "attack": name, **row})
            show(rows[-1], COLUMNS)
    return rows


def limit_rows(smoke: bool) -> list[dict[str, Any]]:
    """`find_limit` on the digits, compilation included: one row an attack."""
    columns = ("attack", "result", "verdict", "num_steps", "stationarity", "margin", "seconds")
    columns += ("peak_gb",)
    show({}, columns, header=True)
    network = networks.mlp((64, 4 if smoke else 64, 1), smoothing=0.05)
    rows = []
    for name, attack in list(DIGITS_ATTACKS.items())[: 1 if smoke else 3]:
        problem = gflow.Problem(
            network, gflow.datasets.digits(), loss=losses.exponential(), perturbation=attack
        )
        begin = time.perf_counter()
        limit = gflow.find_limit(problem, network.init(0), max_steps=600, throw=False)
        seconds = time.perf_counter() - begin
        row = {"attack": name, "result": limit.result_name, "verdict": limit.verdict}
        row |= {"num_steps": limit.num_flow_steps, "seconds": seconds, "peak_gb": peak_gb()}
        if limit.polished is not None:
            row |= {"stationarity": limit.certificate.stationarity, "margin": limit.margin}
        rows.append({**row, "limit": limit.to_dict()})
        show(rows[-1], columns)
    return rows


def crossover(smoke: bool) -> list[dict[str, Any]]:
    """Seconds of one Rodas5P step at one point, dense and matrix-free, and how far they differ."""
    columns = ("width", "parameters", "dense", "matrix_free", "gradient", "difference")
    show({}, columns, header=True)
    rows = []
    for width in (4,) if smoke else (4, 8, 16, 32):
        rows.append(crossover_row(width, 1 if smoke else 7))
        show(rows[-1], columns)
    return rows


def crossover_row(width: int, repeats: int) -> dict[str, Any]:
    network = networks.mlp((64, width, 1), smoothing=0.05)
    problem = gflow.Problem(
        network,
        gflow.datasets.digits(),
        loss=losses.exponential(),
        perturbation=perturbations.fgm(0.3),
    )
    flow = gflow.integrate(
        problem,
        network.init(0),
        until=gflow.Until(log_kappa=20.0),
        solver=gflow.Rosenbrock(linear_solver=gflow.Krylov()),
        tolerance=1e-2,
        kappa_cap=1e3,
        max_steps=60,
        throw=False,
    )
    field = Field(problem, flow.layout, np.asarray(np.log(1e3)))
    tail = [flow.log_kappa[-1] / problem.degree, 0.0]
    state = jnp.asarray(np.concatenate([flow.vectors[-1], tail]))
    h = jnp.asarray(flow.step[-2])
    row: dict[str, Any] = {"width": width, "parameters": flow.layout.size}
    row["gradient"] = Costs(problem, flow.direction).gradient_seconds()
    ends = []
    for name, linear in (("dense", lx.LU()), ("matrix_free", gflow.Krylov(1e-4))):
        solver = ClockedRosenbrock(linear_solver=linear)
        run = eqx.filter_jit(lambda s, h, f, by: by.step(None, 0.0 * h, h, s, f, None, False)[0])
        ends.append(jax.block_until_ready(run(state, h, field, solver)))
        seconds = []
        for _ in range(repeats):
            begin = time.perf_counter()
            jax.block_until_ready(run(state, h, field, solver))
            seconds.append(time.perf_counter() - begin)
        row[name] = min(seconds)
    moved = jnp.linalg.norm(ends[0] - state)
    return row | {"difference": float(jnp.linalg.norm(ends[0] - ends[1]) / moved)}


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
