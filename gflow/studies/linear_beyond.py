"""Linear predictors under an l2 attack larger than the margin: the weights stay finite."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize

import gflow
from gflow.studies.settings import linear_flow, plane
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, panels

_SHARES, _FULL_SHARES = (1.1, 1.3, 1.5), tuple(np.linspace(1.05, 1.6, 12))
_LOG_TIME = 16.0


def _measure(small: bool) -> Measurement:
    svm = gflow.max_margin(plane(), radius=0.0, order=2)
    findings, norms, curves = [], [], []
    for share in _SHARES if small else _FULL_SHARES:
        radius = share * svm.margin
        flow = linear_flow(radius, log_time=_LOG_TIME)
        minimiser, least = _minimiser(radius, svm.direction)
        weights = np.exp(flow.log_norm[-1]) * flow.vectors[-1]
        distance = float(np.linalg.norm(weights - minimiser) / np.linalg.norm(minimiser))
        loss = np.exp(flow.log_loss[-1])
        norms.append(np.linalg.norm(minimiser))
        curves.append((share, flow.log1p_time, np.exp(flow.log_norm)))
        at = f"ε = {share:.3g} γ"
        findings += [
            Finding(f"{at}: distance of w from SciPy's minimiser, relative", 0.0, distance, 1e-6),
            Finding(f"{at}: Loss", least, loss, 1e-8, "ratio"),
        ]
    return Measurement(tuple(findings), {"curves": curves, "norms": norms})


def _minimiser(radius: float, start: np.ndarray) -> tuple[np.ndarray, float]:
    """SciPy's minimum of `sum_i exp(-(<z_i, w> - radius |w|))`, which is convex."""
    data = plane()
    signed = data.y[:, None] * data.x

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        norm = np.linalg.norm(w)
        weights = np.exp(radius * norm - signed @ w)
        return weights.sum(), weights.sum() * radius * w / norm - weights @ signed

    found = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-12})
    return found.x, float(found.fun)


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (axes,) = panels(1)
    for (share, log_time, norm), predicted in zip(data["curves"], data["norms"], strict=True):
        axes.plot(np.expm1(log_time), norm, label=f"ε = {share:.3g} γ")
        axes.axhline(predicted, **GREY)
    loglog(axes, "time t", "‖w‖ (dashed: SciPy's minimiser)")
    axes.set_xlim(left=1e-3)
    marks = [1, 2, 3, 5, 8]
    axes.set_yticks(marks, [str(mark) for mark in marks])
    axes.set_yticks([], minor=True)
    axes.legend()
    return figure


STUDY = Study(
    name="linear-beyond",
    title="Linear predictor, l2 attack larger than the margin",
    claim="At ε > γ no direction has a positive adversarial margin; the adversarial loss is convex "
    "with a finite minimum, and the flow converges to it.",
    setting="40 points in 5 dimensions, exponential loss, flow to t = 9e6; SciPy's BFGS minimises "
    "the same loss.",
    source="convexity of the adversarial loss of a linear predictor; Lyu & Zhu 2022 assume ε < γ",
    run=_measure,
    figure=_draw,
    full="12 radii in place of 3. The work is 4 times that of the small form.",
)
