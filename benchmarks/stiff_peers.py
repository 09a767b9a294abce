"""Steps of stiff solvers on the flow of linear networks to kappa 1e8, all on the same field.

`integrate` with Rodas5P; diffrax's Kvaerno5; SciPy's BDF, Radau and LSODA with the exact Jacobian;
gradient descent with steps divided by the loss. Signs are smoothed by 1e-3: exact ones make the
flow slide on 74 x 20, where no error could be told. The error is the distance of the predictor,
times kappa, to a tight integration at the same kappa. Every solver has the loosest of a few
tolerances with which it is at most 50, or a tenth of the flow's own distance to its limit where
that is more; the most accurate if none is. The figure shows steps against kappa.
"""

import math
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import diffrax
import numpy as np
from _common import run_benchmark, save_figure, show
from _linear import (
    ATTACKS,
    linear_network,
    linear_problem,
    max_margin,
    predictor_direction,
    predictor_error,
    smoothed,
)
from _peers import ScipyField, by_descent, by_gflow

import gflow

KAPPA, SMOKE_KAPPA = 1e8, 1e2
# The error, times kappa, that is small enough; or this share of the flow's distance to its limit.
ENOUGH, SHARE = 50.0, 0.1
SMOOTHING = 1e-3
MOST_STEPS, MOST_SECONDS, MOST_DESCENT, MOST_KVAERNO = 5000, 20.0, 100_000, 2000
OWN_TOLERANCES = (5e-2, 1e-2, 1e-3, 1e-4)
STEP_SIZES = (0.5, 0.1)
TOLERANCES = (1e-4, 1e-6, 1e-8, 1e-10)
SIZES = ((40, 5), (74, 20))
DEGREES = (1, 2, 3, 4)
# What one problem is called by.
KEY = ("size", "degree", "attack")
COLUMNS = (*KEY, "solver", "tolerance", "result", "num_steps", "error_kappa")
COLUMNS += ("log_kappa", "seconds")


def measure(smoke: bool) -> dict[str, Any]:
    kappa = SMOKE_KAPPA if smoke else KAPPA
    rows = []
    show({}, COLUMNS, header=True)
    for size, degree, attack in list(product(SIZES, DEGREES, ATTACKS))[: 1 if smoke else None]:
        rows += problem_rows(size, degree, attack, kappa)
    return {"kappa": kappa, "ratios": ratios(rows), "rows": rows}


def problem_rows(
    size: tuple[int, int], degree: int, attack: str, kappa: float
) -> list[dict[str, Any]]:
    data = gflow.datasets.gaussian(*size, gap=0.5, seed=0)
    network = linear_network(size[1], degree)
    given = smoothed(ATTACKS[attack], SMOOTHING) if attack == "linf" else ATTACKS[attack]
    problem, start = linear_problem(network, data, given), network.init(0, scale=0.1)
    same = reference(problem, start, network, kappa)
    own_distance = np.linalg.norm(same - max_margin(data, ATTACKS[attack]).direction)
    enough = max(ENOUGH, SHARE * kappa * own_distance)
    rows = []
    for name, run in solvers(problem, start, kappa).items():
        values = ("{} x {}".format(*size), degree, attack)
        row = {**dict(zip(KEY, values, strict=True)), "solver": name, "enough": enough}
        row |= best(run, lambda params: kappa * predictor_error(network, params, same), enough)
        row["steps_at"] = steps_at(*row.pop("curve"), kappa)
        rows.append(row)
        show(row, COLUMNS)
    return rows


def steps_at(log_kappa: np.ndarray, num_steps: np.ndarray, kappa: float) -> dict[str, int]:
    """Steps until every power of ten up to kappa that was reached."""
    powers = range(1, round(math.log10(kappa)) + 1)
    # The end lies on its target to rounding only.
    first = {p: np.flatnonzero(log_kappa >= p * math.log(10) - 1e-9) for p in powers}
    return {f"1e{p}": int(num_steps[where[0]]) for p, where in first.items() if len(where)}


def reference(problem, start, network, kappa: float) -> np.ndarray:
    """The predictor at the same kappa by a tight integration."""
    flow = gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_kappa=math.log(kappa)),
        solver=gflow.Rosenbrock(),
        tolerance=1e-8,
        atol_logit=1e-4,
    )
    return predictor_direction(network, flow.direction)


def solvers(problem, start, kappa: float) -> dict[str, Any]:
    """For every solver, a generator of tolerances and rows, one at a time."""
    field = ScipyField(problem, start)
    limits = {"max_steps": MOST_STEPS, "max_seconds": MOST_SECONDS}

    def rodas():
        for rtol in OWN_TOLERANCES:
            options = {"max_steps": MOST_STEPS, "save": None, "rtol_direction": rtol}
            options["tolerance"] = rtol / 5
            yield rtol, by_gflow(problem, start, kappa, gflow.Rosenbrock(), **options)

    def kvaerno():
        for tolerance in TOLERANCES[:2]:
            options = {"max_steps": MOST_KVAERNO, "save": None, "tolerance": tolerance}
            yield tolerance, by_gflow(problem, start, kappa, diffrax.Kvaerno5(), **options)

    def scipy(name: str):
        for tolerance in TOLERANCES:
            yield tolerance, field.run(kappa, name, tolerance, **limits)

    def descent():
        for step_size in STEP_SIZES:
            most = min(MOST_DESCENT, int(20 * kappa))
            yield step_size, by_descent(problem, start, kappa, step_size=step_size, most=most)

    scipy_runs = {f"SciPy {name}": partial(scipy, name) for name in ("BDF", "Radau", "LSODA")}
    runs = {"gflow Rodas5P": rodas, "diffrax Kvaerno5": kvaerno, **scipy_runs}
    return runs | {"descent / loss": descent}


def best(run, error, enough: float) -> dict[str, Any]:
    """The first run that is accurate enough, else the most accurate, else that which came
    farthest.
    """

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        farthest = -math.inf if row["result"] == "diverged" else row["log_kappa"]
        return row.get("error_kappa", math.inf), -farthest

    rows: list[dict[str, Any]] = []
    for tolerance, row in run():
        row["tolerance"] = tolerance
        if "direction" in row:
            row["error_kappa"] = error(row.pop("direction"))
        rows.append(row)
        if rank(row)[0] <= enough:
            break
    return min(rows, key=rank)


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Steps of every peer over those of gflow; what it reached instead where it failed."""
    table = []
    for values in dict.fromkeys(tuple(row[key] for key in KEY) for row in rows):
        group = [row for row in rows if tuple(row[key] for key in KEY) == values]
        own = group[0]["num_steps"]
        line: dict[str, Any] = {**dict(zip(KEY, values, strict=True)), "gflow": own}
        for row in group[1:]:
            failure = f"{row['result']} at log kappa {row['log_kappa']:.1f}"
            reached = row["result"] == "successful"
            line[row["solver"]] = row["num_steps"] / own if reached else failure
        table.append(line)
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    """Steps against kappa: one panel a degree, clean, 74 x 20 where that was run."""
    from matplotlib import pyplot

    size = results["rows"][-1]["size"]
    rows = [r for r in results["rows"] if (r["attack"], r["size"]) == ("clean", size)]
    degrees = list(dict.fromkeys(row["degree"] for row in rows))
    names = list(dict.fromkeys(row["solver"] for row in rows))
    colours = dict(
        zip(names, ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00"), strict=False)
    )
    width = 3.2 * len(degrees) + 2.2
    figure, panels = pyplot.subplots(
        1, len(degrees), figsize=(width, 3.6), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, degree in zip(panels[0], degrees, strict=True):
        for name, marker in zip(names, "osv^Dx", strict=False):
            (row,) = (r for r in rows if (r["degree"], r["solver"]) == (degree, name))
            # What diverged has followed no path.
            curve = {} if row["result"] == "diverged" else row["steps_at"]
            axes.loglog(
                [float(kappa) for kappa in curve],
                list(curve.values()),
                marker + "-",
                color=colours[name],
                linewidth=2 if name.startswith("gflow") else 1,
                markersize=5,
                label=name,
            )
        axes.set(xlabel=r"$\kappa$", title=f"degree {degree}, clean, {size}")
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("accepted steps until then")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside right center")
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == "__main__":
    run_benchmark(__doc__, measure, draw)
