"""Deep linear networks: what the flow conserves, bounds and aligns, under attack too."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import deep_flow, tilted
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, panels

_DEPTH = 3
# kappa to which the conserved matrices, which are differences of numbers of the size kappa^(2/L),
# are followed with a small tolerance; and to which the limit is.
_NEAR, _FAR, _TIGHT = 12.0, 30.0, 1e-9
_ATTACKS = {"clean": (0.0, 2.0), "FGM": (0.5, 2.0), "FGSM": (0.5, math.inf)}


def _measure(small: bool) -> Measurement:
    del small
    findings, curves = [], {}
    for name, (share, order) in _ATTACKS.items():
        largest = gflow.max_margin(tilted(), radius=0.0, order=order).largest_feasible_radius
        near, _ = deep_flow(_DEPTH, share * largest, order, _NEAR, tolerance=_TIGHT)
        far, limit = deep_flow(_DEPTH, share * largest, order, _FAR)
        layers = _layers(near)
        gaps = [
            w2.transpose(0, 2, 1) @ w2 - w1 @ w1.transpose(0, 2, 1) for w1, w2 in pairwise(layers)
        ]
        drift = max(float(np.abs(gap - gap[0]).max()) for gap in gaps)
        scale = max(float(np.abs(gap[0]).max()) for gap in gaps)
        excess = np.max([_excess(layer) for layer in layers], axis=0)
        bound = float(gflow.measures.ji_telgarsky_bound(near.params_at_index(0)))
        alignment, rank = _alignment(far.direction)
        margin = gflow.measures.balanced_margin(limit.margin, _DEPTH)
        curves[name] = (np.exp(near.log_kappa), excess / bound, _misalignment(near))
        findings += [
            Finding(
                f"{name}: change of W'W - WW', relative to the start", 0.0, drift / scale, 1e-6
            ),
            Finding(
                f"{name}: largest (|W|_F² - |W|_2²) / D", 1.0, excess.max() / bound, 0.0, "at most"
            ),
            Finding(f"{name}: alignment of adjacent layers", 1.0, alignment, 1e-6),
            Finding(f"{name}: |W|_F² / |W|_2² of each layer", 1.0, rank, 1e-6),
            Finding(f"{name}: normalized margin", margin, far.margin[-1], 1e-6, "ratio"),
        ]
    return Measurement(tuple(findings), {"curves": curves})


def _layers(flow: Any) -> list[np.ndarray]:
    """Each layer at every saved point. Shapes: (s, out, in)."""
    norms = np.exp(flow.log_norm)[:, None, None]
    return [norms * np.asarray(layer) for layer in flow.directions]


def _excess(layer: np.ndarray) -> np.ndarray:
    singular = np.linalg.svd(layer, compute_uv=False)
    return np.sum(singular[:, 1:] ** 2, axis=1)


def _alignment(direction: Any) -> tuple[float, float]:
    """The smallest alignment of adjacent layers, and the largest stable rank."""
    layers = [np.asarray(layer) for layer in direction]
    aligned = gflow.measures.layer_alignment(tuple(layers))
    ranks = gflow.measures.stable_ranks(tuple(layers))
    return float(np.min(aligned)), float(np.max(ranks))


def _misalignment(flow: Any) -> np.ndarray:
    """`1 - |<v_{k+1}, u_k>|`, the largest over k, at every saved point."""
    factors = [np.linalg.svd(np.asarray(layer)) for layer in flow.directions]
    values = [
        1 - np.abs(np.sum(after[2][:, 0] * before[0][:, :, 0], axis=1))
        for before, after in pairwise(factors)
    ]
    return np.max(values, axis=0)


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    for name, (kappa, excess, misalignment) in data["curves"].items():
        left.plot(kappa, excess, label=name)
        right.plot(kappa, misalignment, label=name)
    left.axhline(1.0, label="bound", **GREY)
    left.set(xscale="log", xlabel="κ = ‖θ‖³", ylabel="largest (‖W‖_F² - ‖W‖₂²) / D", ylim=(0, 1.1))
    loglog(right, "κ = ‖θ‖³", "1 - alignment of adjacent layers")
    left.legend(loc="center left")
    return figure


STUDY = Study(
    name="deep-linear",
    title="Deep linear networks: conserved, bounded, aligned",
    claim="Along the flow W_{k+1}'W_{k+1} - W_k W_k' is constant and |W_k|_F² - |W_k|_2² stays "
    "below a bound D of the start; the layers align, become rank one, and the normalized margin "
    "tends to γ_adv L^(-L/2). With attacks as without, whatever the radius.",
    setting="40 points in 5 dimensions, widths 5-4-4-1, exponential loss; clean, FGM and FGSM at "
    "half the largest feasible radius. The start is, of 300 random ones, the "
    "one whose product is closest to the limit, so that no coordinate of the product changes sign "
    "on the way, where FGSM jumps. Conservation and bounds at every saved point to kappa = e^12, "
    "tolerance 1e-9; limits at kappa = e^30.",
    source="Ji & Telgarsky 2019; Lyu & Zhu 2022 for attacks",
    run=_measure,
    figure=_draw,
)
