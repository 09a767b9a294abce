"""Is this point a KKT point of the adversarial max-margin problem? See `gflow.kkt.certificate`."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._checks import check_unmasked
from gflow._interrupts import interruptible
from gflow._numerics import unit
from gflow._programs import compiled_for_few_calls
from gflow._signatures import named
from gflow._typing import Params
from gflow.kkt.certificate import Certificate
from gflow.kkt.multipliers import Solution, best_multipliers
from gflow.kkt.strong_attack import strong_margins
from gflow.kkt.subgradients import Rows, Subgradients
from gflow.kkt.switches import has_kinks, named_for, passes, with_slope_switches
from gflow.measures import (
    MAX_LOG_KAPPA,
    PointMeasures,
    euler_error,
    measure_ascent,
    scale_invariance_error,
)
from gflow.problem import Ascent, Problem
from gflow.validation import check_start


@named()
@interruptible
def certify(
    problem: Problem, params: Params, *, coefficients: np.ndarray | None = None
) -> Certificate:
    """Certifies a point: margins, KKT residuals, multipliers, kinks, homogeneity.

    Gradients of the margins are those of the problem's gradient mode; with "frozen" perturbations
    the KKT system is that of the flow, in which delta is held fixed while differentiating.

    Args:
        params: the point.
        coefficients: first values of `sin phi` of the switches, such as `limit.kinks.coefficients`;
            only those at a kink matter. Needed where signs or slopes on which the attack depends
            are at kinks, since they decide at which input the network is evaluated. Shape (n, s).

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; coefficients of another shape,
            NaN among them, or any for a problem whose kinks have no names.

    Source: Lyu & Li 2020, Definition of (epsilon, delta)-KKT points and Lemma C.8; Lyu & Zhu 2022.
    """
    params = check_start(problem, params)
    hint = None
    if coefficients is not None:
        check_unmasked(coefficients, "`certify(coefficients=...)`")
        hint = _numbers(coefficients)
        problem = named_for(problem, hint)
        _check_coefficients(problem, hint)
    point = _examined(problem, params)
    strong = strong_margins(problem, point.direction, point.weak)
    return certificate_of(problem, point, strong, hint)


def certificate_of(
    problem: Problem,
    point: "Examined",
    strong: np.ndarray,
    hint: np.ndarray | None = None,
    rows: Rows | None = None,
) -> Certificate:
    """The certificate of a point from what programs have computed of it.

    Args:
        strong: `strong_margins` there.
        hint: see `certify(coefficients=...)`.
        rows: see `Subgradients`.
    """
    margins = np.asarray(point.margins)
    gamma = float(np.min(margins))
    common = {
        "normalized_margin": gamma,
        "smoothed_margin": float(point.measures.smoothed_margin),
        "clean_margin": float(point.measures.clean_margin),
        "strong_margin": float(np.min(strong)),
        "euler_error": float(point.euler_error),
        "scale_invariance_error": float(point.scale_invariance_error),
    }
    if not gamma > 0:
        return Certificate(separated=False, **common, **_no_kkt(margins.shape))
    return Certificate(separated=True, **common, **_kkt(problem, point, margins, hint, rows))


def _numbers(coefficients: Any) -> np.ndarray:
    try:
        return np.asarray(coefficients, float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`certify(coefficients=...)` is no array of numbers: {error}.") from None


def _check_coefficients(problem: Problem, given: np.ndarray) -> None:
    shape = len(problem.dataset.x), passes(problem).size
    if not has_kinks(problem):
        raise ValueError("`certify(coefficients=...)`: the problem has no kinks that have names.")
    if given.shape != shape:
        raise ValueError(
            f"`certify(coefficients=...)` has the shape {given.shape}, but there are "
            f"{shape[1]} switches of each of {shape[0]} examples: {shape}."
        )
    if np.isnan(given).any():
        raise ValueError("`certify(coefficients=...)` holds NaN.")


class Examined(eqx.Module):
    """What one program computes of a point: at its direction, with the weights at its own norm."""

    direction: Params
    measures: PointMeasures
    margins: Float[Array, "n ..."]
    weak: Float[Array, "n ..."]
    weights: Float[Array, "n ..."]
    ascent: Params
    euler_error: Array
    scale_invariance_error: Array


def examine(problem: Problem, params: Params) -> Examined:
    """What programs compute of a point, as one function that can be compiled."""
    direction, length = unit(params)
    # Beyond that kappa weights and smoothed margin no longer change.
    log_kappa = jnp.minimum(problem.degree * jnp.log(length), MAX_LOG_KAPPA)
    return _measured(problem, direction, log_kappa, problem.ascent(direction, log_kappa))


def _examined(problem: Problem, params: Params) -> Examined:
    """What `examine` computes, with margins and gradients from the program of `Problem.ascent`,
    which a search has compiled already.
    """
    vector = _flat(params)
    largest = np.abs(vector).max()
    length = np.linalg.norm(vector / largest)
    direction = jax.tree.map(lambda leaf: np.asarray(leaf) / largest / length, params)
    log_norm = np.log(largest) + np.log(length)
    log_kappa = np.minimum(problem.degree * log_norm, MAX_LOG_KAPPA)
    return _measured_alone(problem, direction, log_kappa, problem.ascent(direction, log_kappa))


def _measured(problem: Problem, direction: Params, log_kappa: Any, ascent: Ascent) -> Examined:
    clean = problem.clean_margins(direction)
    return Examined(
        direction,
        measure_ascent(problem, direction, log_kappa, ascent, jnp.min(clean)),
        ascent.margins,
        jnp.minimum(ascent.margins, clean),
        ascent.weights,
        ascent.vector,
        euler_error(problem, direction),
        scale_invariance_error(problem, direction),
    )


_measured_alone = compiled_for_few_calls(_measured)


def _no_kkt(shape: tuple[int, ...]) -> dict[str, Any]:
    """The entries of a certificate that belong to the KKT system, where there is none."""
    names = ("held_margin", "stationarity", "total_stationarity", "complementarity")
    names += ("dual_infeasibility", "flow_stationarity", "kkt_epsilon", "kkt_delta", "cosine")
    nothing = {"multipliers": np.full(shape, np.nan), "coefficients": None}
    nothing |= {"kinks": np.zeros(0, int)}
    return dict.fromkeys(names, math.nan) | nothing | {"num_support": 0, "examined": 0}


def _kkt(
    problem: Problem,
    point: Examined,
    margins: np.ndarray,
    hint: np.ndarray | None,
    rows: Rows | None,
) -> dict[str, Any]:
    """The entries of a certificate that belong to the KKT system, with the best multipliers."""
    direction = _flat(point.direction)
    subgradients = _subgradients(problem, point, margins, rows)
    found = best_multipliers(subgradients, problem.degree, hint)
    multipliers = np.bincount(subgradients.owner, found.weights, margins.size)
    return {
        "held_margin": float(found.pattern.margins.min()),
        "stationarity": found.stationarity,
        "total_stationarity": _total_stationarity(subgradients, found, multipliers),
        "complementarity": float(found.slack @ found.weights),
        "dual_infeasibility": float(max(0.0, -found.weights.min())),
        "multipliers": multipliers.reshape(margins.shape),
        "coefficients": found.pattern.coefficients if subgradients.named else None,
        "num_support": int(np.sum(multipliers > 1e-8 * multipliers.max())),
        "kinks": subgradients.examples_at_kink(found.pattern),
        "examined": subgradients.examined,
        **_flow_kkt(problem.degree, point, direction, margins),
    }


def _subgradients(
    problem: Problem, point: Examined, margins: np.ndarray, rows: Rows | None
) -> Subgradients:
    """The possible gradients at the point, with names for the kinks of the attack's gradient if it
    lies on any (`with_slope_switches`).
    """
    found = Subgradients(problem, point.direction, margins, rows)
    named = with_slope_switches(problem)
    if named is problem or not len(found.at_unnamed):
        return found
    return Subgradients(named, point.direction, margins)


def _flat(params: Params) -> np.ndarray:
    """All leaves in one vector, in NumPy: JAX would compile each operation."""
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])


def _total_stationarity(
    subgradients: Subgradients, found: Solution, multipliers: np.ndarray
) -> float:
    """The residual with the margins' own gradients and the same multipliers."""
    if subgradients.problem.gradients_are_slopes:
        return found.stationarity
    pull = subgradients.total_pull(found.pattern, multipliers)
    return float(np.linalg.norm(subgradients.direction - pull))


def _flow_kkt(
    degree: float, point: Examined, direction: np.ndarray, margins: np.ndarray
) -> dict[str, float]:
    """The residuals with the flow's own multipliers."""
    ascent = _flat(point.ascent)
    length = np.linalg.norm(ascent)
    gamma = margins.min()
    weights = np.asarray(point.weights)
    # For a margin of nearly 0 both residuals overflow.
    with np.errstate(over="ignore", invalid="ignore"):
        slack = gamma ** (1 - 2 / degree) * weights / length * (margins / gamma - 1)
        epsilon = gamma ** (-1 / degree) * np.linalg.norm(direction - ascent / length)
    slack = np.where((weights > 0) & (margins > gamma), slack, 0.0)  # not infinity times 0
    return {
        "flow_stationarity": float(point.measures.stationarity),
        # |u - h/|h|| = sqrt(2 (1 - beta)) without its cancellation
        "kkt_epsilon": float(epsilon),
        "kkt_delta": float(np.max(slack)),
        "cosine": float(direction @ ascent / length),
    }
