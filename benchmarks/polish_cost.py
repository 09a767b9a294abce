"""What the polish of a limit costs beside IPOPT, from the same point of the flow.

Networks 10-16-1 on 20 Gaussian points with random labels, of smoothed ReLU (mu = 0.05) and of
ReLU^2, every seed with data and initial weights of its own; clean, under FGM 0.08 and under FGSM
0.03 (signs smoothed by 0.1) with the total gradient, so that a limit is a KKT point of

    min |theta|^2 / 2   over   q_i(theta) >= 1.

Each problem is taken where the flow is first handed over to Newton's method, and solved from there
by gflow's polish and by IPOPT with exact gradients and Hessians: "cold", given the point, and
"warm", given the weights of the flow as multipliers too. The residual is measured alike, with the
multipliers of each, by derivatives of JAX: the largest of the stationarity relative to |theta|, the
violation, and `max_i |lambda_i (q_i - 1)| L / |theta|^2`, which is a share of `sum_i lambda_i q_i`.
Milliseconds are those of the process's CPU, for a whole call that has been compiled: medians of
calls in turn. Where cyipopt is not installed, the rows of IPOPT say so.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from _common import run_benchmark, show
from _ipopt import VERSION, LargestMargin
from _problems import random_labels

import gflow
from gflow import losses, networks, perturbations
from gflow.kkt.variables import at_unit_margin
from gflow.limit import smooth
from gflow.limit.polish import polish_capped

NETWORKS = {"smoothed_relu": {"smoothing": 0.05}, "relu_squared": {"power": 2}}
ATTACKS = {
    "clean": perturbations.clean(),
    "FGM 0.08": perturbations.fgm(0.08),
    "FGSM 0.03": perturbations.fgsm(0.03, smoothing=0.1),
}
NUM_SEEDS, NUM_CALLS = 4, 7
PEERS = ("IPOPT cold", "IPOPT warm")
COLUMNS = ("network", "attack", "seed", "solver", "result", "num_systems", "residual", "margin")
COLUMNS += ("moved", "apart", "ms", "ratio")
# Directions this close are taken for the same point; and for neighbours, as within a family.
SAME, NEAR = 1e-6, 1e-2


class Found(NamedTuple):
    """Where a solver ended."""

    result: str
    theta: np.ndarray
    multipliers: np.ndarray
    num_systems: int


def measure(smoke: bool) -> dict[str, Any]:
    rows: list[dict[str, Any]] = []
    show({}, COLUMNS, header=True)
    for network in list(NETWORKS)[: 1 if smoke else None]:
        for attack in list(ATTACKS)[: 1 if smoke else None]:
            for seed in range(1 if smoke else NUM_SEEDS):
                problem = {"network": network, "attack": attack, "seed": seed}
                for row in rows_of(network, attack, seed, 1 if smoke else NUM_CALLS):
                    rows.append(problem | row)
                    show(rows[-1], COLUMNS)
    return {"ipopt": VERSION or "not installed", "summary": summaries(rows), "rows": rows}


def rows_of(network: str, attack: str, seed: int, num_calls: int) -> list[dict[str, Any]]:
    """A row of each solver on one problem."""
    net = networks.mlp((10, 16, 1), **NETWORKS[network])
    problem = gflow.Problem(
        net,
        random_labels(seed),
        loss=losses.logistic(),
        perturbation=ATTACKS[attack],
        gradient="total",
    )
    given = first_handover(problem, net.init(seed))
    if given is None:
        return [{"solver": "gflow", "result": "no handover"}]
    _, layout, direction, weights, *_ = given
    start = at_unit_margin(problem, layout, direction, weights)
    program = LargestMargin(
        lambda theta: problem.margins(layout.unflatten(theta)).ravel(),
        len(start.theta),
        len(start.multipliers),
    )
    calls = {"gflow": lambda: by_gflow(given)}
    if VERSION is not None:
        calls["IPOPT cold"] = lambda: by_ipopt(program, start.theta)
        calls["IPOPT warm"] = lambda: by_ipopt(program, start.theta, start.multipliers)
    ends, ms = in_turn(calls, num_calls)
    rows = []
    for name, end in ends.items():
        row = {"solver": name, "result": end.result, "num_systems": end.num_systems}
        row |= evidence(program, end, problem.degree)
        row |= {
            "moved": apart(end.theta, direction),
            "apart": apart(end.theta, ends["gflow"].theta),
        }
        rows.append(row | {"ms": ms[name], "ratio": ms["gflow"] / ms[name]})
    missing = [name for name in PEERS if name not in ends]
    return rows + [{"solver": name, "result": "not installed"} for name in missing]


def first_handover(problem: gflow.Problem, start: Any) -> tuple[Any, ...] | None:
    """What the search first gives to its polish; None where the flow does not come so far."""
    with mock.patch.object(smooth, "polish_capped", wraps=polish_capped) as polishes:
        gflow.find_limit(problem, start, escape=False, throw=False)
    handovers = polishes.call_args_list
    return handovers[0].args if handovers else None


def by_gflow(given: tuple[Any, ...]) -> Found:
    point = polish_capped(*given)
    result = "converged" if point.converged else "failed"
    return Found(result, point.theta, point.multipliers, point.num_iterations)


def by_ipopt(
    program: LargestMargin, theta: np.ndarray, multipliers: np.ndarray | None = None
) -> Found:
    solved = program.solve(theta, multipliers)
    result = {0: "converged", 1: "acceptable"}.get(solved.status, f"status {solved.status}")
    return Found(result, solved.theta, solved.multipliers, solved.num_iterations)


def in_turn(
    calls: dict[str, Callable[[], Found]], num_calls: int
) -> tuple[dict[str, Found], dict[str, float]]:
    """The ends, and the CPU milliseconds of calls made in turn, after one of each that compiles."""
    ends = {name: call() for name, call in calls.items()}
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(num_calls):
        for name, call in calls.items():
            begin = time.process_time()
            call()
            spent[name].append(1e3 * (time.process_time() - begin))
    return ends, {name: statistics.median(ms) for name, ms in spent.items()}


def evidence(program: LargestMargin, end: Found, degree: int) -> dict[str, float]:
    """The parts of the KKT residual, the largest of them, and the normalized margin."""
    margins, rows = program.margins_and_rows(end.theta)
    norm = np.linalg.norm(end.theta)
    parts = {
        "stationarity": np.linalg.norm(end.theta - end.multipliers @ rows) / norm,
        "violation": max(0.0, 1 - margins.min()),
        "complementarity": np.abs(end.multipliers * (margins - 1)).max() * degree / norm**2,
    }
    return {"residual": max(parts.values())} | parts | {"margin": margins.min() / norm**degree}


def apart(left: np.ndarray, right: np.ndarray) -> float:
    """The distance of two directions."""
    return float(np.linalg.norm(left / np.linalg.norm(left) - right / np.linalg.norm(right)))


def summaries(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A summary of each solver on each network, clean and attacked apart."""
    found = []
    for network in NETWORKS:
        for attacked in (False, True):
            for solver in ("gflow", *PEERS):
                chosen = [
                    row
                    for row in rows
                    if (row["network"], row["solver"]) == (network, solver)
                    and (row["attack"] != "clean") == attacked
                    and "ms" in row
                ]
                if chosen:
                    kind = {"network": network, "attacked": attacked, "solver": solver}
                    found.append(kind | summary(chosen))
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts, the worst residual of what converged, and medians."""
    converged = [row for row in rows if row["result"] == "converged"]
    return {
        "num_problems": len(rows),
        "num_converged": len(converged),
        "num_at_the_same_point": sum(row["apart"] < SAME for row in rows),
        "num_elsewhere": sum(row["apart"] > NEAR for row in rows),
        "worst_residual": max((row["residual"] for row in converged), default=None),
        "median_moved": statistics.median(row["moved"] for row in rows),
        "median_systems": statistics.median(row["num_systems"] for row in rows),
        "median_ms": statistics.median(row["ms"] for row in rows),
        "median_ratio": statistics.median(row["ratio"] for row in rows),
    }


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
