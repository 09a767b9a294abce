"""The examples that push at the limit, as images: beside their perturbations and the weights."""

import math
from functools import reduce
from typing import Any

import jax
import numpy as np

from gflow.networks import DeepLinear
from gflow.report.panels import Panel, View

_MOST_PUSHING = 4
_PREDICTION = (
    "Theory: at the limit the weights are the sum of the margins' gradients at the examples that "
    "push, each by its multiplier, and no other example counts (the KKT conditions)."
)


def images(view: View) -> list[Panel]:
    """A panel for each run at its limit; none where the inputs are no square images."""
    found = []
    for run in view.reached:
        problem = view.trajectories[run].problem
        if problem is None or view.ends[run].pushing is None:
            continue
        side = math.isqrt(problem.dataset.x.shape[1])
        if side > 1 and side**2 == problem.dataset.x.shape[1]:
            found.append(_panel(view, run, problem, side))
    return found


def _panel(view: View, run: str, problem: Any, side: int) -> Panel:
    end = view.ends[run]
    assert end.pushing is not None and end.multipliers is not None and end.limit is not None
    pushes = end.multipliers.reshape(len(end.multipliers), -1).sum(axis=1)
    shares = pushes / pushes.sum()
    layout = view.trajectories[run].layout
    weights = portraits(problem.network, layout.unflatten(end.limit), side**2)
    num = int(np.sum(pushes > 1e-8 * pushes.max()))
    shown = f", the first {_MOST_PUSHING} of them" if num > _MOST_PUSHING else ""
    title = f"Trained under {run}: {num} of {len(pushes)} examples push{shown}"

    def draw() -> Any:
        return _draw(problem.dataset, end, shares, weights, side)

    return Panel(
        f"{view.prefix}-images-{view.places[run] + 1}",
        title,
        _PREDICTION,
        draw,
        _table(problem.dataset, end, shares),
    )


def portraits(network: Any, params: Any, num_inputs: int) -> list[np.ndarray]:
    """What the network looks for, as images: of a linear one, or one without hidden layers, the
    product of its layers; of others the weights of the two hidden units that count most. None where
    layers are no matrices.

    Shapes: (num_inputs,) each.
    """
    layers = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    if any(layer.ndim != 2 for layer in layers) or layers[0].shape[1] < num_inputs:
        return []
    first = layers[0][:, :num_inputs]
    if isinstance(network, DeepLinear):
        return [reduce(lambda below, above: above @ below, layers)[0]]
    if len(layers) == 1:
        return [first[0]]
    strength = np.linalg.norm(first, axis=1) * np.linalg.norm(layers[1], axis=0)
    order = np.argsort(-strength, kind="stable")[:2]
    return [first[unit] for unit in order]


def _draw(dataset: Any, end: Any, shares: np.ndarray, weights: list, side: int) -> Any:
    from matplotlib.figure import Figure

    pushing = end.pushing[:_MOST_PUSHING]
    figure = Figure(figsize=(4.3, 2.15))
    figure.subplots_adjust(left=0.02, right=0.99, bottom=0.02, top=0.88, wspace=0.3, hspace=0.1)
    grid = figure.subplots(2, 1 + _MOST_PUSHING)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, weight in zip(grid[:, 0], weights, strict=False):
        _show(axes, weight, side, signed=True)
    grid[0, 0].set_title("weights", fontsize=8)
    for column, example in enumerate(pushing, start=1):
        _show(grid[0, column], dataset.x[example], side, signed=False)
        label = f"{dataset.y[example]:+.0f}" if dataset.binary else f"{dataset.y[example]}"
        title = f"{label}: {100 * shares[example]:.1f} %"
        grid[0, column].set_title(title, fontsize=8)
        _show(grid[1, column], end.perturbations[column - 1], side, signed=True)
    for axes, words in zip(grid[:, 1], ("example", "perturbation"), strict=True):
        axes.annotate(
            words,
            (-0.1, 0.5),
            xycoords="axes fraction",
            rotation=90,
            ha="right",
            va="center",
            fontsize=8,
        )
    return figure


def _show(axes: Any, values: np.ndarray, side: int, *, signed: bool) -> None:
    image = np.asarray(values).reshape(side, side)
    reach = float(np.abs(image).max()) or 1.0
    bounds = (-reach, reach) if signed else (float(image.min()), float(image.max()))
    # Red and blue on white for what has a sign: told apart in grey by what surrounds them.
    axes.imshow(
        image,
        cmap="RdBu_r" if signed else "gray_r",
        vmin=bounds[0],
        vmax=bounds[1],
        interpolation="nearest",
    )


def _table(dataset: Any, end: Any, shares: np.ndarray) -> str:
    inputs = range(dataset.x.shape[1])
    lines = [
        "example,label,share_of_multipliers,kind," + ",".join(f"input_{i}" for i in inputs),
    ]
    for place, example in enumerate(end.pushing):
        head = f"{example},{dataset.y[example]:g},{shares[example]:.10g}"
        for kind, values in (("x", dataset.x[example]), ("delta", end.perturbations[place])):
            lines.append(f"{head},{kind}," + ",".join(f"{value:.8g}" for value in values))
    return "\n".join(lines) + "\n"
