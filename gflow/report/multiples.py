"""Small multiples of a sweep: the margin at the limit against each number that was swept.

A panel for every network under every attack. Each run is a point, its seeds side by side; the line
goes through their means, and the bar from the smallest to the largest.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gflow.report.panels import Panel
from gflow.report.style import GUIDE, look, mark
from gflow.report.sweep_record import hashable, is_seed, significant, varying
from gflow.sweeps.table import spread, written

Row = Mapping[str, Any]

# Numbers that span this factor or more are drawn on a logarithmic axis.
_LOGARITHMIC = 50.0
# The points of a series at one place take up this part of the distance to the next.
_WIDTH = 0.1
_PLACE = ("network", "perturbation")


@dataclass(frozen=True)
class Series:
    """Runs that differ in the number on the axis and in seeds only.

    Attributes:
        name: what else they have in common; empty where nothing else varies.
        index: which of the series it is; decides how it looks.
        rows: the runs.
    """

    name: str
    index: int
    rows: list[Row]


@dataclass(frozen=True)
class Multiple:
    """One panel.

    Attributes:
        place: network and perturbation.
        number: the setting on the axis.
        series: what is drawn.
        beside: margins of attacks that do not have this number, such as clean, by their names.
        heights: smallest and largest value, of all panels of the network.
        places: every value of the number in the sweep, sorted.
    """

    place: tuple[str, str]
    number: str
    series: list[Series]
    beside: Mapping[str, float]
    heights: tuple[float, float]
    places: list[float]

    @property
    def logarithmic(self) -> bool:
        """Whether the number's axis is."""
        return self.places[0] > 0 and self.places[-1] / self.places[0] >= _LOGARITHMIC


def numbers_of(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """The settings to draw against: all numbers that vary, but seeds only if nothing else does."""
    found = [name for name in varying(rows, names) if any(_is_number(row[name]) for row in rows)]
    found = [name for name in found if all(_is_number(r[name]) or r[name] is None for r in rows)]
    return [name for name in found if not is_seed(name)] or found[:1]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def multiples(rows: Sequence[Row], names: Sequence[str], number: str) -> Iterator[Multiple]:
    """The panels of a number, network by network."""
    rows = [{**row, **{name: hashable(row[name]) for name in names}} for row in rows]
    others = [
        name for name in varying(rows, names) if name not in (*_PLACE, number) and not is_seed(name)
    ]
    labels = dict.fromkeys(_label(row, others) for row in rows if row[number] is not None)
    places = sorted({float(row[number]) for row in rows if row[number] is not None})
    for network in dict.fromkeys(row["network"] for row in rows):
        own = [row for row in rows if row["network"] == network]
        heights = _heights(own)
        attacks = dict.fromkeys(r["perturbation"] for r in own if r[number] is not None)
        for attack in attacks:
            chosen = [r for r in own if r["perturbation"] == attack and r[number] is not None]
            series = [
                Series(label, index, [row for row in chosen if _label(row, others) == label])
                for index, label in enumerate(labels)
            ]
            kept = [each for each in series if each.rows]
            yield Multiple((network, attack), number, kept, _beside(own, number), heights, places)


def _label(row: Row, names: Sequence[str]) -> str:
    return ", ".join(f"{name} {row[name]}" for name in names if row[name] is not None)


def _heights(rows: Sequence[Row]) -> tuple[float, float]:
    found = [row["margin"] for row in rows if row["margin"] is not None]
    return min(found, default=0.0), max(found, default=1.0)


def _beside(rows: Sequence[Row], number: str) -> dict[str, float]:
    """The mean margin of each attack of the network that has no such number."""
    without = [row for row in rows if row[number] is None]
    means = {
        one["perturbation"]: one["mean"] for one in spread(without, ["perturbation"], "margin")
    }
    return {name: mean for name, mean in means.items() if math.isfinite(mean)}


def panel(multiple: Multiple, name: str) -> Panel:
    """The panel as a report holds it."""
    title = ", ".join(multiple.place)
    runs = [row for each in multiple.series for row in each.rows]
    table = written([{**row} for row in runs])
    return Panel(name, title, _words(multiple), lambda: draw(multiple), table)


def _words(multiple: Multiple) -> str:
    runs = [row for each in multiple.series for row in each.rows]
    arrived = [row["margin"] for row in runs if row["margin"] is not None]
    if not arrived:
        return f"None of {len(runs)} runs arrived."
    return (
        f"{len(arrived)} of {len(runs)} runs arrived, with margins from "
        f"{significant(min(arrived))} to {significant(max(arrived))}."
    )


def draw(multiple: Multiple) -> Any:
    """The figure of one panel."""
    from matplotlib.figure import Figure

    figure = Figure(layout="constrained")
    axes = figure.subplots()
    if multiple.logarithmic:
        axes.set_xscale("log")
    for each in multiple.series:
        _draw_series(axes, each, multiple)
    for name, margin in multiple.beside.items():
        axes.axhline(margin, **GUIDE)
        axes.annotate(
            name, (1, margin), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            fontsize="small", color=GUIDE["color"],
        )  # fmt: skip
    _draw_failed(axes, multiple)
    low, high = multiple.heights
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set(ylim=(low - room, high + room), xlim=_bounds(multiple))
    axes.set(xlabel=multiple.number, ylabel="margin at the limit")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best")
    return figure


def _bounds(multiple: Multiple) -> tuple[float, float]:
    """The view along the number: every place in it, with the points beside it."""
    first, last = multiple.places[0], multiple.places[-1]
    beside = _WIDTH * (len(multiple.series) / 2 + 0.5)
    low, high = _moved(multiple, first, -beside), _moved(multiple, last, beside)
    if multiple.logarithmic:
        room = (high / low) ** 0.02
        return low / room, high * room
    return low - 0.02 * (high - low), high + 0.02 * (high - low)


def _draw_series(axes: Any, series: Series, multiple: Multiple) -> None:
    groups = spread(series.rows, [multiple.number], "margin")
    known = sorted((g for g in groups if g["arrived"]), key=lambda g: g[multiple.number])
    if not known:
        return
    style, shape = look(series.index + 1), mark(series.index)
    x = [_moved(multiple, group[multiple.number], _aside(series, multiple)) for group in known]
    low, mean, high = ([group[key] for group in known] for key in ("min", "mean", "max"))
    hollow = {"markerfacecolor": "none", "markeredgecolor": style["color"], "markersize": 4.0}
    axes.plot(x, mean, **style)
    axes.vlines(x, low, high, color=style["color"], linewidth=4.0, alpha=0.3)
    axes.plot(*_points(series, multiple), shape, **hollow)
    if series.name:
        axes.plot([], [], label=series.name, marker=shape, **style, **hollow)


def _aside(series: Series, multiple: Multiple) -> float:
    """How far a series stands beside its places, so that several do not cover each other."""
    numbers = sorted(each.index for each in multiple.series)
    return _WIDTH * (numbers.index(series.index) - (len(numbers) - 1) / 2)


def _points(series: Series, multiple: Multiple) -> tuple[list[float], list[float]]:
    """Every run that arrived: beside its place, in the order of the runs."""
    at, margins = [], []
    for place in multiple.places:
        rows = [row for row in series.rows if row[multiple.number] == place]
        found = [row["margin"] for row in rows if row["margin"] is not None]
        offsets = np.linspace(-0.5, 0.5, len(found)) if len(found) > 1 else np.zeros(len(found))
        aside = _aside(series, multiple) + _WIDTH * offsets
        at += [_moved(multiple, place, offset) for offset in aside]
        margins += found
    return at, margins


def _moved(multiple: Multiple, place: float, offset: float) -> float:
    """A place along the number, moved by this part of the distance between the closest two."""
    places = np.log(multiple.places) if multiple.logarithmic else np.array(multiple.places)
    gap = float(np.diff(places).min()) if len(places) > 1 else 1.0
    return place * math.exp(gap * offset) if multiple.logarithmic else place + gap * offset


def _draw_failed(axes: Any, multiple: Multiple) -> None:
    """Crosses on the axis, where a run did not arrive."""
    failed = [
        row[multiple.number]
        for each in multiple.series
        for row in each.rows
        if row["margin"] is None
    ]
    if failed:
        heights, line = np.full(len(failed), 0.03), {"linestyle": "none", "label": "not arrived"}
        over = axes.get_xaxis_transform()
        axes.plot(failed, heights, "x", color="#7f7f7f", markersize=5.0, transform=over, **line)
