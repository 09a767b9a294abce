"""Gradient descent at constant steps, and normalised by the loss, against the continuous flow.

From one start, for each attack: the flow once, descent at step sizes over three decades. At equal
time and at equal loss: how far descent is from the flow, in the parameters (relative) and in the
direction. The figure is written beside the record.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import optax
from _common import run_benchmark, save_figure

import gflow
from gflow import losses, networks, perturbations

ATTACKS = {
    "clean": perturbations.clean(),
    "FGM 0.1": perturbations.fgm(0.1),
    "FGSM 0.05": perturbations.fgsm(0.05, smoothing=0.1),
}
OBJECTIVES = {"loss": "constant step", "log_loss": "step / loss"}
STYLES = {"loss": ("#0072B2", "-"), "log_loss": ("#D55E00", "--")}


def measure(smoke: bool) -> dict[str, Any]:
    """For every attack, objective and step size: the distances at the common time and loss."""
    data = gflow.datasets.gaussian(8 if smoke else 40, 3 if smoke else 5, gap=0.5, seed=0)
    network = networks.mlp((data.x.shape[1], 4 if smoke else 10, 1), power=2)
    start = network.init(0)
    log_loss, sizes = (0.0, [1e-2, 1e-3]) if smoke else (-2.0, list(np.logspace(-1, -4, 7)))
    rows = []
    for attack, perturbation in ATTACKS.items():
        problem = gflow.Problem(network, data, loss=losses.logistic(), perturbation=perturbation)
        flow = gflow.integrate(
            problem, start, until=gflow.Until(log_loss=log_loss), tolerance=1e-10
        )
        for objective in OBJECTIVES:
            for size in sizes:
                rows.append({"attack": attack, **compare(problem, start, flow, objective, size)})
                print(row_text(rows[-1]), file=sys.stderr, flush=True)
    return {"log_loss": log_loss, "rows": rows}


def compare(problem, start, flow, objective: str, size: float) -> dict[str, Any]:
    """Descent with one step size, compared with the flow where both have the flow's last loss."""
    end = float(np.expm1(flow.log1p_time[-1]))
    # A normalised step passes the time size / Loss; a few per cent more for the discrete path.
    duration = end if objective == "loss" else normalised_duration(flow)
    steps = int(np.ceil(1.2 * duration / size)) + 2
    row = {"objective": objective, "step_size": size, "num_steps": steps}
    descent = gflow.descend(
        problem,
        start,
        optax.sgd(size),
        num_steps=steps,
        objective=objective,
        save=None,
        throw=False,
    )
    if not descent.successful or descent.log_loss.min() > flow.log_loss[-1]:
        return {**row, "result": descent.result_name if not descent.successful else "not reached"}
    target = float(flow.log_loss[-1])
    half = 0.5 * end
    return {
        **row,
        "result": "successful",
        "seconds": descent.stats["seconds"],
        **distances("time", flow.at(time=half), descent.at(time=half)),
        **distances("loss", flow.params, descent.at(log_loss=target)),
    }


def normalised_duration(flow) -> float:
    """`integral of Loss dt` along the flow: the length that normalised steps have to cover."""
    time = np.expm1(flow.log1p_time)
    loss = np.exp(flow.log_loss)
    return float(np.sum(0.5 * (loss[1:] + loss[:-1]) * np.diff(time)))


def distances(name: str, reference: Any, params: Any) -> dict[str, float]:
    """Relative distance of the parameters, and distance of the directions."""
    left, right = (np.concatenate([np.ravel(leaf) for leaf in p]) for p in (reference, params))
    return {
        f"params_at_equal_{name}": float(np.linalg.norm(left - right) / np.linalg.norm(left)),
        f"direction_at_equal_{name}": float(gflow.measures.direction_distance(reference, params)),
    }


def row_text(row: dict[str, Any]) -> str:
    head = f"{row['attack']:>10} {OBJECTIVES[row['objective']]:>14} {row['step_size']:8.1e}"
    if row["result"] != "successful":
        return f"{head}  {row['result']}"
    names = ("params_at_equal_time", "direction_at_equal_time")
    names += ("params_at_equal_loss", "direction_at_equal_loss")
    return f"{head} {row['num_steps']:8d} steps  " + "  ".join(f"{row[n]:.2e}" for n in names)


def draw(results: dict[str, Any], path: Path) -> None:
    """Distance of the direction against the step size: colours are objectives, markers attacks."""
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, 2, figsize=(9, 3.8), sharey=True, layout="constrained")
    for axes, name in zip(panels, ("time", "loss"), strict=True):
        for objective, (colour, line) in STYLES.items():
            for attack, marker in zip(ATTACKS, "o^s", strict=True):
                rows = [r for r in results["rows"] if r["result"] == "successful"]
                rows = [r for r in rows if (r["attack"], r["objective"]) == (attack, objective)]
                axes.loglog(
                    [r["step_size"] for r in rows],
                    [r[f"direction_at_equal_{name}"] for r in rows],
                    marker + line,
                    color=colour,
                    linewidth=1,
                    markersize=5 + 2 * (marker == "s"),
                    markerfacecolor="none",
                    label=f"{attack}, {OBJECTIVES[objective]}",
                )
        sizes = np.array([1e-4, 1e-1])
        axes.loglog(sizes, 0.8 * sizes, ":", color="0.5", linewidth=1, label="slope 1")
        axes.set(xlabel="step size", title=f"at equal {name}")
        axes.grid(color="0.92", linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("distance of directions, descent to flow")
    panels[1].legend(frameon=False, fontsize=8, loc="lower right")
    save_figure(figure, path)
    pyplot.close(figure)


if __name__ == "__main__":
    run_benchmark(__doc__, measure, draw)
