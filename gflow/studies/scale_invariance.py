"""Which attacks depend on the direction of the parameters alone, and which on their norm too."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import gflow
from gflow.studies.study import Finding, Measurement, Study
from gflow.studies.style import GREY, loglog, panels

_RADIUS, _NUM_STEPS = 0.1, 5
_KAPPAS = np.logspace(0, 8, 33)
_CLASSES, _INPUTS = 10, 6
_ROUNDING = float(np.finfo(float).eps)


def _measure(small: bool) -> Measurement:
    del small
    invariant = {
        "FGM": gflow.perturbations.fgm(_RADIUS),
        "FGSM": gflow.perturbations.fgsm(_RADIUS),
        "PGD": gflow.perturbations.pgd(_RADIUS, order=2, num_steps=_NUM_STEPS),
    }
    changes = {name: _change(attack) for name, attack in invariant.items()}
    findings = [
        Finding(f"{name}: change of δ under θ -> cθ, relative", 0.0, change, 1e-12)
        for name, change in changes.items()
    ]
    raw = _raw_change()
    changes["PGD along\nraw gradients"] = raw
    cross = np.array(_cross_entropy_changes())
    findings += [
        Finding("PGD along raw gradients: the same", 0.0, raw, 1e-2, "apart"),
        Finding("cross-entropy, ten classes: the same at κ = 1", 0.0, cross[0], 1e-2, "apart"),
        Finding("cross-entropy, ten classes: the same at κ = 1e8", 0.0, cross[-1], 1e-12),
    ]
    return Measurement(tuple(findings), {"changes": changes, "kappas": _KAPPAS, "cross": cross})


def _problem(attack: Any) -> Any:
    return gflow.Problem(
        gflow.networks.mlp((3, 6, 1), power=2),
        gflow.datasets.gaussian(10, 3, gap=0.3, seed=0),
        loss=gflow.losses.exponential(),
        perturbation=attack,
    )


def _change(attack: Any) -> float:
    problem = _problem(attack)
    return float(gflow.measures.scale_invariance_error(problem, problem.network.init(0)))


def _raw_change() -> float:
    """How PGD that steps along the raw gradient moves, between parameters and their double."""
    import jax
    import jax.numpy as jnp

    problem = _problem(gflow.perturbations.clean())
    params = problem.network.init(0)
    data = problem.dataset

    @jax.jit
    def attack(factor: Any, x: Any, y: Any) -> Any:
        scaled = jax.tree.map(lambda leaf: factor * leaf, params)
        slope = jax.grad(lambda point: y * problem.network.apply(scaled, point))
        delta = jnp.zeros_like(x)
        for _ in range(_NUM_STEPS):
            delta = delta - 0.5 * _RADIUS * slope(x + delta)
            delta = delta * jnp.minimum(1.0, _RADIUS / (jnp.linalg.norm(delta) + 1e-300))
        return delta

    each = jax.vmap(attack, (None, 0, 0))
    one, two = (np.asarray(each(factor, data.x, data.y)) for factor in (1.0, 2.0))
    return float(np.abs(one - two).max() / np.abs(one).max())


def _cross_entropy_changes() -> list[float]:
    """Distance of the unit gradient of the cross-entropy at each kappa from its limit.

    The gradient by the input is a positive multiple of `sum over j of w_j (grad f_j - grad f_y)`
    with `w = softmax over j != y of kappa f_j`; for kappa to infinity only the runner-up is left,
    which is the gradient of the margin.
    """
    import jax

    network = gflow.networks.mlp((_INPUTS, 12, _CLASSES), power=2)
    params = network.init(0)
    inputs = np.random.default_rng(0).normal(size=(20, _INPUTS))
    outputs = np.asarray(jax.jit(jax.vmap(lambda x: network.apply(params, x)))(inputs))
    slopes = np.asarray(jax.jit(jax.vmap(jax.jacrev(lambda x: network.apply(params, x))))(inputs))
    labels = np.arange(20) % _CLASSES
    changes = []
    for kappa in [*_KAPPAS, math.inf]:
        rows = zip(outputs, slopes, labels, strict=True)
        changes.append(np.array([_unit_gradient(f, g, int(y), kappa) for f, g, y in rows]))
    limit = changes.pop()
    return [float(np.linalg.norm(change - limit, axis=1).max()) for change in changes]


def _unit_gradient(outputs: Any, slopes: Any, label: int, kappa: float) -> np.ndarray:
    others = np.delete(np.arange(_CLASSES), label)
    below = outputs[others] - outputs[others].max()
    weights = (below == 0) * 1.0 if math.isinf(kappa) else np.exp(kappa * below)
    gradient = weights @ (slopes[others] - slopes[label])
    return gradient / np.linalg.norm(gradient)


def _draw(data: Mapping[str, Any]) -> Any:
    figure, (left, right) = panels(2)
    names, changes = zip(*data["changes"].items(), strict=True)
    # A change of 0 is drawn as one of rounding.
    left.plot(np.maximum(changes, _ROUNDING), names, "o")
    left.set(xscale="log", xlim=(1e-17, 10), xlabel="relative change of δ under θ -> cθ")
    left.margins(y=0.15)
    left.axvline(_ROUNDING, label="rounding", **GREY)
    left.legend(loc="lower right")
    right.plot(data["kappas"], np.maximum(data["cross"], _ROUNDING))
    right.set_title("cross-entropy, ten classes")
    loglog(right, "κ", "distance from the margin attack")
    right.axhline(_ROUNDING, **GREY)
    return figure


STUDY = Study(
    name="scale-invariance",
    title="Attacks and the norm of the parameters",
    claim="FGM, FGSM and PGD along normalised gradients give the same perturbation for θ and cθ, "
    "so that adversarial margins are as homogeneous as the network. PGD along raw gradients does "
    "not. An attack on the cross-entropy of several classes does so in the limit of a large norm, "
    "where only the runner-up counts, and not before.",
    setting="ReLU² network 3-6-1 on 10 points, radius 0.1, c = 1e-3 and 1e3; for raw gradients c = "
    "2; ten classes: ReLU² network 6-12-10 at 20 random points, l2-FGM.",
    source="Lyu & Zhu 2022",
    run=_measure,
    figure=_draw,
)
