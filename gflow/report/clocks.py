"""Curves against two clocks, one after the other, and the line that each of them runs into.

As long as the time t of the flow is a number that a reader knows, a curve is drawn against log10 t.
Beyond, where log t exceeds any float's digits, it is drawn against log10(-log loss), which is what
log t becomes: the loss falls like 1/t, up to powers of log t. At the right edge stands the limit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from gflow.report.axes import LOG10, label_decades, power_of_ten
from gflow.report.style import GUIDE

# The first clock counts so many decades of time.
LAST_DECADE = 16.0
# Curves that differ by less than this part of the figure's height are drawn once.
_SAME = 4e-3
_NUM_MARKS = 5
# A run that was told to stop at a log-loss comes as near to it, relative.
_HIT = 1e-9


@dataclass(frozen=True, eq=False)
class Curve:
    """A quantity along a run.

    Attributes:
        name: of the run.
        log10_time: log10(1 + t). Shape (s,).
        log10_far: log10(-log loss); NaN for a loss above 1. Shape (s,).
        values: shape (s,).
        limit: the value at the limit; NaN for none.
        style: arguments for `Axes.plot`.
        mark: the shape of its marks.
        ring: log10(1 + t) of the point that a ring marks; NaN for none.
    """

    name: str
    log10_time: np.ndarray
    log10_far: np.ndarray
    values: np.ndarray
    limit: float = float("nan")
    style: dict[str, Any] = field(default_factory=dict)
    mark: str = "o"
    ring: float = float("nan")


def curve(
    trajectory: Any,
    name: str,
    values: Any,
    *,
    points: Any = None,
    limit: float | None = None,
    style: dict[str, Any] | None = None,
    mark: str = "o",
    stop: float | None = None,
) -> Curve:
    """The curve of `values` at these points of the trajectory; at all of them without `points`.

    Args:
        stop: a log-loss at which a ring marks the curve, where it first comes there.
    """
    chosen = slice(None) if points is None else points
    return Curve(
        name,
        np.asarray(trajectory.log1p_time)[chosen] / LOG10,
        np.asarray(trajectory.log_minus_log_loss)[chosen] / LOG10,
        np.asarray(values, float),
        float("nan") if limit is None else float(limit),
        style or {},
        mark,
        float("nan") if stop is None else _first_at(trajectory, stop),
    )


def _first_at(trajectory: Any, stop: float) -> float:
    """log10(1 + t) of the first saved point with a log-loss of at most `stop`; NaN without one."""
    there = np.asarray(trajectory.log_loss) <= stop + _HIT * abs(stop)
    if not there.any():
        return float("nan")
    return float(np.asarray(trajectory.log1p_time)[np.argmax(there)] / LOG10)


def merged(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, those that coincide as one of all their names."""
    heights = [v for c in curves for v in (*c.values, c.limit) if np.isfinite(v)]
    allowed = _SAME * (max(heights) - min(heights)) if heights else 0.0
    groups: list[list[Curve]] = []
    for one in curves:
        twin = next((group for group in groups if _apart(group[0], one) <= allowed), None)
        groups.append([one]) if twin is None else twin.append(one)
    return [Curve(" = ".join(each.name for each in group), *_numbers(group[0])) for group in groups]


def _numbers(one: Curve) -> tuple[Any, ...]:
    return one.log10_time, one.log10_far, one.values, one.limit, one.style, one.mark, one.ring


def _apart(one: Curve, other: Curve) -> float:
    """The largest difference at equal time, and between the limits."""
    clocks = [np.where(np.isfinite(c.log10_time), c.log10_time, np.inf) for c in (one, other)]
    inside = clocks[1] <= clocks[0][-1] if len(clocks[0]) else np.zeros(len(clocks[1]), bool)
    if not inside.any():
        return float("inf")
    difference = np.abs(np.interp(clocks[1][inside], clocks[0], one.values) - other.values[inside])
    limits = abs(one.limit - other.limit)
    if np.isnan(limits):
        limits = 0.0 if np.isnan(one.limit) == np.isnan(other.limit) else np.inf
    finite = difference[np.isfinite(difference)]
    return float(max(finite.max(initial=0.0), limits))


def draw(
    curves: Sequence[Curve],
    label: str,
    *,
    decades_up: bool = False,
    bounds: tuple[float | None, float | None] = (None, None),
    guide: float | None = None,
) -> Any:
    """The figure.

    Args:
        curves: those that coincide are drawn once.
        label: the name of the ordinate.
        decades_up: whether the values are logarithms to base 10.
        bounds: of the ordinate.
        guide: the slope of a dotted line beside the curves on the second clock, in decades of both.
    """
    from matplotlib.figure import Figure

    shown = merged(curves)
    far = any(_is_beyond(one).any() for one in shown)
    figure = Figure()
    names = [one.name for one in shown]
    columns = 3 if max(map(len, names), default=0) <= 10 else 2
    columns = 1 if max(map(len, names), default=0) > 28 else columns
    lines = -(-len(names) // columns)
    top = 0.93 - 0.062 * lines
    figure.subplots_adjust(left=0.165, right=0.975, bottom=0.17, top=top, wspace=0.06)
    widths = [3, 2] if far else [1]
    grid = figure.subplots(1, len(widths), sharey=True, width_ratios=widths, squeeze=False)[0]
    for number, one in enumerate(shown):
        _near(grid[0], one, number)
        if far:
            _beyond(grid[1], one)
    _finish_near(grid[0], label, decades_up)
    _heights(grid[0], shown, bounds)
    if far:
        _finish_far(grid[1], shown, guide)
    options = {"ncols": columns, "bbox_to_anchor": (0.0, 1.01), "borderpad": 0.2}
    figure.legend(*grid[0].get_legend_handles_labels(), loc="upper left", **options)
    return figure


def _is_beyond(one: Curve) -> np.ndarray:
    """Which points are drawn on the second clock alone; beyond a cap there is no time at all."""
    return ~(one.log10_time <= LAST_DECADE) & np.isfinite(one.log10_far)


def _near(axes: Any, one: Curve, number: int) -> None:
    chosen = one.log10_time <= LAST_DECADE
    # One point more, so that the line goes to the edge.
    chosen[: min(chosen.sum() + 1, len(chosen))] = True
    x = one.log10_time[chosen]
    axes.plot(
        x,
        one.values[chosen],
        label=one.name,
        marker=one.mark,
        markevery=_spread(x, number),
        **one.style,
    )
    if one.ring <= LAST_DECADE and len(x):
        colour = one.style.get("color")
        height = np.interp(one.ring, x, one.values[chosen])
        axes.plot(one.ring, height, "o", markersize=8, fillstyle="none", color=colour)


def _spread(x: np.ndarray, number: int) -> list[int]:
    """The points nearest to places evenly spread over the axis; other curves have others."""
    if not len(x):
        return []
    places = (np.arange(_NUM_MARKS) + 0.25 + 0.1 * (number % 6)) / _NUM_MARKS
    wanted = places * min(float(x[-1]), LAST_DECADE)
    return sorted({int(np.argmin(np.abs(x - place))) for place in wanted})


def _beyond(axes: Any, one: Curve) -> None:
    chosen = _is_beyond(one)
    first = int(np.argmax(chosen)) if chosen.any() else 0
    if first > 0 and np.isfinite(one.log10_far[first - 1]):
        chosen[first - 1] = True
    axes.plot(one.log10_far[chosen], one.values[chosen], **one.style)


def _finish_near(axes: Any, label: str, decades_up: bool) -> None:
    axes.set_xlim(0, min(axes.get_xlim()[1], LAST_DECADE))
    axes.set_xlabel("time 1 + t")
    axes.set_ylabel(label)
    label_decades(axes.xaxis)
    if decades_up:
        label_decades(axes.yaxis)


def _heights(axes: Any, shown: Sequence[Curve], bounds: tuple[float | None, float | None]) -> None:
    values = np.concatenate([*(one.values for one in shown), [one.limit for one in shown]])
    finite = values[np.isfinite(values)]
    if not finite.size:
        return
    low = finite.min() if bounds[0] is None else max(finite.min(), bounds[0])
    high = finite.max() if bounds[1] is None else min(finite.max(), bounds[1])
    pad = 0.04 * (high - low or 1.0)
    axes.set_ylim(low - pad, high + pad)


def _finish_far(axes: Any, shown: Sequence[Curve], guide: float | None) -> None:
    values = np.concatenate([one.log10_far[_is_beyond(one)] for one in shown])
    low, high = float(values.min()), float(values.max())
    # All in one place: curves of runs that rest, whose loss does not fall any more.
    edge = high + 0.22 * (high - low or 1.0)
    for one in shown:
        if np.isfinite(one.limit):
            colour = one.style.get("color")
            finite = one.log10_far[np.isfinite(one.log10_far)]
            start = float(finite[-1]) if finite.size else high
            axes.plot([start, edge], [one.limit] * 2, color=colour, linewidth=0.9)
            axes.plot([edge], [one.limit], color=colour, marker=one.mark, clip_on=False, zorder=5)
    axes.set_xlim(low, edge)
    axes.set_xlabel("−log loss")
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False)
    _mark_sizes(axes, low, high)
    if guide is not None:
        _draw_guide(axes, shown, low, high, guide)
    if any(np.isfinite(one.limit) for one in shown):
        axes.axvline(high, linewidth=0.6, color="#7f7f7f")
        axes.annotate(
            "limit",
            (0.5 * (high + edge), 1.0),
            xycoords=("data", "axes fraction"),
            ha="center",
            va="bottom",
            fontsize=8,
        )


def _mark_sizes(axes: Any, low: float, high: float) -> None:
    """Marks at powers of ten, and at three times these where there is room, as plain numbers."""
    steps = (0.0, np.log10(3.0)) if high - low < 2.5 else (0.0,)
    powers = range(int(np.floor(low)), int(np.ceil(high)) + 1)
    places = [power + step for power in powers for step in steps]
    places = [place for place in places if low <= place <= high + 1e-9]
    axes.set_xticks(places, [_size(place) for place in places])


def _size(place: float) -> str:
    return f"{10**place:.0f}" if place < 4 else power_of_ten(place)


def _draw_guide(axes: Any, shown: Sequence[Curve], low: float, high: float, slope: float) -> None:
    """A line of this slope, shortly above where the curves enter the second clock."""
    entering = [one.values[_is_beyond(one)][0] for one in shown if _is_beyond(one).any()]
    finite = [value for value in entering if np.isfinite(value)]
    if not finite:
        return
    bottom, top = axes.get_ylim()
    start = min(max(finite) + 0.1 * (top - bottom), top)
    axes.plot([low, high], [start, start + slope * (high - low)], **GUIDE)


def table(curves: Sequence[Curve], label: str) -> str:
    """The numbers of the curves as CSV, each limit as a line without a time."""
    lines = [f"run,log10_1_plus_t,log10_minus_log_loss,{label}"]
    for one in curves:
        name = f'"{one.name}"' if "," in one.name else one.name
        rows = zip(one.log10_time, one.log10_far, one.values, strict=True)
        lines += [f"{name},{t:.10g},{far:.10g},{value:.10g}" for t, far, value in rows]
        if np.isfinite(one.limit):
            lines.append(f"{name},limit,limit,{one.limit:.16g}")
    return "\n".join(lines) + "\n"
