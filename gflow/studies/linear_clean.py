"""Linear predictors without attack: how fast direction, norm and loss converge."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import direction_error, linear_flow, plane, slope
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, note, panels

# ln t, and where the asymptotic regime begins: below, examples off the margin still push.
_FARTHEST, _FROM = 1e8, 1e4


def _measure(small: bool) -> Measurement:
    del small
    svm = gflow.max_margin(plane(), radius=0.0, order=2)
    flow = linear_flow(0.0, log_norm=math.log(_FARTHEST / svm.margin))
    log_time = flow.log1p_time
    error = direction_error(flow, svm.direction)
    norm = np.exp(flow.log_norm)
    with np.errstate(divide="ignore"):
        norm_ratio = norm * svm.margin / log_time
    loss_ratio = np.exp(flow.log_loss + log_time + 2 * math.log(svm.margin))
    level = _level(svm)
    middle = int(np.argmax(log_time >= 1e6))
    findings = (
        Finding(
            "slope of log(1 - cos) against log ln t, from ln t = 1e4",
            -2.0,
            slope(log_time[: middle + 1], error[: middle + 1], _FROM),
            1e-3,
        ),
        Finding("(ln t)² (1 - cos)", level, error[middle] * log_time[middle] ** 2, 5e-3, "ratio"),
        Finding("|w| γ / ln t at ln t = 1e8", 1.0, norm_ratio[-1], 1e-6),
        Finding("γ² t Loss at ln t = 1e6", 1.0, loss_ratio[middle], 1e-4),
    )
    data = {
        "log_time": log_time,
        "error": error,
        "level": level,
        "norm_ratio": norm_ratio,
        "loss_ratio": loss_ratio,
    }
    return Measurement(findings, data)


def _level(svm: Any) -> float:
    """The limit of `(ln t)^2 (1 - cos)`: `w = ln t w_svm + v`, with `exp(-<z_i, v>) = lambda_i`.

    The support vectors z_i are as many as the dimensions here, so that v is unique.
    """
    data = plane()
    signed = (data.y[:, None] * data.x)[svm.support]
    offset = np.linalg.solve(signed, -np.log(svm.multipliers[svm.support]))
    across = offset - (offset @ svm.direction) * svm.direction
    return float(svm.margin**2 * across @ across / 2)


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    shown = data["log_time"] > 1
    x = data["log_time"][shown]
    left.plot(x, data["error"][shown], label="flow")
    left.plot(x, data["level"] / x**2, label="predicted, slope -2", **GREY)
    loglog(left, "ln t", "1 - cos(w, SVM direction)")
    left.legend()
    right.plot(x, np.abs(data["norm_ratio"][shown] - 1), label="‖w‖ γ / ln t")
    right.plot(x, np.abs(data["loss_ratio"][shown] - 1), label="γ² t Loss")
    loglog(right, "ln t", "distance of the ratio from 1")
    note(right, 0.99, 0.03, "beyond ln t = $10^5$ the loss\nshows the accuracy of ln t")
    right.set_ylim(bottom=1e-15)
    right.legend()
    return figure


STUDY = Study(
    name="linear-clean",
    title="Linear predictor, clean: rates to ln t = 1e8",
    claim="On separable data the direction of the flow of logistic or exponential loss comes to "
    "the l2 max-margin direction like 1/ln t, so that 1 - cos falls like (ln t)^-2; the norm "
    "grows like ln t / γ and the loss falls like 1/(γ² t).",
    setting="40 points in 5 dimensions, γ = 0.7216, exponential loss, flow to ln t = 1e8. The "
    "constant of 1 - cos is that of the residual v with exp(-<z_i, v>) = λ_i. From ln t = 1e5 on "
    "the distance of γ² t Loss from 1 is the accuracy to which ln t is followed.",
    source="Soudry, Hoffer, Nacson, Gunasekar & Srebro 2018",
    run=_measure,
    figure=_draw,
)
