"""Steps, evaluations, time and error of `integrate` against SciPy on the very same field.

Every solver follows the same compiled field from the same start to the same clock, at its own
tolerance of 1e-8. The error is that of the direction at the end, against DOP853 at 1e-13.
SciPy's tolerance is per component and gflow's is for the whole vector, so errors differ: read time
and error together.
"""

from typing import Any

import diffrax
import jax
import numpy as np
from _common import run_benchmark, timed
from scipy.integrate import solve_ivp

import gflow
from gflow import losses, networks, perturbations
from gflow._layout import Layout
from gflow.flow.field import Field, initial_state, vector_field

TOLERANCE = 1e-8
OURS = {"Tsit5": diffrax.Tsit5(), "Dopri8": diffrax.Dopri8(), "Kvaerno5": diffrax.Kvaerno5()}
EVALUATIONS = {"Tsit5": 6, "Dopri8": 13, "Kvaerno5": None}  # a step; implicit ones vary
SCIPY = ("RK45", "DOP853", "LSODA", "BDF", "Radau")


def problems(smoke: bool) -> dict[str, gflow.Problem]:
    data = gflow.datasets.gaussian(10 if smoke else 40, 3 if smoke else 5, gap=0.5, seed=0)
    d = data.x.shape[1]
    built = {}
    for kind, network in {
        "deep_linear": networks.deep_linear((d, 4, 1)),
        "relu_squared": networks.mlp((d, 8, 1), power=2),
    }.items():
        for attack, perturbation in {
            "clean": perturbations.clean(),
            "FGM": perturbations.fgm(0.1),
        }.items():
            built[f"{kind} {attack}"] = gflow.Problem(
                network, data, loss=losses.logistic(), perturbation=perturbation
            )
    return built


def measure(smoke: bool) -> list[dict[str, Any]]:
    """A row for each problem and solver."""
    rows = []
    log_loss = 1.0 if smoke else -6.0
    solvers = ("Tsit5",) if smoke else tuple(OURS)
    peers = ("DOP853",) if smoke else SCIPY
    for name, problem in problems(smoke).items():
        start = problem.network.init(0)
        layout = Layout.of(start)
        field, state = Field(problem, layout), np.asarray(initial_state(layout, start))
        until = gflow.Until(log_loss=log_loss)
        finest = gflow.integrate(problem, start, until=until, tolerance=1e-12)
        slope = jax.jit(vector_field)
        velocity = lambda clock, z, s=slope, f=field: np.asarray(s(clock, z, f))  # noqa: E731
        end = float(finest.clock[-1])
        exact = by_scipy(velocity, state, end, "DOP853", 1e-13).y[:, -1]
        for solver in solvers:
            rows.append({"problem": name, **ours(problem, start, until, solver, exact)})
            print(text(rows[-1]), flush=True)
        for method in peers:
            rows.append({"problem": name, **theirs(velocity, state, end, method, exact)})
            print(text(rows[-1]), flush=True)
    return rows


def ours(problem, start, until, solver: str, exact: np.ndarray) -> dict[str, Any]:
    run = timed(
        lambda: gflow.integrate(
            problem, start, until=until, tolerance=TOLERANCE, solver=OURS[solver], throw=False
        ),
        repeats=3,
    )
    flow = run.result
    if not flow.successful:
        return {"solver": solver, "result": flow.result_name}
    steps, each = flow.stats["num_steps"], EVALUATIONS[solver]
    return {
        "solver": f"gflow {solver}",
        "result": "successful",
        "num_steps": steps,
        "num_evaluations": None if each is None else steps * each,
        "seconds": run.seconds,
        "error": direction_error(flow.vectors[-1], exact),
    }


def theirs(velocity, state, end: float, method: str, exact: np.ndarray) -> dict[str, Any]:
    run = timed(lambda: by_scipy(velocity, state, end, method, TOLERANCE), repeats=3)
    solution = run.result
    if not solution.success:
        return {"solver": f"scipy {method}", "result": solution.message}
    return {
        "solver": f"scipy {method}",
        "result": "successful",
        "num_steps": len(solution.t) - 1,
        "num_evaluations": solution.nfev,
        "seconds": run.seconds,
        "error": direction_error(solution.y[:-2, -1], exact),
    }


def by_scipy(velocity, state: np.ndarray, end: float, method: str, tolerance: float) -> Any:
    return solve_ivp(
        velocity, (0.0, end), state, method=method, rtol=tolerance, atol=tolerance * 1e-2
    )


def direction_error(vector: np.ndarray, exact: np.ndarray) -> float:
    reference = exact[:-2] / np.linalg.norm(exact[:-2])
    return float(np.linalg.norm(vector / np.linalg.norm(vector) - reference))


def text(row: dict[str, Any]) -> str:
    head = f"{row['problem']:>20} {row['solver']:>15}"
    if row["result"] != "successful":
        return f"{head}  {row['result']}"
    return (
        f"{head}  {row['num_steps']:6d} steps  {row['num_evaluations'] or '-':>7} evaluations  "
        f"{row['seconds'] * 1e3:8.1f} ms  error {row['error']:.1e}"
    )


if __name__ == "__main__":
    run_benchmark(__doc__, measure)
