"""What an easy flow costs beside the same flow by diffrax alone, warm.

The peer is `diffrax.diffeqsolve` of `dparams/dt = -grad Loss` by Tsit5, one compiled program that
leaves its last parameters and nothing else, over the gradient of the same `Problem`, to the time at
which gflow's run ended. Its error is bounded as gflow's is: the Euclidean norm of that of a step by
the tolerance times the norm of the parameters at the start. Both run in the same process, in turn.
Milliseconds are those of the process's CPU, for a whole call once it is compiled: the least of all
repetitions.
"""

import time
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _common import run_benchmark, show

import gflow
from gflow import losses, networks, perturbations
from gflow._numerics import tree_norm

COLUMNS = ("problem", "num_steps", "num_by_diffrax", "ms", "ms_by_diffrax", "difference")
RADIUS, TOLERANCE, LOG_LOSS = 0.1, 1e-8, -2.0
# (examples, inputs, hidden neurons, attacked)
SIZES = {
    "linear": (40, 5, 0, False),
    "30-7-8": (30, 7, 8, True),
    "200-20-32": (200, 20, 32, True),
}


def measure(smoke: bool) -> dict[str, Any]:
    """For every problem: steps and milliseconds of both, and the distance of their ends."""
    sizes = dict([next(iter(SIZES.items()))]) if smoke else SIZES
    show({}, COLUMNS, header=True)
    rows = []
    for name, size in sizes.items():
        rows.append({"problem": name, **compared(*size, repeats=1 if smoke else 20)})
        show(rows[-1], COLUMNS)
    return {"tolerance": TOLERANCE, "radius": RADIUS, "log_loss": LOG_LOSS, "rows": rows}


def compared(n: int, d: int, hidden: int, attacked: bool, repeats: int) -> dict[str, Any]:
    data = gflow.datasets.gaussian(n, d, gap=0.5, seed=0)
    network = networks.mlp((d, hidden, 1), power=2) if hidden else networks.linear(d)
    attack = perturbations.fgm(RADIUS, order=2) if attacked else None
    problem = gflow.Problem(network, data, loss=losses.logistic(), perturbation=attack)
    start, until = network.init(0), gflow.Until(log_loss=LOG_LOSS)
    run = gflow.integrate(problem, start, until=until, tolerance=TOLERANCE)
    peer = by_diffrax(problem, float(np.expm1(run.log1p_time[-1])))
    calls = {
        "gflow": lambda: gflow.integrate(problem, start, until=until, tolerance=TOLERANCE),
        "diffrax": lambda: jax.block_until_ready(peer(start)),
    }
    least = dict.fromkeys(calls, np.inf)
    for repeat in range(repeats + 1):  # the first compiles
        for name, call in calls.items():
            begin = time.process_time()
            call()
            if repeat:
                least[name] = min(least[name], time.process_time() - begin)
    end, num_steps = peer(start)
    apart = jax.tree.map(lambda a, b: a - b, end, run.params)
    return {
        "num_steps": run.stats["num_steps"],
        "num_by_diffrax": int(num_steps),
        "ms": 1e3 * least["gflow"],
        "ms_by_diffrax": 1e3 * least["diffrax"],
        "difference": float(tree_norm(apart) / tree_norm(end)),
    }


def by_diffrax(problem: gflow.Problem, time: float) -> Any:
    """The parameters at a time of the flow from given ones, and the number of steps."""
    term = diffrax.ODETerm(lambda t, at, _: jax.tree.map(jnp.negative, problem.gradient(at)))

    @jax.jit
    def run(start: Any) -> tuple[Any, Any]:
        control = diffrax.PIDController(
            rtol=0.0, atol=TOLERANCE, norm=lambda error: tree_norm(error) / tree_norm(start)
        )
        found = diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, time, None, start, stepsize_controller=control
        )
        return jax.tree.map(lambda leaf: leaf[-1], found.ys), found.stats["num_steps"]

    return run


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
