"""What an error costs: the steps of gflow's solvers beside diffrax's, SciPy's and descent.

All follow the same compiled field from one start to one kappa. The error is the distance of the
direction to a tight integration at the same kappa, not to the limit. Three groups of problems:

- `early`, where the flow is not yet stiff: deep linear and ReLU^2 networks, clean and under FGM, to
  kappa 100. Explicit methods beside implicit ones, at a range of tolerances.
- `stiff`: linear and deep linear networks to kappa 1e6, and a two-layer smoothed ReLU network with
  its temperature capped at 1e3. All four Rosenbrock methods, by `rtol_direction` at
  `atol_logit=0.1`, Rodas5P at smaller ones too.
- `far`: linear networks of degrees 1 to 4 to kappa 1e8, clean and attacked (signs smoothed by 1e-3:
  exact ones make the flow slide, where no error can be told). The error is that of the predictor,
  times kappa; of every solver the loosest tolerance with which it is at most 50, or a tenth of the
  flow's own distance to its limit where that is more; the most accurate if none is.

The figures: steps against the error (`stiff`), and beside it, named `_far`, steps against kappa.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import numpy as np
from _common import new_panels, run_benchmark, save_panels, show
from _peers import EXPLICIT, Runs, Task, by_gflow, by_scipy, descent, explicit, kvaerno, rosenbrock
from _problems import (
    ATTACKS,
    direction_error,
    linear_network,
    linear_problem,
    max_margin,
    predictor_direction,
    predictor_error,
    smoothed,
    two_layer,
)

import gflow
from gflow import losses, networks, perturbations

METHODS = ("Rodas3", "ROS34PW2", "Rodas4P", "Rodas5P")
TOLERANCES = (1e-4, 1e-6, 1e-8, 1e-10)
RTOLS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
SERIES = (*((method, 0.1) for method in METHODS), ("Rodas5P", 1e-2), ("Rodas5P", 1e-3))
SCHEME_ERROR = 1e-4
MOST_DESCENT = 100_000
# Of `far`: what of the error times kappa is small enough; or this share of the flow's distance.
ENOUGH, SHARE, SMOOTHING, STEP_SIZES = 50.0, 0.1, 1e-3, (0.5, 0.1)
COLUMNS = ("group", "problem", "solver", "tolerance", "result", "num_steps", "num_evaluations")
COLUMNS += ("error", "log_kappa", "seconds")
COLOURS = {
    "gflow Rodas3": "#56B4E9",
    "gflow ROS34PW2": "#009E73",
    "gflow Rodas4P": "#0072B2",
    "gflow Rodas5P": "#000000",
    "gflow Rodas5P, atol_logit 0.01": "#666666",
    "gflow Rodas5P, atol_logit 0.001": "#AAAAAA",
    "diffrax Kvaerno5": "#E69F00",
    "SciPy BDF": "#D55E00",
    "SciPy Radau": "#CC79A7",
    "SciPy LSODA": "#8C510A",
    "descent / loss": "#56B4E9",
}


class Case(NamedTuple):
    """What is followed, by what the error is told, and how small it has to be.

    `enough=None` asks for every tolerance of every solver.
    """

    task: Task
    error: Callable[[Any], float]
    enough: float | None = None


def measure(smoke: bool) -> dict[str, Any]:
    show({}, COLUMNS, header=True)
    groups = {"early": (early, early_solvers), "stiff": (stiff, stiff_solvers)}
    groups |= {"far": (far, far_solvers)}
    rows = []
    for group, (cases, solvers) in groups.items():
        for name, case in cases(smoke):
            for row in case_rows(case, solvers(case.task, smoke)):
                rows.append({"group": group, "problem": name, **row})
                show(rows[-1], COLUMNS)
            if smoke:
                break
    return {"ratios": ratios(rows), "schemes": schemes(rows), "rows": rows}


def case_rows(case: Case, solvers: dict[str, Runs]) -> Iterator[dict[str, Any]]:
    """A row for every solver and tolerance, or for every solver the one that is accurate enough."""
    for name, runs in solvers.items():
        rows = []
        for tolerance, run in runs:
            row = {"solver": name, "tolerance": tolerance} | run()
            row["steps_at"] = steps_at(*row.pop("curve"), case.task.kappa)
            if "direction" in row:
                row["error"] = case.error(row.pop("direction"))
            rows.append(row)
            if case.enough is not None and row.get("error", math.inf) <= case.enough:
                break
        yield from rows if case.enough is None else [most_accurate(rows, case.enough)]


def most_accurate(rows: list[dict[str, Any]], enough: float) -> dict[str, Any]:
    """The row of the smallest error, or of that which came farthest."""

    def rank(row: dict[str, Any]) -> tuple[float, float]:
        farthest = -math.inf if row["result"] == "diverged" else row["log_kappa"]
        return row.get("error", math.inf), -farthest

    return min(rows, key=rank) | {"enough": enough}


def steps_at(log_kappa: np.ndarray, num_steps: np.ndarray, kappa: float) -> dict[str, int]:
    """Steps until every power of ten up to kappa that was reached."""
    powers = range(1, round(math.log10(kappa)) + 1)
    # The end lies on its target to rounding only.
    first = {p: np.flatnonzero(log_kappa >= p * math.log(10) - 1e-9) for p in powers}
    return {f"1e{p}": int(num_steps[where[0]]) for p, where in first.items() if len(where)}


# The problems


def early(smoke: bool) -> Iterator[tuple[str, Case]]:
    data = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
    attacks = {"clean": perturbations.clean(), "FGM": perturbations.fgm(0.1)}
    for kind, network in {
        "deep linear": networks.deep_linear((5, 4, 1)),
        "ReLU^2": networks.mlp((5, 8, 1), power=2),
    }.items():
        for name, attack in attacks.items():
            problem = gflow.Problem(network, data, loss=losses.logistic(), perturbation=attack)
            task = Task(problem, network.init(0), 10.0 if smoke else 100.0)
            tight = by_gflow(task, diffrax.Dopri8(), tolerance=1e-13, max_steps=100_000)
            yield f"{kind}, {name}", Case(task, partial(direction_error, right=tight["direction"]))


def stiff(smoke: bool) -> Iterator[tuple[str, Case]]:
    data = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
    kappa = 1e2 if smoke else 1e6
    tasks = {}
    for name, degree, attack in (
        ("linear", 1, "clean"),
        ("linear, l2", 1, "l2"),
        ("deep linear, degree 2", 2, "clean"),
        ("deep linear, degree 3", 3, "clean"),
    ):
        network = linear_network(5, degree)
        problem = linear_problem(network, data, ATTACKS[attack])
        tasks[name] = Task(problem, network.init(0, scale=0.1), kappa)
    tasks["smoothed ReLU, capped"] = Task(*two_layer(), kappa, 1e3)
    for name, task in tasks.items():
        tight = by_gflow(
            task, gflow.Rosenbrock(), tolerance=1e-10, atol_logit=1e-6, max_steps=60_000
        )
        yield name, Case(task, partial(direction_error, right=tight["direction"]))


def far(smoke: bool) -> Iterator[tuple[str, Case]]:
    kappa = 1e2 if smoke else 1e8
    for size, degree, attack in product(((40, 5), (74, 20)), (1, 2, 3, 4), ATTACKS):
        data = gflow.datasets.gaussian(*size, gap=0.5, seed=0)
        network = linear_network(size[1], degree)
        given = smoothed(ATTACKS[attack], SMOOTHING) if attack == "linf" else ATTACKS[attack]
        task = Task(linear_problem(network, data, given), network.init(0, scale=0.1), kappa)
        tight = by_gflow(
            task, gflow.Rosenbrock(), tolerance=1e-8, atol_logit=1e-4, max_steps=60_000
        )
        same = predictor_direction(network, tight["direction"])
        own_distance = np.linalg.norm(same - max_margin(data, ATTACKS[attack]).direction)
        enough = max(ENOUGH, SHARE * kappa * float(own_distance))
        error = partial(scaled_error, network, same, kappa)
        yield f"{size[0]} x {size[1]}, degree {degree}, {attack}", Case(task, error, enough)


def scaled_error(network, reference: np.ndarray, kappa: float, params) -> float:
    """Distance of the predictor to the reference, times kappa."""
    return kappa * predictor_error(network, params, reference)


# The solvers


def early_solvers(task: Task, smoke: bool) -> dict[str, Runs]:
    tolerances = TOLERANCES[:1] if smoke else TOLERANCES
    own = {f"gflow {name}": explicit(task, name, tolerances) for name in EXPLICIT}
    if smoke:
        return dict(list(own.items())[:1]) | by_scipy(task, ("DOP853",), tolerances)
    return (
        own
        | {"diffrax Kvaerno5": kvaerno(task, tolerances)}
        | by_scipy(task, ("RK45", "DOP853", "LSODA", "BDF", "Radau"), tolerances)
    )


def stiff_solvers(task: Task, smoke: bool) -> dict[str, Runs]:
    series, rtols = (SERIES[3:4], RTOLS[:2]) if smoke else (SERIES, RTOLS)
    own = {}
    for method, logit in series:
        name = f"gflow {method}" + ("" if logit == 0.1 else f", atol_logit {logit:g}")
        options = {"tolerance": 1e-2, "atol_logit": logit}
        own[name] = rosenbrock(task, method, rtols, options)
    if smoke:
        return own
    tolerances = (1e-3, *TOLERANCES)
    return (
        own
        | {"diffrax Kvaerno5": kvaerno(task, tolerances[:4])}
        | by_scipy(task, ("BDF", "Radau", "LSODA"), tolerances)
    )


def far_solvers(task: Task, smoke: bool) -> dict[str, Runs]:
    del smoke
    own = {"gflow Rodas5P": rosenbrock(task, "Rodas5P", (5e-2, 1e-2, 1e-3, 1e-4), {})}
    own |= {"diffrax Kvaerno5": kvaerno(task, TOLERANCES[:2])}
    own |= by_scipy(task, ("BDF", "Radau", "LSODA"), TOLERANCES)
    most = min(MOST_DESCENT, int(20 * task.kappa))
    return own | {"descent / loss": descent(task, STEP_SIZES, most)}


# What the rows say


def ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of `far`: steps of every peer over those of gflow; where it failed, what it reached."""
    table = []
    group = [row for row in rows if row["group"] == "far"]
    for problem in dict.fromkeys(row["problem"] for row in group):
        own, *others = [row for row in group if row["problem"] == problem]
        line: dict[str, Any] = {"problem": problem, "gflow": own["num_steps"]}
        for row in others:
            failure = f"{row['result']} at log kappa {row['log_kappa']:.1f}"
            reached = row["result"] == "successful"
            line[row["solver"]] = row["num_steps"] / own["num_steps"] if reached else failure
        table.append(line)
    return table


def schemes(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of `early` and `stiff`: the fewest steps of every solver with an error of at most 1e-4."""
    table = []
    asked = [row for row in rows if row["group"] != "far"]
    for problem, solver in dict.fromkeys((row["problem"], row["solver"]) for row in asked):
        group = [row for row in asked if (row["problem"], row["solver"]) == (problem, solver)]
        good = [row for row in group if row.get("error", math.inf) <= SCHEME_ERROR]
        best = min(good, key=lambda row: row["num_steps"], default={"result": "not reached"})
        names = ("result", "tolerance", "num_steps", "num_evaluations", "error", "seconds")
        table.append({"problem": problem, "solver": solver} | {n: best.get(n) for n in names})
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    draw_errors([row for row in results["rows"] if row["group"] == "stiff"], path)
    draw_far([row for row in results["rows"] if row["group"] == "far"], path)


def draw_errors(rows: list[dict[str, Any]], path: Path) -> None:
    """Error against steps, one panel a problem."""
    problems = list(dict.fromkeys(row["problem"] for row in rows))
    figure, panels = new_panels(problems, "error of the direction", "steps tried")
    for axes, problem in zip(panels, problems, strict=True):
        for solver in dict.fromkeys(row["solver"] for row in rows):
            done = [r for r in rows if (r["problem"], r["solver"]) == (problem, solver)]
            done = [row for row in done if "error" in row]
            axes.loglog(
                [max(row["error"], 1e-15) for row in done],
                [row["num_steps"] for row in done],
                "o-" if solver.startswith("gflow") else "x--",
                color=COLOURS[solver],
                linewidth=1,
                markersize=4,
                label=solver,
            )
        axes.invert_xaxis()
    save_panels(figure, panels, path)


def draw_far(rows: list[dict[str, Any]], path: Path) -> None:
    """Steps against kappa: one panel a degree, clean, of the larger size that was run."""
    problems = [p for p in dict.fromkeys(r["problem"] for r in rows) if p.endswith("clean")][-4:]
    figure, panels = new_panels(problems, r"$\kappa$", "accepted steps until then")
    for axes, problem in zip(panels, problems, strict=True):
        for row, marker in zip(
            [row for row in rows if row["problem"] == problem], "osv^Dx", strict=False
        ):
            # What diverged has followed no path.
            curve = {} if row["result"] == "diverged" else row["steps_at"]
            axes.loglog(
                [float(kappa) for kappa in curve],
                list(curve.values()),
                marker + "-",
                color=COLOURS[row["solver"]],
                linewidth=2 if row["solver"].startswith("gflow") else 1,
                markersize=5,
                label=row["solver"],
            )
    save_panels(figure, panels, path.with_stem(f"{path.stem}_far"))


if __name__ == "__main__":
    run_benchmark(__doc__, measure, draw)
