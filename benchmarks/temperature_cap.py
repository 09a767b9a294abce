"""How far a temperature cap moves the end of the flow: like its inverse.

The flow with the weights of min(kappa, kappa_c), to log kappa 1e4, against the KKT
point that Newton's method reaches from there, for kappa_c from 1e2 to 1e6; and `find_limit`, which
does the same from a cap of 1e3. A linear, a deep linear and a two-layer smoothed ReLU network. The
figure shows distances against kappa_c.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
from _common import new_panels, run_benchmark, save_panels, show
from _problems import (
    ATTACKS,
    linear_network,
    linear_problem,
    max_margin,
    predictor_error,
    two_layer,
)

import gflow
from gflow._layout import Layout
from gflow.limit.polish import polish

CAPS = (1e2, 1e3, 1e4, 1e5, 1e6)
# So far out that the direction stands still; kappa is beyond any float.
FARTHEST = 1e4
# The slope is that from this cap on; at warmer ones the active margins can hardly be told.
FIRST = 1e3
COLUMNS = ("problem", "kappa_cap", "result", "num_steps", "stationarity", "distance", "scaled")


def measure(smoke: bool) -> dict[str, Any]:
    return {name: capped(name, *case, smoke) for name, case in cases(smoke).items()}


def cases(smoke: bool) -> dict[str, tuple[gflow.Problem, Any]]:
    """Problem and start by name."""
    data = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
    found = {}
    for name, degree in (("linear, l2", 1), ("deep linear, l2", 2)):
        network = linear_network(5, degree)
        problem = linear_problem(network, data, ATTACKS["l2"])
        found[name] = problem, network.init(0, scale=0.5)
    return {"linear, l2": found["linear, l2"]} if smoke else found | {"smoothed ReLU": two_layer()}


def capped(name: str, problem: gflow.Problem, start, smoke: bool) -> dict[str, Any]:
    rows = []
    show({}, COLUMNS, header=True)
    for cap in CAPS[:2] if smoke else CAPS:
        rows.append({"kappa_cap": cap, **capped_row(problem, start, cap)})
        show({"problem": name, **rows[-1]}, COLUMNS)
    done = [row for row in rows if row.get("converged") and row["kappa_cap"] >= FIRST]
    logs = np.log([[row["kappa_cap"], row["distance"]] for row in done])
    slope = float(np.polyfit(*logs.T, 1)[0]) if len(done) > 1 else None
    return {"slope": slope, "rows": rows, "limit": found_limit(name, problem, start)}


def capped_row(problem: gflow.Problem, start, cap: float) -> dict[str, Any]:
    """The end of the capped flow, and the KKT point polished from there."""
    flow = gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_kappa=FARTHEST),
        solver=gflow.Rosenbrock(),
        tolerance=1e-2,
        kappa_cap=cap,
        max_steps=5000,
        throw=False,
    )
    row = {"result": flow.result_name, "num_steps": flow.stats["num_steps"]}
    if not flow.successful:
        return row
    row |= {"log_kappa": flow.log_kappa[-1], "stationarity": flow.stationarity[-1]}
    layout, end = Layout.of(start), flow.vectors[-1]
    weights = np.asarray(problem.ascent(layout.unflatten(end), math.log(cap)).weights).ravel()
    polished = polish(problem, layout, end, weights)
    distance = float(np.linalg.norm(polished.direction - end))
    row |= {"converged": polished.converged, "residual": polished.residual}
    return row | {"distance": distance, "scaled": cap * distance}


def found_limit(name: str, problem: gflow.Problem, start) -> dict[str, Any]:
    """`find_limit` from the same start, and its error where the limit is known."""
    limit = gflow.find_limit(problem, start, throw=False)
    row = {"result": limit.result_name, "stationarity": limit.certificate.stationarity}
    if limit.successful and "linear" in name:
        reference = max_margin(problem.dataset, ATTACKS["l2"]).direction
        row["error"] = predictor_error(problem.network, limit.direction, reference)
    return row


def draw(results: dict[str, Any], path: Path) -> None:
    title = "the capped flow"
    distance = "distance of the flow's end to the limit"
    figure, (axes,) = new_panels([title], r"temperature cap $\kappa_c$", distance)
    styles = zip(("#0072B2", "#D55E00", "#009E73"), "os^", strict=True)
    for (name, case), (colour, marker) in zip(results.items(), styles, strict=False):
        rows = [row for row in case["rows"] if row.get("converged")]
        axes.loglog(
            [row["kappa_cap"] for row in rows],
            [row["distance"] for row in rows],
            marker + "-",
            color=colour,
            linewidth=1,
            label=name if case["slope"] is None else f"{name}: slope {case['slope']:.3f}",
        )
    caps = np.array([CAPS[0], CAPS[-1]])
    axes.loglog(caps, 0.3 / caps, ":", color="0.5", linewidth=1, label="slope -1")
    save_panels(figure, [axes], path)


if __name__ == "__main__":
    run_benchmark(__doc__, measure, draw)
