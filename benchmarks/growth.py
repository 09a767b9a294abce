"""How the cost of a step grows with examples, inputs, width and depth, in time and in memory.

A two-layer ReLU^2 network under FGM on Gaussian points with random labels: 20 points in 10
dimensions with 10 neurons, one of the three numbers varied over two decades; and deep linear
networks of width 10, of 1 to 30 layers. Three costs, warm, in CPU milliseconds: one evaluation of
the field (`problem.gradient`), one explicit step (Tsit5), and one stiff step, by the linear systems
that gflow chooses for the size. The memory is by how much the largest that the process held rose
with the stiff steps, compilation included. Each size is a process of its own.

Exponents are slopes of log cost against log size, over all sizes and between the last two; where a
cost that does not depend on the size is most of it, only the latter tells the growth.
"""

import json
import math
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from _common import printed_by, run_benchmark, show

import gflow
from gflow import losses, networks, perturbations

BASE = {"examples": 20, "inputs": 10, "width": 10}
AXES = {
    "examples": (10, 30, 100, 300, 1000),
    "inputs": (3, 10, 30, 100, 300),
    "width": (3, 10, 30, 100, 300),
    "layers": (1, 3, 10, 30),
}
COSTS = ("gradient_ms", "explicit_ms", "stiff_ms", "memory_mb")
COLUMNS = ("axis", "size", "num_weights", *COSTS)
# Steps of the shorter and of the longer run, whose difference is taken; calls of the gradient.
_STEPS, _CALLS = (20, 60), 50


def measure(smoke: bool) -> dict[str, Any]:
    rows = []
    show({}, COLUMNS, header=True)
    for axis, sizes in AXES.items():
        for size in sizes[: 2 if smoke else None]:
            rows.append(in_process(axis, size))
            show(rows[-1], COLUMNS)
        if smoke:
            break
    axes = dict.fromkeys(row["axis"] for row in rows)
    return {
        "rows": rows,
        "exponents": {axis: exponents([r for r in rows if r["axis"] == axis]) for axis in axes},
    }


def exponents(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Slopes of log cost against log size."""
    sizes = np.log([row["size"] for row in rows])
    found = {}
    for cost in COSTS:
        costs = np.log([max(row[cost], 1e-3) for row in rows])
        found[cost] = {
            "over all": float(np.polyfit(sizes, costs, 1)[0]),
            "over the last": float((costs[-1] - costs[-2]) / (sizes[-1] - sizes[-2])),
        }
    return found


def in_process(axis: str, size: int) -> dict[str, Any]:
    """`cost_of`, in a process that has held nothing else."""
    return printed_by([__file__, "--cost", json.dumps([axis, size])])


def cost_of(axis: str, size: int) -> dict[str, Any]:
    """What one size costs."""
    problem, start = problem_of(axis, size)
    params = jax.tree.map(jnp.asarray, start)
    row: dict[str, Any] = {"axis": axis, "size": size}
    row["num_weights"] = sum(leaf.size for leaf in start)
    row["gradient_ms"] = per_call(lambda: jax.block_until_ready(problem.gradient(params)))
    row["explicit_ms"] = per_step(problem, start, diffrax.Tsit5())
    before = memory_mb()
    row["stiff_ms"] = per_step(problem, start, gflow.Rosenbrock())
    return row | {"memory_mb": memory_mb() - before}


def problem_of(axis: str, size: int) -> tuple[gflow.Problem, Any]:
    sizes = BASE | ({axis: size} if axis in BASE else {})
    generator = np.random.default_rng(0)
    x = generator.normal(size=(sizes["examples"], sizes["inputs"]))
    y = np.where(generator.random(sizes["examples"]) < 0.5, -1, 1)
    if axis == "layers":
        network = networks.deep_linear((sizes["inputs"], *[sizes["width"]] * (size - 1), 1))
    else:
        network = networks.mlp((sizes["inputs"], sizes["width"], 1), power=2)
    attack = perturbations.fgm(0.05)
    problem = gflow.Problem(
        network, gflow.Dataset(x, y), loss=losses.logistic(), perturbation=attack
    )
    return problem, network.init(0)


def per_step(problem: gflow.Problem, start: Any, solver: Any) -> float:
    """CPU milliseconds of a step that the solver tries, beyond the first ones."""

    def run(most: int) -> tuple[float, int]:
        begin = time.process_time()
        found = gflow.integrate(
            problem,
            start,
            until=gflow.Until(log_loss=-1e300),
            solver=solver,
            max_steps=most,
            save=2,
            throw=False,
        )
        return time.process_time() - begin, found.stats["num_steps"]

    for most in _STEPS:
        run(most)
    (short, few), (long, many) = (run(most) for most in _STEPS)
    return 1e3 * (long - short) / (many - few) if many > few else math.nan


def per_call(function: Callable[[], Any]) -> float:
    """CPU milliseconds of a call that is compiled already."""
    function()
    begin = time.process_time()
    for _ in range(_CALLS):
        function()
    return 1e3 * (time.process_time() - begin) / _CALLS


def memory_mb() -> float:
    """The largest memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if sys.argv[1:2] == ["--cost"]:
        jax.config.update("jax_enable_x64", True)
        print(json.dumps(cost_of(*json.loads(sys.argv[2]))), file=sys.stdout)
    else:
        run_benchmark(__doc__, measure)
