"""Solvers on gflow's own field: gflow's, diffrax's, SciPy's, and gradient descent.

Each run returns a row: `result`, the number of steps, `curve`, log kappa after every recorded step
with the number of steps until then, and, where kappa was reached, `seconds` and the `direction`
there. SciPy's solvers follow `(u, log rho)`, on which time does not act back; the implicit ones
have the exact Jacobian.
"""

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.integrate import BDF, DOP853, LSODA, RK45, Radau

import gflow
from gflow._layout import Layout
from gflow.flow.field import Field, path_slope
from gflow.flow.starting import initial_state

SCIPY = {"RK45": RK45, "DOP853": DOP853, "BDF": BDF, "Radau": Radau, "LSODA": LSODA}
WITHOUT_JACOBIAN = ("RK45", "DOP853")
EXPLICIT = {
    "Bosh3": diffrax.Bosh3(),
    "Tsit5": diffrax.Tsit5(),
    "Dopri5": diffrax.Dopri5(),
    "Dopri8": diffrax.Dopri8(),
}
# Evaluations a step. Of Rodas3 and ROS34PW2 both ends too, for the dense output; the explicit ones
# reuse the last stage.
STAGES = {"Rodas3": 4, "ROS34PW2": 4, "Rodas4P": 6, "Rodas5P": 8}
STAGES |= {"Bosh3": 3, "Tsit5": 6, "Dopri5": 6, "Dopri8": 13}
MOST_STEPS, MOST_SECONDS, MOST_KVAERNO = 5000, 20.0, 2000

# A solver: pairs of a tolerance and a run, which gives a row.
Runs = Iterator[tuple[float, Callable[[], dict[str, Any]]]]


class Task(NamedTuple):
    """A problem, its start, and the kappa up to which its flow is followed."""

    problem: gflow.Problem
    start: Any
    kappa: float
    cap: float | None = None


def by_gflow(task: Task, solver, *, max_steps: int, **options) -> dict[str, Any]:
    """`integrate` with any solver, called twice, of which the first compiles."""

    def run():
        return gflow.integrate(
            task.problem,
            task.start,
            until=gflow.Until(log_kappa=math.log(task.kappa)),
            solver=solver,
            kappa_cap=task.cap,
            max_steps=max_steps,
            throw=False,
            **options,
        )

    flow = run()
    row = {"result": flow.result_name, "num_steps": flow.stats["num_steps"]}
    row |= {"curve": (flow.log_kappa, flow.num_steps_at), "log_kappa": flow.log_kappa[-1]}
    if not flow.successful:
        return row
    return row | {"seconds": run().stats["seconds"], "direction": flow.direction}


class ScipyField:
    """The field `d(u, log rho)/d tau` and its exact Jacobian, compiled once for one problem."""

    def __init__(self, task: Task):
        self.task, self.layout = task, Layout.of(task.start)
        log_cap = np.asarray(np.inf if task.cap is None else math.log(task.cap))
        field = Field(task.problem, self.layout, log_cap)
        self.start = initial_state(self.layout, task.start)[:-1]

        def slope(path):
            point = jnp.append(path, 0.0)
            return path_slope(field, point, field.ascent(point))

        self.slope, self.jacobian = jax.jit(slope), jax.jit(jax.jacfwd(slope))
        # Compiled before anything is timed.
        jax.block_until_ready((self.slope(self.start), self.jacobian(self.start)))

    def run(
        self, method: str, tolerance: float, *, max_steps: int, max_seconds: float
    ) -> dict[str, Any]:
        """Steps until kappa is passed; the end is read off the dense output of the last step.

        `max_seconds` are those of the process's CPU, so that other work does not end a run.
        """
        jacobian = (
            {} if method in WITHOUT_JACOBIAN else {"jac": lambda _, y: np.asarray(self.jacobian(y))}
        )
        solver = SCIPY[method](
            lambda _, y: np.asarray(self.slope(y)),
            0.0,
            self.start,
            np.inf,
            rtol=tolerance,
            atol=tolerance,
            **jacobian,
        )
        degree = self.task.problem.degree
        target, count = math.log(self.task.kappa) / degree, 0
        begin, used = time.perf_counter(), time.process_time()
        message, path = None, [solver.y[-1]]
        while solver.y[-1] < target and message is None:
            if count == max_steps or time.process_time() - used > max_seconds:
                message = f"{'steps' if count == max_steps else 'time'} spent"
                break
            message = solver.step()
            count += 1
            path.append(solver.y[-1])
        row = {"result": message or "successful", "num_steps": count}
        log_kappa = degree * np.array(path)
        row |= {"curve": (log_kappa, np.arange(len(path))), "log_kappa": log_kappa[-1]}
        row |= {"num_evaluations": solver.nfev, "num_jacobians": solver.njev}
        if message is not None:
            return row
        seconds = time.perf_counter() - begin
        return row | {"seconds": seconds, "direction": self._direction(solver, target)}

    def _direction(self, solver, target: float):
        """The direction where `log rho` equals the target, within the last step."""
        dense, low, high = solver.dense_output(), solver.t_old, solver.t
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if dense(middle)[-1] < target else (low, middle)
        vector = dense(high)[:-1]
        return self.layout.unflatten(vector / np.linalg.norm(vector))


def by_descent(task: Task, *, step_size: float, most: int) -> dict[str, Any]:
    """Gradient descent on the log-loss, that is, with steps divided by the loss.

    The number of steps is that to the first saved point, of 512, at which kappa was passed.
    """
    run = gflow.descend(
        task.problem,
        task.start,
        optax.sgd(step_size),
        num_steps=most,
        objective="log_loss",
        throw=False,
    )
    row = {"result": run.result_name, "num_steps": most}
    row |= {"curve": (run.log_kappa, run.num_steps_at), "log_kappa": run.log_kappa[-1]}
    reached = np.flatnonzero(run.log_kappa >= math.log(task.kappa))
    if not run.successful or not len(reached):
        return row | ({"result": "steps spent"} if run.successful else {})
    row |= {"num_steps": int(run.num_steps_at[reached[0]]), "seconds": run.stats["seconds"]}
    return row | {"direction": run.params_at_index(reached[0])}


# Runs at a range of tolerances


def rosenbrock(task: Task, method: str, rtols: tuple[float, ...], options: dict) -> Runs:
    """By `rtol_direction`; unless given, `tolerance` is a fifth of it."""
    for rtol in rtols:
        bounds = {"tolerance": rtol / 5, "rtol_direction": rtol, "save": None} | options
        yield rtol, partial(counted, task, method, gflow.Rosenbrock(method), bounds)


def explicit(task: Task, name: str, tolerances: tuple[float, ...]) -> Runs:
    for tolerance in tolerances:
        yield tolerance, partial(counted, task, name, EXPLICIT[name], {"tolerance": tolerance})


def counted(task: Task, method: str, solver, options: dict) -> dict[str, Any]:
    """A run of a method with so many evaluations a step."""
    row = by_gflow(task, solver, max_steps=MOST_STEPS, **options)
    row["num_evaluations"] = STAGES[method] * row["num_steps"]
    implicit = isinstance(solver, gflow.Rosenbrock)
    return row | ({"num_jacobians": row["num_steps"]} if implicit else {})


def kvaerno(task: Task, tolerances: tuple[float, ...]) -> Runs:
    options = {"max_steps": MOST_KVAERNO, "save": None}
    for tolerance in tolerances:
        yield (
            tolerance,
            partial(by_gflow, task, diffrax.Kvaerno5(), tolerance=tolerance, **options),
        )


def by_scipy(task: Task, names: tuple[str, ...], tolerances: tuple[float, ...]) -> dict[str, Runs]:
    field, most = ScipyField(task), {"max_steps": MOST_STEPS, "max_seconds": MOST_SECONDS}
    return {
        f"SciPy {name}": iter([(t, partial(field.run, name, t, **most)) for t in tolerances])
        for name in names
    }


def descent(task: Task, step_sizes: tuple[float, ...], most: int) -> Runs:
    for step_size in step_sizes:
        yield step_size, partial(by_descent, task, step_size=step_size, most=most)
