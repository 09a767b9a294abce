"""A network of degree 3: how fast the loss falls and the norm grows, with their constants."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import squared_relu
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, note, panels

_LOG_KAPPA = 32.0
_RADII, _SEEDS, _FULL_SEEDS = (0.0, 0.1), (0,), tuple(range(5))


def _measure(small: bool) -> Measurement:
    findings, curves = [], {}
    for radius in _RADII:
        for seed in _SEEDS if small else _FULL_SEEDS:
            found, curve = _one(radius, seed)
            findings += found
            if seed == 0:
                curves["clean" if radius == 0 else f"FGM, ε = {radius:g}"] = curve
    return Measurement(tuple(findings), {"curves": curves})


def _one(radius: float, seed: int) -> tuple[list[Finding], dict[str, np.ndarray]]:
    problem = squared_relu(radius, "total")
    start, until = problem.network.init(seed), gflow.Until(log_kappa=_LOG_KAPPA)
    flow = gflow.integrate(problem, start, until=until, solver=gflow.Rosenbrock(), save=None)
    degree, margin, below_one = problem.degree, flow.margin[-1], flow.log_loss < 0
    late = flow.log1p_time > 10.0
    log_time, log_loss = flow.log1p_time[late], flow.log_loss[late]
    loss_ratio = np.exp(
        log_loss
        + log_time
        + 2 * math.log(degree)
        + (2 / degree) * math.log(margin)
        + (2 - 2 / degree) * np.log(log_time)
    )
    norm_ratio = np.exp(flow.log_norm[late]) * (margin / log_time) ** (1 / degree)
    bent, grown = _lemma(flow, degree)
    where = f"ε = {radius:g}, seed {seed}"
    at = f"ln t = {log_time[-1]:.0e}"
    findings = [
        Finding(f"{where}: L² γ^(2/L) t (ln t)^(2-2/L) Loss at {at}", 1.0, loss_ratio[-1], 1e-2),
        Finding(f"{where}: ‖θ‖ (γ / ln t)^(1/L) at {at}", 1.0, norm_ratio[-1], 1e-6),
        Finding(
            f"{where}: largest ∫ (β⁻² - 1) d ln ρ - ln(γ̃ / γ̃_0) / L over the points",
            0.0,
            float(np.max(bent - grown)),
            1e-9,
            "at most",
        ),
    ]
    curve = {
        "log_time": log_time,
        "loss_ratio": loss_ratio,
        "norm_ratio": norm_ratio,
        "kappa": flow.log_kappa[below_one],
        "bent": bent,
        "grown": grown,
    }
    return findings, curve


def _lemma(flow: Any, degree: float) -> tuple[np.ndarray, np.ndarray]:
    """Both sides of the inequality at every point with Loss < 1, from the first of them on."""
    below_one = flow.log_loss < 0
    square = flow.stationarity[below_one] ** 2
    integrand = square / (1 - square)  # beta^-2 - 1, beta the cosine
    steps = np.diff(flow.log_norm[below_one])
    bent = np.cumsum((integrand[1:] + integrand[:-1]) / 2 * steps)
    smoothed = flow.smoothed_margin[below_one]
    return np.append(0.0, bent), np.log(smoothed / smoothed[0]) / degree


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    for name, curve in data["curves"].items():
        left.plot(curve["log_time"], np.abs(curve["loss_ratio"] - 1), label=f"loss, {name}")
        left.plot(curve["log_time"], np.abs(curve["norm_ratio"] - 1), label=f"norm, {name}")
        (line,) = right.plot(curve["kappa"], curve["grown"], label=f"ln(γ̃ / γ̃₀) / L, {name}")
        right.plot(
            curve["kappa"],
            curve["bent"],
            color=line.get_color(),
            linestyle=":",
            label=f"∫ (β⁻² - 1) d ln ρ, {name}",
        )
    loglog(left, "ln t", "distance of the ratio from 1")
    note(left, 0.99, 0.99, "beyond ln t = $10^8$ the loss\nshows the accuracy of ln t")
    left.legend()
    right.set(xlabel="ln κ", ylabel="both sides of the inequality")
    right.axhline(0.0, **GREY)
    right.legend()
    return figure


STUDY = Study(
    name="rates",
    title="Rates of loss and norm of a network of degree 3",
    claim="For a network of degree L the loss falls like 1/(t (ln t)^(2-2/L)) and the norm grows "
    "like (ln t)^(1/L); with the margin γ of the limit the constants are 1/(L² γ^(2/L)) and "
    "γ^(-1/L). The turning of the direction is paid for by the smoothed margin: ∫ (β⁻² - 1) d ln ρ "
    "<= ln(γ̃ / γ̃_0) / L, β the cosine between parameters and flow.",
    setting="10 points in 3 dimensions, ReLU² network 3-6-1 (L = 3), exponential loss, clean and "
    "l2-FGM with total gradient, flow to kappa = e^32. From ln t = 1e8 on the distance of the "
    "loss's ratio from 1 is the accuracy to which ln t is followed.",
    source="Lyu & Li 2020, rates and Lemma C.10; constants derived here",
    run=_measure,
    figure=_draw,
    full="5 starts in place of 1. The work is 5 times that of the small form.",
)
