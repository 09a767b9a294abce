"""Diagonal networks under FGSM: which norm the depth minimises, and points that are not optimal."""

import math
from collections.abc import Mapping
from itertools import combinations, product
from typing import Any

import numpy as np
from scipy.optimize import nnls

import gflow
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import panels

_SHARES, _FULL_SHARES = (0.0, 0.5, 0.9), tuple(np.linspace(0.0, 0.95, 20))
_STARTS, _FULL_STARTS = 2, 20


def _measure(small: bool) -> Measurement:
    largest = _largest_radius()
    shares = _SHARES if small else _FULL_SHARES
    starts = _STARTS if small else _FULL_STARTS
    findings, points = [], []
    for depth, share in product((2, 3), shares):
        radius = share * largest
        vertices, margins = _vertices(radius, depth)
        ends = [_end(depth, radius, _random_start(seed)) for seed in range(starts)]
        # For depth 3 the best of the vertices, to which these starts happen to lead.
        worst = max(ends, key=lambda end: abs(end - margins[0]))
        where = f"depth {depth}, ε = {share:.3g} of the largest"
        norm = "l1" if depth == 2 else "l_2/3"
        findings.append(
            Finding(f"{where}: margin, that of the {norm} norm", margins[0], worst, 1e-10)
        )
        points.append((depth, share, worst, True))
        if depth == 3 and len(margins) > 1:
            found = _end(depth, radius, _start_near(vertices[1], depth))
            findings += [
                Finding(f"{where}: from a start near another KKT point", margins[1], found, 1e-10),
                Finding(f"{where}: that margin and the largest", margins[0], found, 1e-3, "apart"),
            ]
            points.append((depth, share, found, False))
    return Measurement(tuple(findings), {"points": points, "lines": _lines(largest)})


def _data() -> Any:
    """8 points in 3 dimensions."""
    return gflow.datasets.gaussian(8, 3, gap=0.5, seed=1)


def _largest_radius() -> float:
    return gflow.max_margin(_data(), radius=0.0, order=math.inf).largest_feasible_radius


def _end(depth: int, radius: float, start: Any) -> float:
    """The normalized margin at the limit."""
    problem = gflow.Problem(
        gflow.networks.diagonal(3, depth),
        _data(),
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.fgsm(radius),
    )
    return gflow.find_limit(problem, start).margin


def _random_start(seed: int) -> tuple[np.ndarray, np.ndarray]:
    positive, negative = np.abs(np.random.default_rng(seed).normal(size=(2, 3))) + 0.1
    return positive, negative


def _start_near(predictor: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters of a large multiple of a predictor, with a little added to every one."""
    positive, negative = np.maximum(1e3 * predictor, 0), np.maximum(-1e3 * predictor, 0)
    return positive ** (1 / depth) + 0.05, negative ** (1 / depth) + 0.05


def _vertices(radius: float, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Local solutions of `min |w|_{2/L} s.t. <z_i, w> - radius |w|_1 >= 1`, the best first.

    In each orthant the constraints are linear and the norm is concave in |w| for L >= 2, so that
    local solutions lie at vertices; those are kept at which the KKT conditions hold.

    Returns:
        the vertices, (m, 3), and the normalized margins `|w|_{2/L}^-1` of their parameters, (m,).
    """
    data = _data()
    signed = data.y[:, None] * data.x
    found = []
    for signs in product((-1.0, 1.0), repeat=3):
        rows = np.vstack([signed - radius * np.array(signs), np.diag(signs)])
        bounds = np.concatenate([np.ones(len(signed)), np.zeros(3)])
        for chosen in map(list, combinations(range(len(rows)), 3)):
            if abs(np.linalg.det(rows[chosen])) > 1e-9:
                vertex = np.linalg.solve(rows[chosen], bounds[chosen])
                inside = np.all(rows @ vertex >= bounds - 1e-9)
                if inside and _is_local(vertex, signed - radius * np.array(signs), depth):
                    found.append(vertex)
    vertices = np.unique(np.round(found, 10) + 0.0, axis=0)
    order = 2 / depth
    margins = np.sum(np.abs(vertices) ** order, axis=1) ** (-1 / order)
    best = np.argsort(-margins)
    return vertices[best], margins[best]


def _is_local(vertex: np.ndarray, rows: np.ndarray, depth: int) -> bool:
    """Whether the gradient of the norm is a combination, >= 0, of the active constraints' rows.

    Along a coordinate that is 0 the norm rises with infinite slope (for depth 2 with slope 1 on
    either side, which these data never need).
    """
    nonzero = np.abs(vertex) > 1e-9
    slope = np.sign(vertex) * np.abs(vertex, where=nonzero, out=np.ones(3)) ** (2 / depth - 1)
    active = rows[rows @ vertex < 1 + 1e-8][:, nonzero]
    return nnls(active.T, slope[nonzero])[1] < 1e-8


def _lines(largest: float) -> dict[str, np.ndarray]:
    """What is predicted along the radius, for the figure."""
    shares = np.linspace(0.0, 0.95, 39)
    found = {depth: [_vertices(s * largest, depth)[1] for s in shares] for depth in (2, 3)}
    second = [margins[1] if len(margins) > 1 else np.nan for margins in found[3]]
    best = {depth: np.array([margins[0] for margins in found[depth]]) for depth in found}
    return {"shares": shares, "l1": best[2], "l2/3": best[3], "second": np.array(second)}


def _draw(data: Mapping[str, Any]) -> Any:
    from gflow.report.style import INK

    figure, (axes,) = panels(1)
    lines, points = data["lines"], data["points"]
    axes.plot(lines["shares"], lines["l1"], label="l1-SVM (depth 2)")
    axes.plot(lines["shares"], lines["l2/3"], label="largest, l_2/3 norm (depth 3)")
    axes.plot(lines["shares"], lines["second"], label="second KKT point, if any (depth 3)")
    looks = {
        (2, True): ("o", "depth 2"),
        (3, True): ("s", "depth 3"),
        (3, False): ("x", "depth 3, from near it"),
    }
    for (depth, best), (marker, name) in looks.items():
        chosen = [(share, end) for d, share, end, b in points if (d, b) == (depth, best)]
        axes.plot(
            *zip(*chosen, strict=True),
            marker,
            color=INK,
            fillstyle="none",
            label=f"limit of the flow, {name}",
        )
    axes.set(xlabel="radius / largest feasible radius", ylabel="normalized margin")
    axes.set_ylim(top=0.95)  # room for the names
    axes.legend()
    return figure


STUDY = Study(
    name="diagonal",
    title="Diagonal networks under FGSM: norms and KKT points",
    claim="With depth 2 the flow ends in the l1-SVM for every radius of an linf attack, which "
    "lowers each margin by ε |w|_1. With depth 3 the norm is that of l_2/3: sparser for small "
    "radii, the l1-SVM again for large ones. There the flow ends in a KKT point, which from some "
    "starts is not the one of largest margin.",
    setting="8 points in 3 dimensions, f = <u^L - v^L, x>, exponential loss; limits by "
    "`find_limit`. Predicted: the vertices of the constraints in every orthant.",
    source="Lyu & Zhu 2022; Gunasekar et al. 2018 and Woodworth et al. 2020 for diagonal networks",
    run=_measure,
    figure=_draw,
    full="20 radii in place of 3, each from 20 random starts in place of 2. 820 searches for "
    "limits, 55 times as many as in the small form.",
)
