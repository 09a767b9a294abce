"""Other solvers on gflow's own field: diffrax's, SciPy's with the exact Jacobian, and descent.

Each returns a row: `result`, the number of steps, `curve`, log kappa after every recorded step with
the number of steps until then, and, where kappa was reached, `seconds` and the `direction` there.
SciPy's solvers follow `(u, log rho)`, on which time does not act back.
"""

import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.integrate import BDF, LSODA, Radau

import gflow
from gflow._layout import Layout
from gflow.flow.field import Field, initial_state, path_slope

SCIPY = {"BDF": BDF, "Radau": Radau, "LSODA": LSODA}


def by_gflow(problem, start, kappa: float, solver, *, max_steps: int, **options) -> dict[str, Any]:
    """`integrate` with any solver, called twice, of which the first compiles."""

    def run():
        return gflow.integrate(
            problem,
            start,
            until=gflow.Until(log_kappa=math.log(kappa)),
            solver=solver,
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

    def __init__(self, problem, start, kappa_cap: float | None = None):
        self.layout = Layout.of(start)
        log_cap = np.asarray(np.inf if kappa_cap is None else math.log(kappa_cap))
        field = Field(problem, self.layout, log_cap)
        self.degree = problem.degree
        self.start = np.asarray(initial_state(self.layout, start))[:-1]

        def slope(path):
            point = jnp.append(path, 0.0)
            return path_slope(field, point, field.ascent(point))

        self.slope, self.jacobian = jax.jit(slope), jax.jit(jax.jacfwd(slope))
        # Compiled before anything is timed.
        jax.block_until_ready((self.slope(self.start), self.jacobian(self.start)))

    def run(
        self, kappa: float, method: str, tolerance: float, *, max_steps: int, max_seconds: float
    ) -> dict[str, Any]:
        """Steps until kappa is passed; the end is read off the dense output of the last step."""
        solver = SCIPY[method](
            lambda _, y: np.asarray(self.slope(y)),
            0.0,
            self.start,
            np.inf,
            jac=lambda _, y: np.asarray(self.jacobian(y)),
            rtol=tolerance,
            atol=tolerance,
        )
        target, count, begin = math.log(kappa) / self.degree, 0, time.perf_counter()
        message, path = None, [solver.y[-1]]
        while solver.y[-1] < target and message is None:
            if count == max_steps or time.perf_counter() - begin > max_seconds:
                message = f"{'steps' if count == max_steps else 'time'} spent"
                break
            message = solver.step()
            count += 1
            path.append(solver.y[-1])
        row = {"result": message or "successful", "num_steps": count}
        log_kappa = self.degree * np.array(path)
        row |= {"curve": (log_kappa, np.arange(len(path))), "log_kappa": log_kappa[-1]}
        row |= {"num_evaluations": solver.nfev, "num_jacobians": solver.njev}
        if message is not None:
            return row
        seconds = time.perf_counter() - begin
        return row | {"seconds": seconds, "direction": self.direction(solver, target)}

    def direction(self, solver, target: float):
        """The direction where `log rho` equals the target, within the last step."""
        dense, low, high = solver.dense_output(), solver.t_old, solver.t
        for _ in range(80):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if dense(middle)[-1] < target else (low, middle)
        vector = dense(high)[:-1]
        return self.layout.unflatten(vector / np.linalg.norm(vector))


def by_descent(problem, start, kappa: float, *, step_size: float, most: int) -> dict[str, Any]:
    """Gradient descent on the log-loss, that is, with steps divided by the loss.

    The number of steps is that to the first saved point, of 512, at which kappa was passed.
    """
    run = gflow.descend(
        problem, start, optax.sgd(step_size), num_steps=most, objective="log_loss", throw=False
    )
    row = {"result": run.result_name, "num_steps": most}
    row |= {"curve": (run.log_kappa, run.num_steps_at), "log_kappa": run.log_kappa[-1]}
    reached = np.flatnonzero(run.log_kappa >= math.log(kappa))
    if not run.successful or not len(reached):
        return row | ({"result": "steps spent"} if run.successful else {})
    row |= {"num_steps": int(run.num_steps_at[reached[0]]), "seconds": run.stats["seconds"]}
    return row | {"direction": run.params_at_index(reached[0])}
