"""Linear networks under l_p attacks: limits from the l2-SVM to the l_q-SVM as the radius grows."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import deep_flow, product, tilted
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, panels

# (depth, p) of the two forms; shares of the largest radius that any predictor withstands.
_CASES = ((1, math.inf), (3, math.inf), (3, 2.0))
_FULL_CASES = tuple((depth, p) for depth in (1, 2, 3, 4) for p in (2.0, 4.0, math.inf))
_SHARES, _FULL_SHARES = (0.0, 0.3, 0.6, 0.9), (0.0, *np.linspace(0.1, 0.9, 9))
_LOG_KAPPA = 30.0


def _measure(small: bool) -> Measurement:
    shares = _SHARES if small else _FULL_SHARES
    svm = gflow.max_margin(tilted(), radius=0.0, order=2)
    ends = {p: _norm_svm(p) for p in (4.0, math.inf)}
    findings, points = [], {}
    for depth, order in _CASES if small else _FULL_CASES:
        largest = gflow.max_margin(tilted(), radius=0.0, order=order).largest_feasible_radius
        ends_here = [_end(depth, share * largest, order) for share in shares]
        limits = np.array([found for found, _ in ends_here])
        wrong = np.linalg.norm(limits - [expected for _, expected in ends_here], axis=1)
        moved = np.linalg.norm(limits - svm.direction, axis=1)
        points[depth, order] = moved
        where = f"depth {depth}, p = {order:g}"
        findings.append(
            Finding(f"{where}: largest distance from `max_margin`", 0.0, wrong.max(), _left(depth))
        )
        if order == 2:
            findings.append(
                Finding(
                    f"{where}: largest distance from the l2-SVM", 0.0, moved.max(), _left(depth)
                )
            )
            continue
        far = float(np.linalg.norm(ends[order] - svm.direction))
        findings.append(
            Finding(
                f"{where}, ε = {shares[-1]:g} of the largest: distance moved from the l2-SVM",
                far,
                moved[-1],
                1e-2,
                "ratio",
            )
        )
    data = {"shares": shares, "points": points, "path": _path(), "lengths": _lengths(ends, svm)}
    return Measurement(tuple(findings), data)


def _left(depth: int) -> float:
    """What is left of the start where the flow is stopped: it falls like 1 / norm."""
    return max(math.exp(-_LOG_KAPPA / depth), 1e-8)


def _end(depth: int, radius: float, order: float) -> tuple[np.ndarray, np.ndarray]:
    """The direction of the product where the flow ends, and that of `max_margin`."""
    limit = gflow.max_margin(tilted(), radius=radius, order=order)
    try:
        flow, _ = deep_flow(depth, radius, order, _LOG_KAPPA)
        direction = flow.direction
    except gflow.RunFailed as failed:  # it slides along signs, which a search can follow
        start = failed.trajectory.params_at_index(0)
        direction = gflow.find_limit(failed.trajectory.require_problem(), start).direction
    weights = product(direction)
    return weights / np.linalg.norm(weights), limit.direction


def _norm_svm(order: float) -> np.ndarray:
    """The l_q-SVM direction of norm 1, as the limit just below the largest feasible radius."""
    largest = gflow.max_margin(tilted(), radius=0.0, order=order).largest_feasible_radius
    return gflow.max_margin(tilted(), radius=(1 - 1e-6) * largest, order=order).direction


def _lengths(ends: dict[float, np.ndarray], svm: Any) -> dict[float, float]:
    return {p: float(np.linalg.norm(end - svm.direction)) for p, end in ends.items()}


def _path() -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """`max_margin` along the radius, for the lines of the figure."""
    shares = np.linspace(0.0, 0.999, 60)
    lines = {}
    for order in (2.0, 4.0, math.inf):
        largest = gflow.max_margin(tilted(), radius=0.0, order=order).largest_feasible_radius
        found = [gflow.max_margin(tilted(), radius=s * largest, order=order) for s in shares]
        directions = np.array([one.direction for one in found])
        lines[order] = shares, np.linalg.norm(directions - directions[0], axis=1)
    return lines


def _draw(data: Mapping[str, Any]) -> Any:
    from gflow.report.style import INK

    figure, (axes,) = panels(1)
    for order, (shares, moved) in data["path"].items():
        name = "∞" if math.isinf(order) else f"{order:g}"
        axes.plot(shares, moved, label=f"max_margin, p = {name}")
    for far in data["lengths"].values():
        axes.axhline(far, **GREY)
    markers = {1: "o", 2: "^", 3: "x", 4: "s"}
    for (depth, _), moved in data["points"].items():
        shown = dict(color=INK, linestyle="none", fillstyle="none", markersize=4 + 2 * depth)
        axes.plot(data["shares"], moved, markers[depth], label=f"flow, depth {depth}", **shown)
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.legend(once.values(), once.keys())
    axes.set(xlabel="radius / largest feasible radius", ylabel="distance from the l2-SVM direction")
    return figure


STUDY = Study(
    name="path-of-limits",
    title="Linear networks under l_p attacks: a path of limits",
    claim="Whatever the depth, the product of the layers ends in the direction of the largest "
    "margin under the attack. An l2 attack does not move it; another l_p attack leads it from the "
    "l2-SVM at radius 0 to the l_q-SVM, 1/p + 1/q = 1, at the largest radius that is feasible.",
    setting="40 points in 5 dimensions, exponential loss, hidden layers of width 4, flow to kappa "
    "= e^30. The start is, of 300 random ones, the one whose product is closest to the limit, so "
    "that signs which an attack follows do not jump on the way. Dashed: where the l_q-SVMs lie.",
    source="Lyu & Zhu 2022 and 2025",
    run=_measure,
    figure=_draw,
    full="Depths 1 to 4 under p = 2, 4 and inf at 10 radii, in place of three such cases at 4. "
    "120 flows, 10 times as many as in the small form.",
)
