"""Work against precision: the Rosenbrock methods beside other stiff solvers, on one field.

Linear (clean, l_2), deep linear (degrees 2 and 3) and two-layer smoothed ReLU networks, the latter
with the temperature cap 1e3. Error: distance of the direction of all weights to a tight integration
at the same kappa, not to the limit. Work: steps tried, evaluations of the field (a Jacobian counts
apart), seconds without compilation. Every solver over a range of tolerances: of the Rosenbrock
methods `rtol_direction` at `atol_logit=0.1`, of Rodas5P at smaller ones too.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import numpy as np
from _common import run_benchmark, save_figure, show
from _linear import ATTACKS, direction_error, linear_network, linear_problem
from _peers import ScipyField, by_gflow

import gflow
from gflow import losses, networks

METHODS = ("Rodas3", "ROS34PW2", "Rodas4P", "Rodas5P")
RTOLS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
PEER_RTOLS = (1e-3, 1e-4, 1e-6, 1e-8, 1e-10)
SERIES = (*((method, 0.1) for method in METHODS), ("Rodas5P", 1e-2), ("Rodas5P", 1e-3))
# Evaluations a step: the stages; of Rodas3 and ROS34PW2 both ends too, for the dense output.
STAGES = {"Rodas3": 4, "ROS34PW2": 4, "Rodas4P": 6, "Rodas5P": 8}
SCHEME_ERROR = 1e-4
MOST_STEPS, MOST_SECONDS = 3000, 10.0
COLUMNS = ("problem", "solver", "rtol_direction", "atol_logit", "result", "num_steps")
COLUMNS += ("num_evaluations", "error", "seconds")
COLOURS = {
    "Rodas3": "#56B4E9",
    "ROS34PW2": "#009E73",
    "Rodas4P": "#0072B2",
    "Rodas5P": "#000000",
    "Rodas5P, atol_logit 0.01": "#666666",
    "Rodas5P, atol_logit 0.001": "#AAAAAA",
    "diffrax Kvaerno5": "#E69F00",
    "SciPy BDF": "#D55E00",
    "SciPy Radau": "#CC79A7",
    "SciPy LSODA": "#8C510A",
}


class Case(NamedTuple):
    """A problem, its start and the kappa at which directions are compared."""

    problem: gflow.Problem
    start: Any
    kappa: float
    cap: float | None


def measure(smoke: bool) -> dict[str, Any]:
    rows = []
    show({}, COLUMNS, header=True)
    for name, case in cases(smoke).items():
        for row in case_rows(case, smoke):
            rows.append({"problem": name, **row})
            show(rows[-1], COLUMNS)
    return {"schemes": schemes(rows), "rows": rows}


def cases(smoke: bool) -> dict[str, Case]:
    data = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
    found = {}
    for name, degree, attack in (
        ("linear", 1, "clean"),
        ("linear, l2", 1, "l2"),
        ("deep linear, degree 2", 2, "clean"),
        ("deep linear, degree 3", 3, "clean"),
    ):
        network = linear_network(5, degree)
        problem = linear_problem(network, data, ATTACKS[attack])
        found[name] = Case(problem, network.init(0, scale=0.1), 1e2 if smoke else 1e6, None)
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(20, 10)), np.where(generator.random(20) < 0.5, -1, 1)
    network = networks.mlp((10, 20, 1), smoothing=0.05)
    problem = gflow.Problem(network, gflow.Dataset(x, y), loss=losses.exponential())
    found["smoothed ReLU, capped"] = Case(problem, network.init(0), 1e6, 1e3)
    return {"linear": found["linear"]} if smoke else found


def case_rows(case: Case, smoke: bool):
    """A row for every solver and tolerance."""
    options = {"max_steps": 20 * MOST_STEPS, "kappa_cap": case.cap}
    tight = {"tolerance": 1e-10, "atol_logit": 1e-6}
    same = by_gflow(case.problem, case.start, case.kappa, gflow.Rosenbrock(), **options, **tight)
    reference = same["direction"]
    for solver, rtol, atol_logit, run in solvers(case, smoke):
        row = run()
        row = {"solver": solver, "rtol_direction": rtol, "atol_logit": atol_logit} | row
        row.pop("curve")
        if "direction" in row:
            row["error"] = direction_error(row.pop("direction"), reference)
        yield row


def solvers(case: Case, smoke: bool):
    """Name, tolerances, and a function that gives the row."""
    options = {"max_steps": MOST_STEPS, "kappa_cap": case.cap}
    at = case.problem, case.start, case.kappa
    for method, atol_logit in SERIES[3:4] if smoke else SERIES:
        name = method if atol_logit == 0.1 else f"{method}, atol_logit {atol_logit:g}"
        for rtol in RTOLS[:2] if smoke else RTOLS:
            bounds = {"tolerance": 1e-2, "rtol_direction": rtol, "atol_logit": atol_logit}
            yield name, rtol, atol_logit, lambda m=method, b=bounds: rosenbrock(at, m, options | b)
    if smoke:
        return
    for rtol in PEER_RTOLS[:4]:
        yield (
            "diffrax Kvaerno5",
            rtol,
            None,
            lambda r=rtol: by_gflow(*at, diffrax.Kvaerno5(), tolerance=r, **options),
        )
    field = ScipyField(case.problem, case.start, case.cap)
    for name in ("BDF", "Radau", "LSODA"):
        for rtol in PEER_RTOLS:
            yield (
                f"SciPy {name}",
                rtol,
                None,
                lambda n=name, r=rtol: field.run(
                    case.kappa, n, r, max_steps=MOST_STEPS, max_seconds=MOST_SECONDS
                ),
            )


def rosenbrock(at: tuple, method: str, options: dict[str, Any]) -> dict[str, Any]:
    row = by_gflow(*at, gflow.Rosenbrock(method), **options)
    count = row["num_steps"]
    return row | {"num_evaluations": STAGES[method] * count, "num_jacobians": count}


def schemes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The four methods: the fewest steps with an error of at most 1e-4, and what it took."""
    table = []
    for problem, method in dict.fromkeys((r["problem"], r["solver"]) for r in rows):
        if method not in METHODS:
            continue
        group = [r for r in rows if (r["problem"], r["solver"]) == (problem, method)]
        good = [r for r in group if r.get("error", math.inf) <= SCHEME_ERROR]
        best = min(good, key=lambda row: row["num_steps"], default={"result": "not reached"})
        names = ("result", "rtol_direction", "num_steps", "num_evaluations", "error", "seconds")
        table.append({"problem": problem, "method": method} | {n: best.get(n) for n in names})
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    """Error against steps, one panel a problem."""
    from matplotlib import pyplot

    rows = results["rows"]
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, panels = pyplot.subplots(
        1,
        len(problems),
        figsize=(2.7 * len(problems) + 2.4, 3.2),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, problem in zip(panels[0], problems, strict=True):
        for solver, colour in COLOURS.items():
            group = [r for r in rows if (r["problem"], r["solver"]) == (problem, solver)]
            done = [r for r in group if "error" in r]
            axes.loglog(
                [max(r["error"], 1e-15) for r in done],
                [r["num_steps"] for r in done],
                "o-" if solver.startswith(("Ro", "RO")) else "x--",
                color=colour,
                linewidth=1,
                markersize=4,
                label=solver,
            )
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_title(problem, fontsize=10)
        axes.set_xlabel("error of the direction")
        axes.invert_xaxis()
    panels[0, 0].set_ylabel("steps tried")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside right center")
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == "__main__":
    run_benchmark(__doc__, measure, draw)
