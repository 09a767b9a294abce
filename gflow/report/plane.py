"""What a network of two inputs says of the plane: its outputs on a grid, and their level lines."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls
from gflow._signatures import named
from gflow._typing import Params
from gflow.measures import MAX_LOG_KAPPA
from gflow.problem import Problem
from gflow.report.style import MARKS, PALETTE
from gflow.validation import check_start

# Points of the grid along each side, of one of many drawings and of a single one.
_SIDE, _FINE = 97, 289
# Room around the examples and the origin, as a part of what they take.
_ROOM = 0.08


@dataclass(frozen=True)
class Window:
    """A square of the plane.

    Attributes:
        left, bottom: its lower left corner, in input units.
        width: of its sides.
        num_points: of the grid along each side.
    """

    left: float
    bottom: float
    width: float
    num_points: int = _SIDE

    @property
    def axes(self) -> tuple[np.ndarray, np.ndarray]:
        """The coordinates of the grid, which goes one point beyond every side. Shapes: (g,)."""
        steps = np.linspace(0, self.width, self.num_points - 2)
        steps = np.concatenate([[-steps[1]], steps, [self.width + steps[1]]])
        return self.left + steps, self.bottom + steps


def check_plane(problem: Problem, call: str) -> None:
    """Refuses data that do not lie in the plane.

    Raises:
        ValueError: the examples have another number of inputs than two.
    """
    num_inputs = problem.dataset.x.shape[1]
    if num_inputs != 2:
        raise ValueError(f"`{call}` draws the plane: examples of 2 inputs, not of {num_inputs}.")


def window_around(problem: Problem) -> Window:
    """The square that holds every example with its ball, and the origin."""
    points = np.concatenate([np.asarray(problem.dataset.x), np.zeros((1, 2))])
    low, high = points.min(axis=0), points.max(axis=0)
    width = (1 + 2 * _ROOM) * float((high - low).max()) + 2 * float(problem.perturbation.radius)
    corner = (low + high - width) / 2
    return Window(float(corner[0]), float(corner[1]), width)


@compiled_for_few_calls
def outputs_on_grid(
    problem: Problem, layout: Layout, vectors: Float[Array, "m P"], points: Float[Array, "g d"]
) -> Float[Array, "m g ..."]:
    """The network's outputs `f(x; u)` at every point, for each of several directions."""

    def outputs(vector: Array) -> Array:
        return jax.vmap(problem.network.apply, (None, 0))(layout.unflatten(vector), points)

    return jax.lax.map(outputs, vectors)


def heights(
    problem: Problem, layout: Layout, vectors: np.ndarray, window: Window
) -> Float[np.ndarray, "m c g h"]:
    """By how much each label wins at every point of the grid, for each of several directions.

    Of two labels the output f, which is positive where +1 wins (c = 1); of classes
    `f_c - max_{j != c} f_j`.

    Shapes: vectors (m, P); rows of the grid (axis g) belong to the second input.
    """
    grid = np.stack(np.meshgrid(*window.axes), axis=-1)
    points, given = jnp.asarray(grid.reshape(-1, 2)), jnp.asarray(vectors)
    found = np.asarray(outputs_on_grid(problem, layout, given, points))
    found = found.reshape(len(vectors), *grid.shape[:2], -1)
    if not problem.dataset.binary:
        others = np.sort(found, axis=-1)
        rival = np.where(found == others[..., -1:], others[..., -2:-1], others[..., -1:])
        found = found - rival
    return np.moveaxis(found, -1, 1)


@compiled_for_few_calls
def attacks_at(
    problem: Problem, layout: Layout, vectors: Float[Array, "m P"], log_kappas: Float[Array, " m"]
) -> tuple[Float[Array, "m n d"], Float[Array, "m n"], Float[Array, "m n"]]:
    """Perturbations, smallest margins and weights of the examples, for each of several points.

    With one perturbation an example for every rival class, that which leaves the smallest margin.
    The weights are those of the loss, summed over rivals.
    """

    def at(given: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        vector, log_kappa = given
        params = layout.unflatten(vector)
        delta = problem.perturbations(params)
        own = problem.margins_at(params, delta).reshape(len(delta), -1)
        if delta.ndim == 3:
            worst = jnp.argmin(own, axis=1)[:, None, None]
            delta = jnp.take_along_axis(delta, worst, axis=1)[:, 0]
        weights = problem.ascent(params, log_kappa).weights.reshape(own.shape)
        return delta, own.min(axis=1), weights.sum(axis=1)

    return jax.lax.map(at, (vectors, jnp.minimum(log_kappas, MAX_LOG_KAPPA)))


@named("report.plot_plane")
def plot_plane(problem: Problem, params: Params, axes: Any = None) -> Any:
    """The plane as a network of two inputs divides it, and where the attack moves the examples.

    Drawn are the boundary f = 0 (for classes where two outputs are the largest), dashed the lines
    at which the smallest adversarial margin is attained, and every example with a line to its
    perturbed point. No perturbed point lies between the dashed lines; those on them are the support
    examples of a limit.

    Args:
        problem: of examples of two inputs.
        params: of any norm, which does not show.
        axes: matplotlib's axes; new ones by default.

    Returns:
        The axes.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; the examples have another number
            of inputs than two.
    """
    from gflow.report.axes import new_axes

    check_plane(problem, "report.plot_plane(problem, params)")
    axes = new_axes() if axes is None else axes
    params = check_start(problem, params)
    layout = Layout.of(params)
    vectors = layout.flatten_on_host(params)[None]
    vectors = vectors / np.linalg.norm(vectors)
    window = replace(window_around(problem), num_points=_FINE)
    found = heights(problem, layout, vectors, window)[0]
    deltas, margins, _ = attacks_at(problem, layout, jnp.asarray(vectors), jnp.zeros(1))
    margin = float(np.min(margins))
    for number, height in enumerate(found):
        shade = [PALETTE[1 + number]]
        axes.contourf(*window.axes, height, levels=[0, np.inf], colors=shade, alpha=0.12)
        axes.contour(*window.axes, height, levels=[0], colors="black", linewidths=1.4)
        if margin > 0:
            levels = [-margin, margin] if problem.dataset.binary else [margin]
            lines = {"colors": "black", "linewidths": 0.8, "linestyles": "--"}
            axes.contour(*window.axes, height, levels=levels, **lines)
    _examples(axes, problem, np.asarray(deltas)[0])
    axes.set_xlim(window.left, window.left + window.width)
    axes.set_ylim(window.bottom, window.bottom + window.width)
    axes.set(aspect="equal", xlabel="x₁", ylabel="x₂")
    axes.grid(False)
    return axes


def _examples(axes: Any, problem: Problem, deltas: np.ndarray) -> None:
    x, labels = np.asarray(problem.dataset.x), np.asarray(problem.dataset.y)
    for number, label in enumerate(labels_of(problem)):
        own = labels == label
        ends = np.stack([x[own], x[own] + deltas[own]])
        colour, mark = PALETTE[1 + number % 6], MARKS[number % 7]
        axes.plot(*ends.transpose(2, 0, 1), color=colour, linestyle="-", linewidth=1.0)
        shown = {"linestyle": "none", "color": colour, "marker": mark, "markersize": 5}
        axes.plot(
            *x[own].T, label=f"label {label:+g}" if problem.dataset.binary else f"{label}", **shown
        )


def labels_of(problem: Problem) -> list[float]:
    """The labels, that of the first height first: +1 and -1, or the classes."""
    if problem.dataset.binary:
        return [1.0, -1.0]
    return list(range(problem.dataset.num_classes))
