"""Training by steps against the continuous flow: optimizers, step sizes and attacks.

From one start, for each attack: the flow once; then gradient descent, SGD, momentum, Adam, sign
descent, steps normalised by the loss and loss-based steps, at several step sizes, until they have
the flow's last loss. At equal time, loss and norm: how far each is from the flow, in the parameters
(relative) and in the direction, with the margins of both. Gradient descent is compared with its
backward-error flow as well. The figure is written beside the record.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from _common import new_panels, run_benchmark, save_panels

import gflow
from gflow import losses, networks, optimizers, perturbations

ATTACKS = {
    "clean": perturbations.clean(),
    "FGM 0.1": perturbations.fgm(0.1),
    "FGSM 0.05": perturbations.fgsm(0.05, smoothing=0.1),
    "PGD 0.05": perturbations.pgd(0.05, num_steps=3, smoothing=0.1),
}


class Method(NamedTuple):
    """An optimizer by its step size, the options of `descend`, and how it is drawn."""

    optimizer: Any
    options: dict[str, Any]
    sizes: tuple[float, ...]
    style: tuple[str, str]


METHODS = {
    "GD": Method(optax.sgd, {}, (1e-2, 3e-3, 1e-3), ("#0072B2", "o")),
    "SGD": Method(optax.sgd, {"batch_size": 8}, (1e-2, 3e-3, 1e-3), ("#56B4E9", "v")),
    "momentum 0.9": Method(
        lambda h: optax.sgd(h, momentum=0.9), {}, (1e-3, 3e-4, 1e-4), ("#009E73", "^")
    ),
    "Adam": Method(optax.adam, {}, (3e-2, 1e-2, 3e-3), ("#D55E00", "s")),
    "sign descent": Method(
        lambda h: optax.chain(optax.scale_by_sign(), optax.scale(-h)),
        {},
        (1e-2, 3e-3, 1e-3),
        ("#CC79A7", "D"),
    ),
    "step / loss": Method(
        optax.sgd, {"objective": "log_loss"}, (1e-1, 3e-2, 1e-2), ("#E69F00", "P")
    ),
    "loss-based": Method(
        optimizers.loss_based, {"objective": "log_loss"}, (1e-1, 1e-2, 1e-3), ("#000000", "*")
    ),
}
NAMES = ("params_distance", "direction_distance", "margin", "reference_margin")
MOST_STEPS = 65_536


def measure(smoke: bool) -> dict[str, Any]:
    """For every attack, optimizer and step size: the distances at the last common values."""
    data = gflow.datasets.gaussian(8 if smoke else 40, 3 if smoke else 5, gap=0.5, seed=0)
    network = networks.mlp((data.x.shape[1], 4 if smoke else 10, 1), smoothing=0.2)
    start, log_loss = network.init(0), 1.0 if smoke else -2.0
    attacks = ("clean", "FGSM 0.05") if smoke else tuple(ATTACKS)
    methods = ("GD", "SGD", "loss-based") if smoke else tuple(METHODS)
    rows: list[dict[str, Any]] = []
    for attack in attacks:
        problem = gflow.Problem(network, data, loss=losses.logistic(), perturbation=ATTACKS[attack])
        until = gflow.Until(log_loss=log_loss)
        flow = gflow.integrate(problem, start, until=until, tolerance=1e-10)
        for name in methods:
            for size in METHODS[name].sizes[: 2 if smoke else None]:
                head = {"attack": attack, "method": name, "step_size": size}
                rows += [{**head, **row} for row in compared(problem, start, flow, name, size)]
                print(row_text(rows[-1]), file=sys.stderr, flush=True)
    return {"log_loss": log_loss, "rows": rows}


def compared(problem, start, flow, name: str, size: float) -> list[dict[str, Any]]:
    """One optimizer with one step size, compared with the flow."""
    method = METHODS[name]
    optimizer, num_steps = method.optimizer(size), 64
    while True:
        run = gflow.descend(
            problem, start, optimizer, num_steps=num_steps, save=1024, throw=False, **method.options
        )
        if not run.successful or run.log_loss.min() <= flow.log_loss[-1]:
            break
        if num_steps >= MOST_STEPS:
            return [{"result": "not reached", "num_steps": num_steps}]
        num_steps *= 2
    if not run.successful:
        return [{"result": run.result_name, "num_steps": run.stats["num_steps"]}]
    options = {"step_sizes": [size], "labels": [name], "num_points": 1}
    corrected = name in ("GD", "step / loss")
    found = gflow.compare(flow, run, backward_error=corrected, **options)
    reached = int(run.num_steps_at[np.argmax(run.log_loss <= flow.log_loss[-1])])
    head = {"result": "successful", "num_steps": reached}
    kept = ("reference", "equal", "value", *NAMES)
    return [{**head, **{key: row[key] for key in kept}} for row in found.last()]


def row_text(row: dict[str, Any]) -> str:
    head = f"{row['attack']:>10} {row['method']:>14} {row['step_size']:8.1e} {row['num_steps']:7d}"
    if row["result"] != "successful":
        return f"{head}  {row['result']}"
    return f"{head} steps  equal {row['equal']}  " + "  ".join(f"{row[n]:.3e}" for n in NAMES)


def draw(results: dict[str, Any], path: Path) -> None:
    """Distance of the direction at equal loss against the step size, a panel for each attack."""
    rows = [r for r in results["rows"] if r["result"] == "successful" and r["equal"] == "loss"]
    attacks = list(dict.fromkeys(row["attack"] for row in rows))
    figure, panels = new_panels(attacks, "step size", "distance of directions at equal loss")
    for axes, attack in zip(panels, attacks, strict=True):
        for name, method in METHODS.items():
            colour, marker = method.style
            for reference, line in (("flow", "-"), ("backward-error flow", "--")):
                key = (attack, name, reference)
                chosen = [r for r in rows if (r["attack"], r["method"], r["reference"]) == key]
                axes.loglog(
                    [r["step_size"] for r in chosen],
                    [r["direction_distance"] for r in chosen],
                    line,
                    marker=marker,
                    color=colour,
                    linewidth=1,
                    markersize=5,
                    markerfacecolor="none",
                    label=name if line == "-" else f"{name}, to its\nbackward-error flow",
                )
    save_panels(figure, panels, path)


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, draw)
