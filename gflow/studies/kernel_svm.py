"""The limit of the direction is a KKT point, and the SVM of its own tangent kernel."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.settings import squared_relu
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, panels

_RADII, _FULL_RADII = (0.0, 0.1, 0.2), (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)


def _measure(small: bool) -> Measurement:
    findings, shown = [], {}
    for radius in _RADII if small else _FULL_RADII:
        problem = squared_relu(radius, "frozen")
        limit = gflow.find_limit(problem, problem.network.init(0))
        direction = _flat(limit.direction)
        svm, features = _kernel_svm(problem, limit.direction)
        distance = float(np.sum((direction - svm.direction) ** 2) / 2)
        certificate, where = limit.certificate, f"ε = {radius:g}"
        findings += [
            Finding(f"{where}: |u - Σ λ ∇q(u)|", 0.0, certificate.stationarity, 1e-12),
            Finding(f"{where}: Σ λ (q - γ) L", 0.0, certificate.complementarity, 1e-12),
            Finding(f"{where}: most negative λ", 0.0, certificate.dual_infeasibility, 0.0),
            Finding(f"{where}: |u - v|² / 2, v the SVM of the kernel at u", 0.0, distance, 1e-28),
            Finding(
                f"{where}: margin of that SVM",
                problem.degree * limit.margin,
                svm.margin,
                1e-12,
                "ratio",
            ),
        ]
        shown[radius] = (features @ svm.direction, svm.multipliers * svm.margin**2)
    return Measurement(tuple(findings), {"shown": shown})


def _flat(params: Any) -> np.ndarray:
    from jax import tree

    return np.concatenate([np.ravel(leaf) for leaf in tree.leaves(params)])


def _kernel_svm(problem: Any, direction: Any) -> tuple[Any, np.ndarray]:
    """The SVM on the features `∇q_i(u)`, and the features with their labels folded in, (n, P)."""
    from jax import tree

    labels = np.asarray(problem.dataset.y)
    gradients = problem.margin_gradients(direction, np.arange(len(labels)))
    rows = [np.reshape(leaf, (len(labels), -1)) for leaf in tree.leaves(gradients)]
    features = np.concatenate(rows, axis=1)
    dataset = gflow.Dataset(labels[:, None] * features, labels)
    return gflow.max_margin(dataset, radius=0.0, order=2), features


def _draw(data: Mapping[str, Any]) -> Any:
    figure, axes = panels(len(data["shown"]), sharey=True)
    for one, (radius, (margins, multipliers)) in zip(axes, data["shown"].items(), strict=True):
        order = np.argsort(margins)
        smallest = margins.min()
        one.plot(margins[order] / smallest, "o", label="margin / smallest")
        one.bar(range(len(order)), multipliers[order], color="#e69f00", label="multiplier")
        one.axhline(1.0, **GREY)
        one.set(title=f"ε = {radius:g}", xlabel="example, by margin (shown to 4)", ylim=(0, 4))
    axes[0].set_ylabel("margins and multipliers of the SVM")
    axes[0].legend()
    return figure


STUDY = Study(
    name="kernel-svm",
    title="The limit: a KKT point, and the SVM of its own tangent kernel",
    claim="The direction u in which adversarial training ends is a KKT point of the margin problem "
    "with the perturbations held, and thereby the SVM direction v of the tangent kernel at u of "
    "the adversarial examples: its features are the gradients ∇q_i(u).",
    setting="10 points in 3 dimensions, ReLU² network 3-6-1, exponential loss, clean and l2-FGM "
    "with frozen gradient; limits by `find_limit`, the SVM by `max_margin` on the gradients.",
    source="Lyu & Zhu 2022, Corollary 4.5",
    run=_measure,
    figure=_draw,
    full="6 radii in place of 3. The work is twice that of the small form.",
)
