"""MNIST 3 against 7, 2000 images, MLP 784-1024-64-1 (0.87 million weights), under FGSM 16/255.

The flow with capped temperature to log kappa 100, what a step costs in gradients of the loss, and
the stationarity along the way. `GFLOW_DATA` names the folder of MNIST. A gradient is one of the
adversarial loss, perturbation included, compiled, timed in the same process between segments.
"""

import os
from typing import Any

from _common import run_benchmark, show
from _large import COLUMNS, flow_row

import gflow
from gflow import losses, networks, perturbations


def measure(smoke: bool) -> dict[str, Any]:
    if not os.environ.get("GFLOW_DATA"):
        return {"result": "skipped: the environment variable GFLOW_DATA names no folder"}
    count, hidden = (200, 32) if smoke else (2000, 1024)
    data = gflow.datasets.mnist(positive=3, negative=7, limit=count)
    network = networks.mlp((784, hidden, 64, 1), smoothing=0.05)
    attack = perturbations.fgsm(16 / 255, smoothing=0.1)
    problem = gflow.Problem(network, data, loss=losses.exponential(), perturbation=attack)
    show({}, COLUMNS, header=True)
    # Fourteen gradients a step, two of them for the directions; and the memory of thirty states.
    budget, solver = 16 if smoke else 2000, gflow.RungeKuttaChebyshev(12, num_implicit=6)
    row = flow_row(problem, network.init(0, scale=0.2), solver, 300.0, 100.0, budget, save=16)
    row = {"problem": "MNIST", "attack": "FGSM 16/255", **row}
    show(row, COLUMNS)
    return row


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure)
