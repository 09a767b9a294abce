"""Is this point a KKT point of the adversarial max-margin problem?

The problem is `min 1/2 |theta|^2 subject to y_i f(x_i + delta_i(theta); theta) >= 1`, whose KKT
points are the limits of the flow's direction (Lyu & Zhu 2022). At unit norm its conditions read
`u = sum_i lambda_i grad q_i(u)`, `lambda_i >= 0`, `lambda_i (q_i(u) - gamma) = 0`.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from gflow._checks import check_unmasked
from gflow._description import plain
from gflow._interrupts import interruptible
from gflow._numerics import unit
from gflow._programs import compiled_for_few_calls
from gflow._signatures import named
from gflow._typing import Params
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


@dataclass(frozen=True, eq=False)
class Certificate:
    """Margins and KKT residuals of a point, computed from the point alone.

    They belong to the point's direction u; only `smoothed_margin` and what is computed with the
    flow's own multipliers (`flow_stationarity`, `kkt_epsilon`, `kkt_delta` and `cosine`) depend on
    its norm too.
    Where the examples are not separated (`separated` is False) there is no KKT system, and the
    quantities that belong to it are NaN.

    Attributes:
        separated: whether every adversarial margin is positive.
        normalized_margin: gamma = min_i q_i(u). Where the perturbation jumps at a kink of the
            network, rounding decides on which side it is taken; `Limit.margin` is the largest on
            any side.
        held_margin: the same with every switch held at `coefficients`, the margin of the KKT
            system; `normalized_margin` itself off the kinks.
        smoothed_margin: `l^{-1}(Loss) / kappa` at the point's own norm.
        clean_margin: min_i y_i f(x_i; u), without perturbation.
        strong_margin: the smallest margin that stronger attacks with the same radius find
            (projected gradient descent, 40 steps, from 0 and three random points; nothing but the
            training attack for orders other than 1, 2 and inf). Never above `normalized_margin` and
            `clean_margin`. If it is far below `normalized_margin`, the training attack is weak, or
            its gradients are masked.
        stationarity: `|u - sum_i lambda_i grad q_i(u)|` with the multipliers below; the norm of u
            is 1, so this is relative.
        total_stationarity: `|u - sum_i lambda_i dq_i/dtheta|` with the same multipliers and the
            margins' own derivatives, through the perturbations: `stationarity` itself where the
            problem's gradients are these. With frozen perturbations a rest point of adversarial
            training is a KKT point of the adversarial margin only if both residuals are 0.
        complementarity: `L sum_i lambda_i (q_i(u) - gamma)`; 0 if only the smallest margins have a
            multiplier. This and `stationarity` are computed with the coefficients below; where the
            attack has a kink the margins depend on these too, and gamma is `held_margin`. Other
            coefficients might give smaller residuals, but not where the gradients are affine in
            them, as with one hidden layer.
        dual_infeasibility: the most negative multiplier, as a positive number.
        multipliers: lambda, in the shape of the margins, by non-negative least squares on
            stationarity and complementarity together.
        coefficients: `sin phi` of every switch (`gflow.kkt.switches`), with which the gradients
            above are taken: its sign off the kink, and at it the number in [-1, 1] that makes the
            two residuals smallest. A ReLU has the slope `(1 + sin phi)/2`, a sign is `sin phi`.
            Shape (n, s); None where the problem has no kinks with names, or there is no KKT system.
        flow_stationarity: the same residual with the flow's own multipliers, `min_c |u - c h|`,
            `h = sum_i p_i grad q_i(u)`, p the weights of the loss at the point's norm.
        kkt_epsilon, kkt_delta: the (epsilon, delta)-KKT condition that the point satisfies, with
            `lambda_i = gamma^(1-2/L) p_i / |h|` at `theta = params / q_min^(1/L)`; for the
            exponential loss these are Lyu & Li 2020, Lemma C.8.
        cosine: `beta = cos(u, h)`.
        num_support: margins with a positive multiplier (above 1e-8 of the largest).
        kinks: examples, of those examined, whose margin has a kink at the point: a switch of a
            living neuron within 1e-9 of it, relative; or a kink without a name, which is found
            because gradients at random points on either side differ. For such a kink the least
            squares use the gradients on these sides, which are some members of the Clarke
            subdifferential.
        euler_error: deviation from Euler's identity `<grad q_i, u> = L q_i`, relative.
        scale_invariance_error: change of the perturbations under `params -> c params`, relative.
            At kinks it may be large without meaning, since rounding decides on which side each
            perturbation is taken.
        examined: multipliers were sought for so many of the smallest margins. If these are not all,
            the residuals are upper bounds.
    """

    separated: bool
    normalized_margin: float
    held_margin: float
    smoothed_margin: float
    clean_margin: float
    strong_margin: float
    stationarity: float
    total_stationarity: float
    complementarity: float
    dual_infeasibility: float
    multipliers: np.ndarray
    coefficients: np.ndarray | None
    flow_stationarity: float
    kkt_epsilon: float
    kkt_delta: float
    cosine: float
    num_support: int
    kinks: np.ndarray
    euler_error: float
    scale_invariance_error: float
    examined: int

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; None for numbers that are not finite."""
        return plain(asdict(self))

    def __repr__(self) -> str:
        state = "separated" if self.separated else "not separated"
        return (
            f"Certificate({state}, normalized_margin={self.normalized_margin:.6g}, "
            f"strong_margin={self.strong_margin:.6g}, stationarity={self.stationarity:.2g}, "
            f"complementarity={self.complementarity:.2g}, num_support={self.num_support}, "
            f"at a kink {len(self.kinks)})"
        )

    def __str__(self) -> str:
        state = "separated" if self.separated else "NOT separated: no KKT system"
        held = f"  with its kinks held  {self.held_margin:+.6e}\n" if len(self.kinks) else ""
        differs = self.total_stationarity != self.stationarity and self.separated
        total = f"  of the total gradient {self.total_stationarity:.3e}\n" if differs else ""
        return (
            f"Certificate ({state})\n"
            f"  normalized margin    {self.normalized_margin:+.6e}   smoothed "
            f"{self.smoothed_margin:+.6e}\n"
            f"{held}"
            f"  clean / strong       {self.clean_margin:+.6e} / {self.strong_margin:+.6e}\n"
            f"  stationarity         {self.stationarity:.3e}   with the flow's multipliers "
            f"{self.flow_stationarity:.3e}\n"
            f"{total}"
            f"  complementarity      {self.complementarity:.3e}   support {self.num_support}, "
            f"at a kink {len(self.kinks)}\n"
            f"  (epsilon, delta)-KKT ({self.kkt_epsilon:.3e}, {self.kkt_delta:.3e})\n"
            f"  Euler / scale error  {self.euler_error:.1e} / {self.scale_invariance_error:.1e}"
        )


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
    """The same, with margins and gradients from the program of `Problem.ascent`, which a search has
    compiled already.
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
    if named is problem or not len(found.unnamed):
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
