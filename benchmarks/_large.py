"""What the benchmarks of large networks share: the flow with its costs, counted in gradients."""

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import jax
import numpy as np

import gflow

LEVELS = (0.3, 0.1, 3e-2, 1e-2, 3e-3, 1e-3)
COLUMNS = ("problem", "attack", "kappa_cap", "result", "num_steps", "log_kappa", "stationarity")
COLUMNS += ("margin", "seconds_per_step", "gradients_per_step", "peak_gb")


class Costs:
    """Watches a run: seconds a step and a gradient, segment by segment; the first compiles."""

    def __init__(self, problem, params):
        self.problem, self.params = problem, params
        self.steps, self.since = 0, None
        self.rows: list[dict[str, float]] = []
        jax.block_until_ready(problem.gradient(params))

    def __call__(self, status: dict[str, Any]) -> None:
        now = time.perf_counter()
        count = status["steps"] - self.steps
        if self.since is not None and count:
            step, gradient = (now - self.since) / count, self.gradient_seconds()
            self.rows.append({**status, "seconds": step, "gradients": step / gradient})
        self.steps, self.since = status["steps"], time.perf_counter()

    def gradient_seconds(self) -> float:
        """The median of a few, so that other work on the machine slows both alike."""
        seconds = []
        for _ in range(5):
            begin = time.perf_counter()
            jax.block_until_ready(self.problem.gradient(self.params))
            seconds.append(time.perf_counter() - begin)
            if sum(seconds) > 1.0:
                break
        return float(np.median(seconds))


def flow_row(problem, start, solver, cap, log_kappa, budget, save=512) -> dict[str, Any]:
    """The capped flow to `log_kappa` or a stationarity of 1e-3, or for `budget` steps."""
    costs = Costs(problem, start)
    flow = gflow.integrate(
        problem,
        start,
        until=gflow.Until(log_kappa=log_kappa, stationarity=1e-3),
        solver=solver,
        tolerance=1e-2,
        kappa_cap=cap,
        save=save,
        max_steps=budget,
        progress=costs,
        throw=False,
    )
    per_step = [row["gradients"] for row in costs.rows]
    levels = {}
    for level in LEVELS:
        below = np.flatnonzero(flow.stationarity < level)
        if below.size:
            index = below[0]
            reached = int(flow.num_steps_at[index]), float(flow.log_kappa[index])
            levels[f"{level:g}"] = dict(zip(("steps", "log_kappa"), reached, strict=True))
    return {
        "parameters": flow.layout.size,
        "kappa_cap": cap,
        "result": flow.result_name,
        "num_steps": flow.stats["num_steps"],
        "num_rejected_steps": flow.stats["num_rejected_steps"],
        "log_kappa": float(flow.log_kappa[-1]),
        "stationarity": float(flow.stationarity[-1]),
        "margin": float(flow.margin[-1]),
        "seconds": flow.stats["seconds"],
        "seconds_per_step": float(np.median([row["seconds"] for row in costs.rows] or [np.nan])),
        "gradients_per_step": float(np.median(per_step or [np.nan])),
        "peak_gb": peak_gb(),
        "first_below": levels,
        "along": costs.rows,
    }


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process of its own: its memory and compilation are its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=_compute_in_float64) as pool:
        return pool.submit(function, *arguments).result()


def _compute_in_float64() -> None:
    jax.config.update("jax_enable_x64", True)


def peak_gb() -> float:
    """The largest resident size of the process so far, of everything that it has computed."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9
