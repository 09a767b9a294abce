"""Linear predictors under an l2 attack below the margin: slower loss, the same direction."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import direction_error, linear_flow, plane
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, panels

_SHARES = (0.1, 0.5, 0.9)
_FULL_SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
# ln t at which the losses are compared, close to the largest time that is a number; and |w| (γ - ε)
# at which directions are.
_LOG_TIME, _LOGITS = 690.0, 1e8


def _measure(small: bool) -> Measurement:
    svm = gflow.max_margin(plane(), radius=0.0, order=2)
    clean = linear_flow(0.0, log_time=_LOG_TIME)
    findings, runs = [], {0.0: clean}
    for share in _SHARES if small else _FULL_SHARES:
        radius, left = share * svm.margin, (1 - share) * svm.margin
        flow = linear_flow(radius, log_time=_LOG_TIME)
        far = linear_flow(radius, log_norm=math.log(_LOGITS / left))
        ratio = math.exp(flow.log_loss[-1] - clean.log_loss[-1])
        norm = math.exp(far.log_norm[-1]) * left / far.log1p_time[-1]
        distance = math.sqrt(2 * direction_error(far, svm.direction)[-1])
        runs[share] = flow
        at = f"ε = {share:g} γ"
        findings += [
            Finding(f"{at}: Loss / clean Loss at equal t", (1 - share) ** -2, ratio, 1e-4, "ratio"),
            Finding(f"{at}: |w| (γ - ε) / ln t", 1.0, norm, 1e-5),
            Finding(f"{at}: distance to the clean SVM direction", 0.0, distance, 1e-6),
        ]
    return Measurement(tuple(findings), _curves(runs, svm))


def _curves(runs: dict[float, Any], svm: Any) -> dict[str, Any]:
    return {
        "shares": list(runs),
        "log_times": [flow.log1p_time for flow in runs.values()],
        "log_losses": [flow.log_loss for flow in runs.values()],
        "errors": [direction_error(flow, svm.direction) for flow in runs.values()],
        "margin": svm.margin,
    }


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    rows = zip(data["shares"], data["log_times"], data["log_losses"], data["errors"], strict=True)
    for share, log_time, log_loss, error in rows:
        shown = log_time > 2
        label = "clean" if share == 0 else f"ε = {share:g} γ"
        scaled = np.exp(log_loss + log_time)[shown] * data["margin"] ** 2
        (line,) = left.plot(log_time[shown], scaled, label=label)
        left.axhline((1 - share) ** -2, **GREY)
        right.plot(log_time[shown], error[shown], color=line.get_color(), label=label)
    loglog(left, "ln t", "γ² t Loss (dashed: predicted)")
    loglog(right, "ln t", "1 - cos(w, clean SVM direction)")
    left.legend(ncols=2)
    return figure


STUDY = Study(
    name="linear-l2",
    title="Linear predictor, l2 attack below the margin",
    claim="An l2 attack of radius ε < γ lowers every margin of a unit predictor by ε: the "
    "direction is that of the clean SVM, the norm grows like ln t / (γ - ε), and at equal time "
    "the loss is (γ / (γ - ε))² times that of clean training.",
    setting="40 points in 5 dimensions, exponential loss; losses compared at ln t = 690, norm and "
    "direction where |w| (γ - ε) = 1e8.",
    source="Lyu & Zhu 2022; rates of Soudry et al. 2018",
    run=_measure,
    figure=_draw,
    full="11 radii in place of 3. The work is 4 times that of the small form.",
)
