"""The figures of one network in a report: each a panel with its prediction and its numbers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from gflow.report import clocks
from gflow.report.axes import log10
from gflow.report.clocks import Curve, curve
from gflow.report.end import End
from gflow.report.evaluation import Evaluation
from gflow.report.quantities import has_layers, layer_alignments
from gflow.report.record import Record
from gflow.report.style import look, mark
from gflow.trajectory import Trajectory

# Below this part of a quantity its difference to the limit is rounding of the trajectory.
_LEAST = 1e-12


class Panel(NamedTuple):
    """One figure.

    Attributes:
        name: of its files, and prefix of its ids.
        title: what it shows.
        prediction: what theory says of it, in a sentence.
        draw: makes the figure.
        table: its numbers as CSV.
    """

    name: str
    title: str
    prediction: str
    draw: Callable[[], Any]
    table: str


@dataclass(frozen=True, eq=False)
class View:
    """What is known of one network's runs, by the perturbation that they were trained under.

    Attributes:
        prefix: of its panels' names.
        network: its name.
        records, trajectories, ends: of the runs that there are.
        evaluation: under every attack; None where the runs are not all there.
        places: the number of each perturbation, which decides how its curves look.
        stop: the log-loss at which the flows were told to stop, which each curve is marked at.
    """

    prefix: str
    network: str
    records: Mapping[str, Record]
    trajectories: Mapping[str, Trajectory]
    ends: Mapping[str, End]
    evaluation: Evaluation | None
    places: Mapping[str, int]
    stop: float | None = None

    def limit(self, run: str, key: str) -> float | None:
        """A number at the limit of a run; None where it did not come there."""
        return self.records[run].figures.get(key) if self.records[run].succeeded else None

    def curve(self, run: str, values: Any, **options: Any) -> Curve:
        """The curve of a run, in its own look; of one that did not succeed it says so."""
        succeeded = self.records[run].succeeded
        name = run if succeeded else f"{run} (not arrived)"
        place = self.places[run]
        options |= {"style": look(place), "mark": mark(place), "stop": self.stop}
        return curve(self.trajectories[run], name, values, **options)

    @property
    def slope(self) -> float | None:
        """-1/L, of the network's degree L; None where the trajectories do not hold it."""
        problem = next(iter(self.trajectories.values())).problem
        return None if problem is None else -1.0 / problem.degree

    @property
    def reached(self) -> list[str]:
        """The runs that came to their limits."""
        return [run for run, end in self.ends.items() if end.limit is not None]


def panels(view: View) -> list[Panel]:
    """The figures of a network against the clocks, in order."""
    found = attacked(view) if view.evaluation is not None else []
    found.append(_own_margin(view))
    if view.reached:
        found += [_distance(view), _gap(view)]
    found.append(_stationarity(view))
    if all(has_layers(one) for one in view.trajectories.values()):
        found.append(_alignment(view))
    return found


def attacked(view: View) -> list[Panel]:
    """The margin of every run under one attack: without any, and under the last one in each ball,
    which is the strongest that the job names.
    """
    evaluation = view.evaluation
    assert evaluation is not None
    last = {evaluation.balls[name]: name for name in evaluation.rows}
    found = []
    for ball, name in last.items():
        column = evaluation.columns.index(name)
        curves = [
            view.curve(
                run,
                evaluation.curves[i][:, column],
                points=evaluation.points[i],
                limit=evaluation.limit[i, column],
            )
            for i, run in enumerate(evaluation.rows)
            if run in view.trajectories
        ]
        found.append(_attacked_panel(view, name, ball is None, curves))
    return found


def _attacked_panel(view: View, name: str, clean: bool, curves: Sequence[Curve]) -> Panel:
    if clean:
        title = "Margin without attack"
        words = (
            "Theory: training without attack ends at a KKT point of maximising this margin, so "
            "that its curve is expected to end highest (Lyu & Li 2020)."
        )
    else:
        title = f"Margin of every run under {name}"
        words = (
            "Theory: training under an attack ends at a KKT point of maximising the margin under "
            "that attack, so that a run trained under this one is expected to end highest (Lyu & "
            "Zhu 2022); for linear predictors l2 attacks do not move the limit."
        )
    label = "normalized margin"
    place = view.places[name]
    return _panel(view, f"attacked-{place + 1}", title, words, curves, label, bounds=_seen(curves))


def _seen(curves: Sequence[Curve]) -> tuple[float | None, float | None]:
    """Margins far below zero, before the examples are separated, are not in view."""
    values = np.concatenate([one.values for one in curves])
    top = values[np.isfinite(values)].max(initial=0.0)
    return (-0.35 * top, None) if top > 0 else (None, None)


def _own_margin(view: View) -> Panel:
    curves = [
        view.curve(run, one.smoothed_margin, limit=view.limit(run, "limit_margin"))
        for run, one in view.trajectories.items()
    ]
    words = (
        "Theory: the smoothed margin of the attack in training never falls once the loss is below "
        "that of one example with margin 0, where the gradient goes through the perturbation, and "
        "meets the margin in the limit (Lyu & Li 2020, Lyu & Zhu 2022). Each curve is of another "
        "attack, to be compared with its own limit alone."
    )
    label = "smoothed margin"
    title = "Smoothed margin under each run's own attack"
    return _panel(view, "own-margin", title, words, curves, label, bounds=_seen(curves))


def _distance(view: View) -> Panel:
    curves = []
    for run in view.reached:
        limit = view.ends[run].limit
        assert limit is not None
        distance = np.linalg.norm(view.trajectories[run].vectors - limit, axis=1)
        curves.append(view.curve(run, log10(np.where(distance > _LEAST, distance, 0.0))))
    words = (
        "Theory: what the flow conserves, such as the imbalance of adjacent layers, stays while "
        "the norm grows, so that the direction nears its limit like 1/‖θ‖, which is like (log t) "
        "to the power −1/L: the slope of the dotted line."
    )
    title, slope = "Distance of the direction to its limit", view.slope
    return _panel(
        view, "distance", title, words, curves, "|u − u_limit|", decades=True, guide=slope
    )


def _gap(view: View) -> Panel:
    curves = []
    for run in view.reached:
        limit = view.limit(run, "held_margin") or np.nan
        gap = 1.0 - np.asarray(view.trajectories[run].smoothed_margin) / limit
        curves.append(view.curve(run, log10(np.where(gap > _LEAST, gap, 0.0))))
    words = (
        "Theory: at a maximum the margin lacks the square of the distance, (log t) to the power "
        "−2/L, and what the loss smooths, 1/log t: the slower of them is the slope of the dotted "
        "line (for the latter Lyu & Li 2020)."
    )
    slope = None if view.slope is None else max(2 * view.slope, -1.0)
    title = "Part of the margin that is still to come"
    label = "1 − smoothed margin / limit"
    return _panel(
        view, "gap", title, words, curves, label, decades=True, bounds=(None, 0.3), guide=slope
    )


def _stationarity(view: View) -> Panel:
    curves = [view.curve(run, log10(one.stationarity)) for run, one in view.trajectories.items()]
    words = (
        "Theory: the angle between u and the flow falls to 0 along some sequence of times, since "
        "limits are KKT points (Lyu & Li 2020, Lyu & Zhu 2022). Of the limit the table tells the "
        "stationarity, which is 0 where this angle is."
    )
    title = "Angle between the direction and the flow"
    label = "sine of angle to the flow"
    return _panel(view, "stationarity", title, words, curves, label, decades=True)


def _alignment(view: View) -> Panel:
    curves = []
    for run, one in view.trajectories.items():
        points, values = layer_alignments(one)
        curves.append(view.curve(run, values.min(axis=1), points=points))
    words = (
        "Theory: in a deep linear network adjacent layers align, so that this goes to 1, with an "
        "attack or without (Ji & Telgarsky 2019, Lyu & Zhu 2022); for others nothing is predicted."
    )
    title = "Layers aligning: the least aligned pair"
    label = "|⟨v₊, u⟩| of adjacent layers"
    return _panel(view, "alignment", title, words, curves, label)


def _panel(
    view: View,
    name: str,
    title: str,
    prediction: str,
    curves: Sequence[Curve],
    label: str,
    *,
    decades: bool = False,
    bounds: tuple[float | None, float | None] = (None, None),
    guide: float | None = None,
) -> Panel:
    together = [one.name for one in clocks.merged(curves) if " = " in one.name]
    said = f" Drawn as one, since they coincide: {'; '.join(together)}." if together else ""

    def draw() -> Any:
        return clocks.draw(curves, label, decades_up=decades, bounds=bounds, guide=guide)

    column = ("log10 " if decades else "") + title.replace(",", "")
    table = clocks.table(curves, column)
    return Panel(f"{view.prefix}-{name}", title, prediction + said, draw, table)
