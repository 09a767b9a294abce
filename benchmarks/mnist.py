"""MNIST 3 against 7, 2000 images, MLP 784-1024-64-1 (0.87 million weights), under FGSM 16/255.

The flow with capped temperature to log kappa 100: what a step costs in gradients of the loss, and
the stationarity along the way. A gradient is one of the adversarial loss, perturbation included,
compiled, timed in the same process between segments. Beside it the limit of an MLP 784-16-1
(12 560 weights, nearly the most for which limits are sought) on 500 images. `GFLOW_DATA` names the
folder of MNIST.
"""

import os
import time
from typing import Any

from _common import run_benchmark, show
from _large import COLUMNS, flow_row, in_fresh_process, peak_gb

import gflow
from gflow import losses, networks, perturbations


def measure(smoke: bool) -> dict[str, Any]:
    if not os.environ.get("GFLOW_DATA"):
        return {"result": "skipped: the environment variable GFLOW_DATA names no folder"}
    return {"flow": flow(smoke), "limit": in_fresh_process(limit, smoke)}


def flow(smoke: bool) -> dict[str, Any]:
    count, hidden = (200, 32) if smoke else (2000, 1024)
    problem = attacked((784, hidden, 64, 1), count)
    show({}, COLUMNS, header=True)
    # Fourteen gradients a step, two of them for the directions; and the memory of thirty states.
    budget, solver = 16 if smoke else 2000, gflow.RungeKuttaChebyshev(12, num_implicit=6)
    start = problem.network.init(0, scale=0.2)
    row = flow_row(problem, start, solver, 300.0, 100.0, budget, save=16)
    row = {"problem": "MNIST", "attack": "FGSM 16/255", **row}
    show(row, COLUMNS)
    return row


def limit(smoke: bool) -> dict[str, Any]:
    """`find_limit`, compilation included."""
    count, hidden = (16, 1) if smoke else (500, 16)
    problem = attacked((784, hidden, 1), count)
    begin = time.perf_counter()
    found = gflow.find_limit(problem, problem.network.init(0), max_steps=600, throw=False)
    row = {"parameters": 785 * hidden, "images": count, "result": found.result_name}
    row |= {"verdict": found.verdict, "basin": found.basin, "num_steps": found.num_flow_steps}
    row |= {"stationarity": found.certificate.stationarity, "margin": found.margin}
    row |= {"seconds": time.perf_counter() - begin, "peak_gb": peak_gb()}
    row["seconds_by_stage"] = [(stage.kind, stage.seconds) for stage in found.stages]
    show(row, ("parameters", "result", "verdict", "num_steps", "stationarity", "seconds"))
    return row


def attacked(widths: tuple[int, ...], count: int) -> gflow.Problem:
    """So many images, under FGSM with smoothed signs."""
    data = gflow.datasets.mnist(positive=3, negative=7, limit=count)
    network = networks.mlp(widths, smoothing=0.05)
    attack = perturbations.fgsm(16 / 255, smoothing=0.1)
    return gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
