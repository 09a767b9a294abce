"""Steps of stiff solvers on the flow of linear networks to kappa 1e8, all on the same field.

`integrate` with Rodas5P; diffrax's Kvaerno5; SciPy's BDF, Radau and LSODA with the exact Jacobian;
gradient descent with steps divided by the loss. The error is the distance of the predictor, times
kappa, to a tight integration at the same kappa. Every peer has the loosest of a few tolerances with
which its error is at most 50, or the most accurate if none is. The figure shows steps against
kappa.
"""

import math
from pathlib import Path
from typing import Any

import diffrax
from _common import run_benchmark, show
from _linear import ATTACKS, linear_network, linear_problem, predictor_direction, predictor_error
from _peers import ScipyField, by_descent, by_gflow

import gflow

KAPPAS = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8)
ENOUGH = 50.0
MOST_STEPS, MOST_SECONDS, MOST_DESCENT = 5000, 20.0, 300_000
LOOSE = {"tolerance": 1e-2, "rtol_direction": 5e-2}
TOLERANCES = {
    "diffrax Kvaerno5": (1e-6, 1e-8),
    "SciPy BDF": (1e-6, 1e-8, 1e-10),
    "SciPy Radau": (1e-6, 1e-8, 1e-10),
    "SciPy LSODA": (1e-6, 1e-8, 1e-10),
}
COLUMNS = ("degree", "attack", "kappa", "solver", "tolerance", "result", "num_steps", "error_kappa")
COLUMNS += ("seconds",)


def measure(smoke: bool) -> dict[str, Any]:
    kappas = (1e2,) if smoke else KAPPAS
    rows = []
    show({}, COLUMNS, header=True)
    for degree in (1,) if smoke else (1, 2, 3):
        for attack in ("clean",) if smoke else ("clean", "l2"):
            rows += problem_rows(degree, attack, kappas)
    return {"kappa": kappas[-1], "ratios": ratios(rows, kappas[-1]), "rows": rows}


def problem_rows(degree: int, attack: str, kappas: tuple[float, ...]) -> list[dict[str, Any]]:
    data = gflow.datasets.gaussian(40, 5, gap=0.5, seed=0)
    network = linear_network(5, degree)
    problem, start = linear_problem(network, data, ATTACKS[attack]), network.init(0, scale=0.1)
    references = {kappa: reference(problem, start, network, kappa) for kappa in kappas}
    rows: list[dict[str, Any]] = []
    failed: set[str] = set()
    field = ScipyField(problem, start)
    for kappa in kappas:
        for name, run in solvers(problem, start, field, kappa, smoke=len(kappas) == 1).items():
            # What failed at a smaller kappa would fail again.
            if name in failed:
                continue
            row = {"degree": degree, "attack": attack, "kappa": kappa, "solver": name}
            row |= best(run, lambda p, k=kappa: k * predictor_error(network, p, references[k]))
            failed |= set() if row["result"] == "successful" else {name}
            rows.append(row)
            show(row, COLUMNS)
    return rows


def reference(problem, start, network, kappa: float):
    flow = gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_kappa=math.log(kappa)),
        solver=gflow.Rosenbrock(),
        tolerance=1e-8,
        atol_logit=1e-4,
    )
    return predictor_direction(network, flow.direction)


def solvers(problem, start, field: ScipyField, kappa: float, *, smoke: bool) -> dict[str, Any]:
    """For every solver, a function that gives one row a tolerance, one after another."""
    limits = {"max_steps": MOST_STEPS, "max_seconds": MOST_SECONDS}

    def gflow_runs():
        yield (
            5e-2,
            by_gflow(problem, start, kappa, gflow.Rosenbrock(), max_steps=MOST_STEPS, **LOOSE),
        )

    def diffrax_runs(name: str):
        for tolerance in TOLERANCES[name]:
            options = {"max_steps": MOST_STEPS, "tolerance": tolerance}
            yield tolerance, by_gflow(problem, start, kappa, diffrax.Kvaerno5(), **options)

    def scipy_runs(name: str):
        for tolerance in TOLERANCES[name]:
            yield tolerance, field.run(kappa, name.split()[1], tolerance, **limits)

    def descent_runs():
        most = 2000 if smoke else min(MOST_DESCENT, int(30 * kappa))
        yield 0.5, by_descent(problem, start, kappa, step_size=0.5, most=most)

    runs = {"gflow Rodas5P": gflow_runs}
    runs |= {"diffrax Kvaerno5": lambda: diffrax_runs("diffrax Kvaerno5")}
    for name in ("SciPy BDF", "SciPy Radau", "SciPy LSODA"):
        runs[name] = lambda name=name: scipy_runs(name)
    return runs | {"descent / loss": descent_runs}


def best(run, error) -> dict[str, Any]:
    """The first successful run that is accurate enough, else the most accurate, else a failure."""
    chosen: dict[str, Any] = {}
    for tolerance, row in run():
        row["tolerance"] = tolerance
        if "direction" in row:
            row["error_kappa"] = error(row.pop("direction"))
        better = row.get("error_kappa", math.inf) < chosen.get("error_kappa", math.inf)
        if not chosen or better:
            chosen = row
        if chosen.get("error_kappa", math.inf) <= ENOUGH:
            break
    return chosen


def ratios(rows: list[dict[str, Any]], kappa: float) -> list[dict[str, Any]]:
    """Steps of every peer over those of gflow, at the largest kappa; a reason where it failed."""
    table = []
    for degree, attack in dict.fromkeys((row["degree"], row["attack"]) for row in rows):
        group = [row for row in rows if (row["degree"], row["attack"]) == (degree, attack)]
        last = {row["solver"]: row for row in group}
        own = last.pop("gflow Rodas5P")
        line: dict[str, Any] = {"degree": degree, "attack": attack, "gflow": own["num_steps"]}
        for name, row in last.items():
            reached = row["result"] == "successful" and row["kappa"] == kappa
            failure = f"{row['result']} at kappa {row['kappa']:.0e}"
            line[name] = row["num_steps"] / own["num_steps"] if reached else failure
        table.append(line)
    return table


def draw(results: dict[str, Any], path: Path) -> None:
    """Steps against kappa, one panel a degree, clean."""
    from matplotlib import pyplot

    rows = [r for r in results["rows"] if r["attack"] == "clean"]
    degrees = list(dict.fromkeys(row["degree"] for row in rows))
    names = list(dict.fromkeys(row["solver"] for row in rows))
    colours = dict(
        zip(names, ("#000000", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00"), strict=False)
    )
    size = (3.2 * len(degrees) + 2.2, 3.6)
    figure, panels = pyplot.subplots(
        1, len(degrees), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, degree in zip(panels[0], degrees, strict=True):
        for name, marker in zip(names, "osv^Dx", strict=False):
            group = [r for r in rows if (r["degree"], r["solver"]) == (degree, name)]
            done = [r for r in group if r["result"] == "successful"]
            axes.loglog(
                [r["kappa"] for r in done],
                [r["num_steps"] for r in done],
                marker + "-",
                color=colours[name],
                linewidth=2 if name.startswith("gflow") else 1,
                markersize=5,
                label=name,
            )
        axes.set(xlabel=r"$\kappa$", title=f"degree {degree}")
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("steps (clean, 40 points in 5 dimensions)")
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=9, loc="outside right center")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    run_benchmark(__doc__, measure, draw)
