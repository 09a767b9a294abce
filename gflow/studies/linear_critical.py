"""Linear predictors under an l2 attack as large as the margin, or nearly so."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

import gflow
from gflow.studies.settings import direction_error, linear_flow, plane, slope
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, panels

_HORIZONS, _FULL_HORIZONS = (1e4, 1e8, 1e12), tuple(10.0**k for k in range(3, 16))


def _measure(small: bool) -> Measurement:
    svm = gflow.max_margin(plane(), radius=0.0, order=2)
    level, offset = _residual(svm)
    size = float(offset @ offset)
    # d|w|/dt = level γ |v|^2 / (2 |w|^2).
    growth = (1.5 * level * svm.margin * size) ** (1 / 3)
    critical = linear_flow(svm.margin, log_time=math.log(1e15))
    time, norm = np.exp(critical.log1p_time), np.exp(critical.log_norm)
    error = direction_error(critical, svm.direction)
    late = slope(time, error, 1e10)
    best = minimize_scalar(lambda s: -math.log1p(s * s) / s, bounds=(0.5, 5), method="bounded")
    farthest, scale = -float(best.fun), float(best.x)
    horizons = np.array(_HORIZONS if small else _FULL_HORIZONS)
    tuned = np.array([_tuned(svm, scale, level, horizon) for horizon in horizons])
    nearest = size / (2 * farthest**2 * level)
    findings = (
        Finding("ε = γ: slope of log(1 - cos) against log t", -2 / 3, late, 1e-3),
        Finding("ε = γ: |w| / t^(1/3)", growth, norm[-1] / time[-1] ** (1 / 3), 5e-3, "ratio"),
        Finding("ε = γ: Loss in the limit", level, math.exp(critical.log_loss[-1]), 1e-3, "ratio"),
        Finding(
            "ε tuned to T: slope of log(1 - cos) against log T",
            -1.0,
            slope(horizons, tuned, 1e8),
            1e-2,
        ),
        Finding("ε tuned to T: T (1 - cos)", nearest, tuned[-1] * horizons[-1], 1e-2, "ratio"),
    )
    data = {
        "time": time,
        "error": error,
        "predicted": size / (2 * growth**2),
        "loss": np.exp(critical.log_loss),
        "level": level,
        "horizons": horizons,
        "tuned": tuned,
        "nearest": nearest,
    }
    return Measurement(findings, data)


def _residual(svm: Any) -> tuple[float, np.ndarray]:
    """`min over v across the SVM direction of sum over support vectors of exp(-<z_i, v>)`."""
    data = plane()
    signed = (data.y[:, None] * data.x)[svm.support]
    basis = np.linalg.svd(svm.direction[None])[2][1:]
    across = signed @ basis.T

    def loss(v: np.ndarray) -> tuple[float, np.ndarray]:
        weights = np.exp(-across @ v)
        return weights.sum(), -weights @ across

    found = minimize(loss, np.zeros(len(basis)), jac=True, options={"gtol": 1e-12})
    return float(found.fun), found.x @ basis


def _tuned(svm: Any, scale: float, level: float, horizon: float) -> float:
    """`1 - cos` at the time `horizon` under the radius that makes the norm there largest.

    With `delta = γ - ε`, `d|w|/dt = delta level e^(-delta |w|)`, whence `|w(T)| = ln(1 + delta^2
    level T) / delta`: largest at `delta = scale / sqrt(level T)`.
    """
    radius = svm.margin - scale / math.sqrt(level * horizon)
    flow = linear_flow(radius, log_time=math.log(horizon))
    return float(direction_error(flow, svm.direction)[-1])


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    shown = data["time"] > 3
    time = data["time"][shown]
    left.plot(time, data["error"][shown], label="ε = γ")
    left.plot(time, data["predicted"] * time ** (-2 / 3), label="predicted, slope -2/3", **GREY)
    left.plot(data["horizons"], data["tuned"], "o", label="ε tuned to the horizon")
    left.plot(time, data["nearest"] / time, color="#7f7f7f", linestyle=":", label="slope -1")
    loglog(left, "time t, or horizon T", "1 - cos(w, SVM direction)")
    left.legend()
    right.plot(time, data["loss"][shown], label="ε = γ")
    right.axhline(data["level"], label="predicted limit", **GREY)
    right.set(xscale="log", xlabel="time t", ylabel="loss (sum)")
    right.legend()
    return figure


STUDY = Study(
    name="linear-critical",
    title="Linear predictor, l2 attack as large as the margin",
    claim="At ε = γ the loss tends to a positive constant while the norm grows like t^(1/3) and "
    "1 - cos falls like t^(-2/3), no longer like (ln t)^-2. With ε tuned to the horizon T, "
    "1 - cos at T is O~(1/sqrt(T)) by the published bound; the flow reaches 1/T.",
    setting="40 points in 5 dimensions, exponential loss, flow to t = 1e15. Constants from the "
    "residual v that minimises the loss of the support vectors across the SVM direction; tuned: "
    "γ - ε = 1.98 / sqrt(Loss T).",
    source="Li, Fang, Xu & Zhao 2020; constants derived here",
    run=_measure,
    figure=_draw,
    full="13 horizons in place of 3; some 15 seconds of one core.",
)
