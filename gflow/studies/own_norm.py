"""Sign descent and Adam: the margin in the norm in which they are the steepest."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, panels

_EXAMPLES, _DIMENSIONS = 10, 20
_STEPS, _FULL_STEPS = 100_000, 1_000_000
# Steps 0.1 / sqrt(k): their sum, and so the norm, grows; they themselves shrink.
_FIRST_STEP = 0.1


def _measure(small: bool) -> Measurement:
    import optax

    from gflow.reference import largest_feasible_radius

    steps = _STEPS if small else _FULL_STEPS
    best = {q: largest_feasible_radius(_data(), order=p) for q, p in ((math.inf, 1), (2, 2))}
    svm = gflow.max_margin(_data(), radius=0.0, order=2).direction
    of_svm = _margin(svm[None])[0] / np.abs(svm).max() / best[math.inf]
    linear, diagonal = gflow.networks.linear(_DIMENSIONS), gflow.networks.diagonal(_DIMENSIONS, 2)
    runs = {
        "sign descent": _run(linear, optax.sign_sgd(_step_size), steps),
        "sign descent, diagonal of depth 2": _run(diagonal, optax.sign_sgd(_step_size), steps),
        # The memory of squares is short beside the time in which the loss falls by a factor.
        "Adam": _run(linear, optax.adam(_step_size, b2=0.95, eps=0.0), steps, "loss"),
        "gradient descent": _run(linear, optax.sgd(2e-2), steps // 4),
    }
    shares = {name: own[0] / best[math.inf] for name, own in runs.items()}
    logits = {name: own[1] * best[math.inf] for name, own in runs.items()}
    findings = _findings(shares, logits, of_svm)
    return Measurement(tuple(findings), {"shares": shares, "logits": logits, "svm": of_svm})


def _findings(
    shares: Mapping[str, np.ndarray], logits: Mapping[str, np.ndarray], of_svm: float
) -> list[Finding]:
    """The shares of the largest margin at the end, and how fast sign descent comes to it."""
    findings = [
        Finding(
            "gradient descent: l∞ margin / largest, that of the l2-SVM",
            of_svm,
            shares["gradient descent"][-1],
            5e-3,
        )
    ]
    for name in list(shares)[:3]:
        tolerance = 0.03 if name == "Adam" else 0.02
        findings.append(Finding(f"{name}: l∞ margin / largest", 1.0, shares[name][-1], tolerance))
    bound = 1 - math.log(_EXAMPLES) / logits["sign descent"]
    above = shares["sign descent"] - bound
    findings.append(
        Finding(
            "sign descent: smallest lead of that share over 1 - ln n / (γ |w|_∞), last half",
            0.0,
            above[len(above) // 2 :].min(),
            0.0,
            "at least",
        )
    )
    return findings


def _data() -> Any:
    """10 points in 20 dimensions, whose l2-SVM has 0.685 of the largest l_inf margin."""
    return gflow.datasets.gaussian(_EXAMPLES, _DIMENSIONS, gap=0.5, seed=0)


def _step_size(count: Any) -> Any:
    return _FIRST_STEP * (count + 1.0) ** -0.5


def _margin(weights: np.ndarray) -> np.ndarray:
    """`min_i y_i <w, x_i>` of each row. Shapes: (s, d) -> (s,)."""
    data = _data()
    return np.min(weights @ (data.y[:, None] * data.x).T, axis=1)


def _run(
    network: Any, optimizer: Any, steps: int, objective: Any = "log_loss"
) -> tuple[np.ndarray, np.ndarray]:
    """At every saved point the margin over `|params|_inf^L`, and `|params|_inf^L`."""
    from jax import tree

    problem = gflow.Problem(
        network,
        _data(),
        loss=gflow.losses.exponential(),
        perturbation=gflow.perturbations.clean(),
    )
    run = gflow.descend(
        problem, network.init(0), optimizer, num_steps=steps, objective=objective, save=256
    )
    leaves = [np.reshape(leaf, (len(run.log_norm), -1)) for leaf in tree.leaves(run.directions)]
    largest = np.max(np.abs(np.hstack(leaves)), axis=1) ** network.degree
    weights = leaves[0] if len(leaves) == 1 else leaves[0] ** 2 - leaves[1] ** 2
    return _margin(weights) / largest, largest * np.exp(network.degree * run.log_norm)


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (axes,) = panels(1)
    for name, share in data["shares"].items():
        shown = (data["logits"][name] > 3) & (share < 1)
        axes.plot(data["logits"][name][shown], 1 - share[shown], label=name)
    axes.axhline(1 - data["svm"], label="l2-SVM", **GREY)
    loglog(axes, "γ ‖θ‖∞ᴸ (logits)", "1 - l∞ margin / largest")
    axes.set_ylim(top=30.0)  # room for the names
    axes.legend(loc="upper right")
    return figure


STUDY = Study(
    name="own-norm",
    title="Sign descent and Adam: the l∞ margin",
    claim="Sign descent is steepest descent in the l_inf norm, and its direction maximises the "
    "margin over that norm, not over the Euclidean one; on homogeneous networks too. Adam with "
    "shrinking steps and no constant in its denominator goes to the same l_inf margin. Gradient "
    "descent goes to the l2-SVM.",
    setting="10 points in 20 dimensions, exponential loss, no attack, steps of size 0.1 / sqrt(k) "
    "for sign descent and Adam (momentum 0.9, squares 0.95), gradient descent on the log-loss. "
    "Largest l_inf margin γ: `largest_feasible_radius` of the dual, l1, ball; the parameters of a "
    "diagonal network of depth 2 lie in the l_inf ball where its predictor does. A flow of "
    "steepest descent from 0 has at least 1 - ln n / (γ |w|_inf) of it.",
    source="Zhang, Zou & Cao 2024 for Adam; Tsilivis et al. 2025 for steepest descent",
    run=_measure,
    figure=_draw,
    full="1 million steps in place of 100 thousand. The work is 10 times that of the small form.",
)
