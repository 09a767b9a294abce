"""One plot function for each main quantity of a trajectory.

All take `(trajectory, axes=None, *, against="time", **line)` and return the axes: `against` is one
of "time", "loss", "log_loss" (-log loss, which grows like log t and shows how a limit is neared),
"kappa" and "steps"; `line` goes to matplotlib's `Axes.plot`. Quantities that
span decades are drawn as logarithms to base 10, so that nothing overflows.
"""

from typing import Any

import numpy as np

from gflow.report.axes import Against, abscissa, decades, finish, log10, new_axes
from gflow.report.quantities import distance_to_end, layer_alignments
from gflow.report.style import GUIDE


def plot_loss(trajectory: Any, axes: Any = None, *, against: Against = "time", **line: Any) -> Any:
    """The loss, summed over examples, in decades."""
    return _curve(
        trajectory, decades(trajectory.log_loss), "loss (sum)", axes, against, line, decades_up=True
    )


def plot_margin(
    trajectory: Any,
    axes: Any = None,
    *,
    against: Against = "time",
    limit: float | None = None,
    **line: Any,
) -> Any:
    """The normalized adversarial margin, `min_i q_i(u)` with u = params / |params|.

    With the margin of a `limit`, such as `limit.margin`, a dotted line at it.
    """
    axes = _curve(trajectory, trajectory.margin, "adversarial margin", axes, against, line)
    return _from_separation(_with_limit(axes, limit))


def plot_smoothed_margin(
    trajectory: Any, axes: Any = None, *, against: Against = "time", **line: Any
) -> Any:
    """The smoothed normalized margin, `l^{-1}(Loss) / |params|^L`, a lower bound of the margin."""
    values = trajectory.smoothed_margin
    axes = _curve(trajectory, values, "smoothed margin", axes, against, line)
    return _from_separation(axes)


def plot_margins(
    trajectory: Any,
    axes: Any = None,
    *,
    against: Against = "time",
    limit: float | None = None,
    **line: Any,
) -> Any:
    """The three normalized margins: clean, adversarial and smoothed.

    With the adversarial margin of a `limit`, such as `limit.margin`, a dotted line at it. The view
    starts shortly below zero: before the examples are separated the smoothed margin comes from
    minus infinity.
    """
    axes = new_axes() if axes is None else axes
    x = abscissa(trajectory, against)
    styles = {
        "clean": (trajectory.clean_margin, "--"),
        "adversarial": (trajectory.margin, "-"),
        "smoothed": (trajectory.smoothed_margin, ":"),
    }
    for label, (values, style) in styles.items():
        axes.plot(x.values, values, **{"linestyle": style, "label": label, **line})
    _with_limit(axes, limit).legend(frameon=False)
    return _from_separation(finish(axes, x, "normalized margin"))


def plot_stationarity(
    trajectory: Any, axes: Any = None, *, against: Against = "time", **line: Any
) -> Any:
    """How far the direction is from a KKT point: the sine of the angle between u and the flow."""
    values = log10(trajectory.stationarity)
    return _curve(trajectory, values, "stationarity", axes, against, line, decades_up=True)


def plot_layer_alignment(
    trajectory: Any, axes: Any = None, *, against: Against = "time", **line: Any
) -> Any:
    """For adjacent layers, `|<v_{k+1}, u_k>|` of their leading singular vectors: 1 is aligned."""
    axes = new_axes() if axes is None else axes
    x = abscissa(trajectory, against)
    points, values = layer_alignments(trajectory)
    for pair in range(values.shape[1]):
        label = f"layers {pair + 1} and {pair + 2}"
        axes.plot(x.values[points], values[:, pair], **{"label": label, **line})
    if values.shape[1] > 1 and "label" not in line:
        axes.legend(frameon=False)
    axes.set_ylim(-0.02, 1.02)
    return finish(axes, x, "layer alignment")


def plot_direction_convergence(
    trajectory: Any, axes: Any = None, *, against: Against = "time", **line: Any
) -> Any:
    """`|u - u_end|`, the distance of each direction from the last one, which is left out."""
    values = log10(distance_to_end(trajectory))
    label = "distance to last direction"
    axes = _curve(trajectory, values, label, axes, against, line, decades_up=True)
    # The last step lands on its target with points as close together as rounding allows; they
    # would take up most of the view.
    ends = [float(curve.get_ydata()[int(0.95 * len(curve.get_ydata()))]) for curve in axes.lines]
    finite = [end for end in ends if np.isfinite(end)]
    if finite:
        axes.set_ylim(bottom=min(finite) - 0.3)
    return axes


def plot_scale(trajectory: Any, axes: Any = None, *, against: Against = "time", **line: Any) -> Any:
    """`kappa = |params|^L`, by which margins exceed normalized margins, in decades."""
    values = decades(trajectory.log_kappa)
    return _curve(trajectory, values, "κ = ‖θ‖ᴸ", axes, against, line, decades_up=True)


def plot_time(trajectory: Any, axes: Any = None, *, against: Against = "steps", **line: Any) -> Any:
    """Physical time `1 + t` of the flow, in decades, against the steps that it took."""
    values = decades(trajectory.log1p_time)
    return _curve(trajectory, values, "time 1 + t", axes, against, line, decades_up=True)


def _curve(
    trajectory: Any,
    values: Any,
    label: str,
    axes: Any,
    against: Against,
    line: dict[str, Any],
    *,
    decades_up: bool = False,
) -> Any:
    axes = new_axes() if axes is None else axes
    x = abscissa(trajectory, against)
    axes.plot(x.values, np.asarray(values), **line)
    return finish(axes, x, label, decades_up=decades_up)


def _with_limit(axes: Any, limit: float | None) -> Any:
    """The axes with a line at the margin of the limit, if there is one."""
    if limit is not None:
        axes.axhline(limit, label="limit", **{**GUIDE, "linewidth": 1.6})
    return axes


def _from_separation(axes: Any) -> Any:
    """Cuts the view shortly below zero, where the margins of a separated set lie above it."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines])
    finite = values[np.isfinite(values)]
    if finite.size and finite.max() > 0:
        top = finite.max()
        axes.set_ylim(max(finite.min(), -0.25 * top) - 0.03 * top, 1.06 * top)
    return axes
