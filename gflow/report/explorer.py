"""A flow of a network of two inputs on one page, along a slider over log-time."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from gflow._files import checked_path, write_text
from gflow._signatures import named
from gflow.limit import Limit
from gflow.problem import Problem
from gflow.report.columns import significant
from gflow.report.drawing import SIDE, View, marks
from gflow.report.plane import (
    attacks_at,
    check_plane,
    heights,
    labels_of,
    window_around,
)
from gflow.report.slider import graph_of, loss_in_words, places_on, texts
from gflow.report.style import PALETTE
from gflow.trajectory import Trajectory

# Of more examples those with the smallest margins are shown.
_MOST_EXAMPLES = 400
# An example pushes if its weight is at least this part of the largest.
_PUSHES = 0.01
# Marks of labels, filled first, around 0.
_SHAPES = (
    "M-4.5,0a4.5,4.5 0 1,0 9,0a4.5,4.5 0 1,0 -9,0Z",
    "M-4,-4H4V4H-4Z",
    "M0,-5L4.8,3.5H-4.8Z",
    "M0,-5.5L5.5,0L0,5.5L-5.5,0Z",
    "M0,5L4.8,-3.5H-4.8Z",
    "M-2,-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z",
)


@named("report.explorer")
def explorer(trajectory: Trajectory, path: str | os.PathLike, limit: Limit | None = None) -> Path:
    """Writes a page on which a slider over log-time leads through a flow in the plane.

    It shows the decision boundary, the lines at which the smallest adversarial margin is attained,
    every example with its perturbed point, and how much it pushes: its weight in the gradient, at
    the limit its multiplier. Below stand the margins. The page is one HTML file that needs nothing
    else and no network; the slider is the browser's own, for mouse and keyboard. A fragment sets
    it: `page.html#t=0.5` is the middle. Without JavaScript the page shows the end.

    Args:
        trajectory: of a problem with two inputs. Of its points some 60 are shown, evenly spread
            over log t, and beyond t = 1e16 over log(-log loss).
        path: the file; .html is appended unless it ends in that. Its folder must exist.
        limit: the limit of the same problem, which ends the slider. One that was not reached is
            named as such, and not shown.

    Returns:
        The path written.

    Raises:
        TypeError: `trajectory` is no trajectory, or `limit` no limit.
        ValueError: the examples have another number of inputs than two; the limit is that of
            another problem; the trajectory was loaded without its problem; `path` names no file.
        OSError: the file cannot be written.
    """
    call = "report.explorer(trajectory, path)"
    if not isinstance(trajectory, Trajectory):
        raise TypeError(f"`{call}`: {trajectory!r} is no trajectory; `limit.trajectory` is one.")
    if limit is not None and not isinstance(limit, Limit):
        raise TypeError(f"`report.explorer(limit={limit!r})` must be a `gflow.Limit` or None.")
    problem = trajectory.require_problem()
    check_plane(problem, call)
    if limit is not None and not eqx.tree_equal(limit.problem, problem):
        raise ValueError("`report.explorer(limit=...)` is the limit of another problem.")
    target = checked_path(path, ".html", "report.explorer(trajectory, {!r})")
    end, notice = None, _ended_early(trajectory)
    if limit is not None and limit.successful:
        vector = trajectory.layout.flatten_on_host(limit.direction)
        end = vector, limit.certificate.multipliers, limit.margin
    elif limit is not None:
        notice = f"No limit is shown: {limit.message} {notice}".strip()
    view = view_of(trajectory, end, notice=notice)
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gflow.report", ""), autoescape=True, undefined=StrictUndefined
    )
    page = environment.get_template("explorer_page.html.jinja")
    return write_text(target, page.render(view=view, title=_title(trajectory)))


def _ended_early(trajectory: Trajectory) -> str:
    """What is to be said of a flow that stopped before what was asked for; else nothing."""
    if trajectory.successful:
        return ""
    loss, outcome = loss_in_words(float(trajectory.log_loss[-1])), trajectory.result_name
    return f"The flow that is shown ended early, at loss {loss} ({outcome})."


def _title(trajectory: Trajectory) -> str:
    return f"A flow in the plane, {trajectory.require_problem().degree:g}-homogeneous network"


def view_of(
    trajectory: Trajectory,
    end: tuple[np.ndarray, np.ndarray, float] | None,
    *,
    name: str = "explorer",
    notice: str = "",
) -> dict[str, Any]:
    """What the template draws.

    Args:
        trajectory: of a problem with two inputs.
        end: direction (P,), multipliers (n, ...) and normalized margin of the limit, if any.
        name: prefix of the ids, one a page.
        notice: what is to be said first.
    """
    problem = trajectory.require_problem()
    places = places_on(trajectory)
    points = _points(trajectory, places, end)
    view = View(window_around(problem))
    shown = np.sort(np.argsort(points.margins[-1], kind="stable")[:_MOST_EXAMPLES])
    graph = graph_of(trajectory, places, points.least, has_limit=end is not None)
    frames = [
        {**text, "place": graph["x"][i], **_frame(problem, view, points, i, shown)}
        for i, text in enumerate(texts(trajectory, places, has_limit=end is not None))
    ]
    return {
        "name": name,
        "notice": notice,
        "side": SIDE,
        "frames": frames,
        "labels": _legend(problem),
        "examples": _examples(problem, view, shown),
        "hidden": len(problem.dataset) - len(shown),
        "shades": [PALETTE[1 + i % 6] for i in range(points.heights.shape[1])],
        "marks": _marks(view),
        "graph": graph,
        "has_limit": end is not None,
        "attacked": points.attacked,
    }


class _Points(NamedTuple):
    """What is shown at every place of the slider, m of them."""

    heights: np.ndarray
    deltas: np.ndarray
    margins: np.ndarray
    weights: np.ndarray
    least: np.ndarray
    pushing: np.ndarray

    @property
    def attacked(self) -> bool:
        """Whether any example is moved."""
        return bool(self.deltas.any())


def _points(trajectory: Trajectory, places: np.ndarray, end: Any) -> _Points:
    problem, layout = trajectory.require_problem(), trajectory.layout
    vectors, log_kappas = trajectory.vectors[places], trajectory.log_kappa[places]
    if end is not None:
        vectors, log_kappas = np.append(vectors, [end[0]], axis=0), np.append(log_kappas, 0.0)
    attacks = attacks_at(problem, layout, jnp.asarray(vectors), jnp.asarray(log_kappas))
    deltas, margins, weights = map(np.array, attacks)
    least = margins.min(axis=1)
    if end is not None:
        pushes = np.asarray(end[1]).reshape(len(end[1]), -1).sum(axis=1)
        weights[-1], least[-1] = pushes / pushes.sum(), end[2]
    pushing = weights >= _PUSHES * weights.max(axis=1, keepdims=True)
    found = heights(problem, layout, vectors, window_around(problem))
    return _Points(found, deltas, margins, weights, least, pushing)


def _frame(
    problem: Problem, view: View, points: _Points, i: int, shown: np.ndarray
) -> dict[str, Any]:
    """What is drawn at the i-th place of the slider."""
    moved = (problem.dataset.x + points.deltas[i])[shown] if points.attacked else []
    return {
        "margin": significant(float(points.least[i])).replace("-", "−"),
        "pushing": f"{points.pushing[i].sum()} of {len(problem.dataset)}",
        **_lines(view, points.heights[i], float(points.least[i])),
        "moved": view.points(moved),
        "sizes": _sizes(points.weights[i][shown], points.pushing[i][shown]),
    }


def _lines(view: View, found: np.ndarray, margin: float) -> dict[str, Any]:
    """Regions of the labels, and the lines at the margin, if it is positive."""
    levels = ""
    if margin > 0:
        both = [(height, margin) for height in found]
        both += [(found[0], -margin)] if len(found) == 1 else []
        levels = "".join(view.level_path(height, level) for height, level in both)
    return {"regions": [view.level_path(height, 0.0) for height in found], "levels": levels}


def _sizes(weights: np.ndarray, pushing: np.ndarray) -> list[float]:
    """Radii of the rings: areas beyond the example's own mark like the weights; 0 for no ring."""
    radii = np.sqrt(36.0 + 160.0 * weights / weights.max(initial=1e-300))
    return np.where(pushing, np.round(radii, 1), 0.0).tolist()


def _marks(view: View) -> list[dict[str, Any]]:
    """Marks of both axes of the plane."""
    window = view.window
    found = []
    for axis, low in (("x", window.left), ("y", window.bottom)):
        for value, text in marks(low, low + window.width, 6):
            share = SIDE * (value - low) / window.width
            found.append({"axis": axis, "at": share if axis == "x" else SIDE - share, "text": text})
    return found


def _legend(problem: Problem) -> list[dict[str, Any]]:
    """Name, colour and mark of every label."""
    signs = ["label +1", "label −1"]
    names = signs if problem.dataset.binary else [f"class {each}" for each in labels_of(problem)]
    return [
        {"text": text, "colour": PALETTE[1 + i % 6], "shape": _SHAPES[i % len(_SHAPES)]}
        for i, text in enumerate(names)
    ]


def _examples(problem: Problem, view: View, shown: np.ndarray) -> list[dict[str, Any]]:
    """Place and label of every example that is drawn."""
    numbers = {label: number for number, label in enumerate(labels_of(problem))}
    places = view.points(problem.dataset.x[shown])
    found = [numbers[label] for label in np.asarray(problem.dataset.y)[shown].tolist()]
    return [{"at": at, "label": label} for at, label in zip(places, found, strict=True)]
