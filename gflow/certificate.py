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
from scipy.optimize import lsq_linear, nnls

from gflow._description import plain
from gflow._layout import Layout
from gflow._numerics import unit
from gflow._typing import Params
from gflow.attack import strong_margins
from gflow.measures import (
    MAX_LOG_KAPPA,
    PointMeasures,
    euler_error,
    measure_ascent,
    scale_invariance_error,
)
from gflow.problem import Problem
from gflow.validation import check_start

# Memory for the gradients of single margins, and the most margins they are taken of.
_GRADIENT_BYTES = 2**28
_MOST_MARGINS = 512
# How far to either side a kink is looked for, and the jump of the gradient that betrays one.
_PROBE = 1e-7
_NUM_PROBES = 2
_JUMP = 1e-3


@dataclass(frozen=True, eq=False)
class Certificate:
    """What can be said of a point with certainty.

    All of it belongs to the point's direction but `smoothed_margin` and what is computed with the
    flow's own multipliers: `flow_stationarity`, `kkt_epsilon`, `kkt_delta` and `cosine`.
    Where the examples are not separated (`separated` is False) there is no KKT system, and the
    quantities that belong to it are NaN.

    Attributes:
        separated: whether every adversarial margin is positive.
        normalized_margin: gamma = min_i q_i(u).
        smoothed_margin: `l^{-1}(Loss) / kappa` at the point's own norm.
        clean_margin: min_i y_i f(x_i; u), without perturbation.
        strong_margin: the smallest margin that stronger attacks with the same radius find
            (projected gradient descent, 40 steps, from 0 and three random points; nothing but the
            training attack for orders other than 1, 2 and inf). Never above the two margins before;
            far below `normalized_margin`, the training attack is weak or masked.
        stationarity: `|u - sum_i lambda_i grad q_i(u)|` with the multipliers below; the norm of u
            is 1, so this is relative.
        complementarity: `L sum_i lambda_i (q_i(u) - gamma)`; 0 if only the smallest margins push.
        dual_infeasibility: the most negative multiplier, as a positive number.
        multipliers: lambda, in the shape of the margins, by non-negative least squares on
            stationarity and complementarity together.
        flow_stationarity: the same residual with the flow's own multipliers, `min_c |u - c h|`,
            `h = sum_i p_i grad q_i(u)`, p the weights of the loss at the point's norm.
        kkt_epsilon, kkt_delta: the (epsilon, delta)-KKT condition that the point satisfies, with
            `lambda_i = gamma^(1-2/L) p_i / |h|` at `theta = params / q_min^(1/L)`; for the
            exponential loss these are Lyu & Li 2020, Lemma C.8.
        cosine: `beta = cos(u, h)`.
        num_support: margins with a positive multiplier (above 1e-8 of the largest).
        kinks: examples, of those examined, whose margin has a kink at the point. For these the
            columns of the least squares hold gradients from several sides, members of the Clarke
            subdifferential there: all of them for one kink, some of them where many meet, so that
            the residual is never smaller than the true one.
        euler_error: deviation from Euler's identity `<grad q_i, u> = L q_i`, relative.
        scale_invariance_error: change of the perturbations under `params -> c params`, relative.
        examined: how many of the smallest margins the multipliers were sought among; with fewer
            than all, the residual is an upper bound.
    """

    separated: bool
    normalized_margin: float
    smoothed_margin: float
    clean_margin: float
    strong_margin: float
    stationarity: float
    complementarity: float
    dual_infeasibility: float
    multipliers: np.ndarray
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

    def __str__(self) -> str:
        state = "separated" if self.separated else "NOT separated: no KKT system"
        return (
            f"Certificate ({state})\n"
            f"  normalized margin    {self.normalized_margin:+.6e}   smoothed "
            f"{self.smoothed_margin:+.6e}\n"
            f"  clean / strong       {self.clean_margin:+.6e} / {self.strong_margin:+.6e}\n"
            f"  stationarity         {self.stationarity:.3e}   with the flow's multipliers "
            f"{self.flow_stationarity:.3e}\n"
            f"  complementarity      {self.complementarity:.3e}   support {self.num_support}, "
            f"at a kink {len(self.kinks)}\n"
            f"  (epsilon, delta)-KKT ({self.kkt_epsilon:.3e}, {self.kkt_delta:.3e})\n"
            f"  Euler / scale error  {self.euler_error:.1e} / {self.scale_invariance_error:.1e}"
        )


def certify(problem: Problem, params: Params) -> Certificate:
    """Certifies a point: margins, KKT residuals, multipliers, kinks, homogeneity.

    Gradients of the margins are those of the problem's gradient mode; with "frozen" perturbations
    the KKT system is that of the flow, in which delta is held fixed while differentiating.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`.

    Source: Lyu & Li 2020, Definition of (epsilon, delta)-KKT points and Lemma C.8; Lyu & Zhu 2022.
    """
    params = check_start(problem, params)
    point = _examine(problem, params)
    margins = np.asarray(point.margins)
    gamma = float(np.min(margins))
    common = {
        "normalized_margin": gamma,
        "smoothed_margin": float(point.measures.smoothed_margin),
        "clean_margin": float(point.measures.clean_margin),
        "strong_margin": float(np.min(strong_margins(problem, point.direction))),
        "euler_error": float(point.euler_error),
        "scale_invariance_error": float(point.scale_invariance_error),
    }
    if not gamma > 0:
        return Certificate(separated=False, **common, **_no_kkt(margins.shape))
    return Certificate(separated=True, **common, **_kkt(problem, point, margins))


class _Point(eqx.Module):
    """A point in the terms of its direction."""

    direction: Params
    measures: PointMeasures
    margins: Float[Array, "n ..."]
    weights: Float[Array, "n ..."]
    ascent: Params
    euler_error: Array
    scale_invariance_error: Array


@eqx.filter_jit
def _examine(problem: Problem, params: Params) -> _Point:
    direction, length = unit(params)
    # Weights and smoothed margin no longer change up there.
    log_kappa = jnp.minimum(problem.degree * jnp.log(length), MAX_LOG_KAPPA)
    ascent = problem.ascent(direction, log_kappa)
    return _Point(
        direction,
        measure_ascent(problem, direction, log_kappa, ascent),
        ascent.margins,
        ascent.weights,
        ascent.vector,
        euler_error(problem, direction),
        scale_invariance_error(problem, direction),
    )


def _no_kkt(shape: tuple[int, ...]) -> dict[str, Any]:
    names = ("stationarity", "complementarity", "dual_infeasibility", "flow_stationarity")
    names += ("kkt_epsilon", "kkt_delta", "cosine")
    nothing = {"multipliers": np.full(shape, np.nan), "kinks": np.zeros(0, int)}
    return dict.fromkeys(names, math.nan) | nothing | {"num_support": 0, "examined": 0}


def _kkt(problem: Problem, point: _Point, margins: np.ndarray) -> dict[str, Any]:
    layout = Layout.of(point.direction)
    direction = np.asarray(layout.flatten(point.direction))
    columns = _Columns(problem, point.direction, layout, margins)
    solution = _multipliers(columns, direction, margins, problem.degree)
    return {**solution, **_flow_kkt(problem.degree, point, direction, layout, margins)}


def _flow_kkt(
    degree: float, point: _Point, direction: np.ndarray, layout: Layout, margins: np.ndarray
) -> dict[str, float]:
    """The residuals with the flow's own multipliers."""
    ascent = np.asarray(layout.flatten(point.ascent))
    length = np.linalg.norm(ascent)
    gamma = margins.min()
    multipliers = gamma ** (1 - 2 / degree) * np.asarray(point.weights) / length
    return {
        "flow_stationarity": float(point.measures.stationarity),
        # |u - h/|h|| = sqrt(2 (1 - beta)) without its cancellation
        "kkt_epsilon": float(gamma ** (-1 / degree) * np.linalg.norm(direction - ascent / length)),
        "kkt_delta": float(np.max(multipliers * (margins / gamma - 1))),
        "cosine": float(direction @ ascent / length),
    }


class _Columns:
    """Gradients of the smallest margins at u, both sides of those that have a kink.

    Attributes:
        matrix: (columns, P).
        owner: (columns,) the flat index of the margin that each column belongs to.
        kinks: examples with a kink.
        examined: number of margins.
    """

    def __init__(self, problem: Problem, direction: Params, layout: Layout, margins: np.ndarray):
        per_example = margins.size // len(margins)
        most = min(_MOST_MARGINS, _GRADIENT_BYTES // (8 * layout.size)) // per_example
        smallest = margins.reshape(len(margins), -1).min(axis=1)
        examples = np.sort(np.argsort(smallest, kind="stable")[: max(most, 1)])
        owners = (examples[:, None] * per_example + np.arange(per_example)).ravel()
        centre = _gradients(problem, direction, layout, examples)
        sides = [_gradients(problem, probe, layout, examples) for probe in _probes(direction)]
        self.examined = len(owners)
        kinked = _jumps(centre, sides)
        self.kinks = np.unique(owners[kinked] // per_example)
        self.matrix = np.concatenate([centre[~kinked], *[side[kinked] for side in sides]])
        self.owner = np.concatenate([owners[~kinked], *[owners[kinked] for _ in sides]])


def _gradients(
    problem: Problem, direction: Params, layout: Layout, examples: np.ndarray
) -> np.ndarray:
    """Shapes: (margins, P)."""
    gradients = problem.margin_gradients(direction, jnp.asarray(examples))
    count = examples.size * (1 if problem.dataset.binary else problem.dataset.num_outputs - 1)
    leaves = [np.asarray(leaf).reshape(count, -1) for leaf in jax.tree.leaves(gradients)]
    return np.concatenate(leaves, axis=1)


def _probes(direction: Params) -> list[Params]:
    """Points a little to either side of the direction, along fixed random lines."""
    generator = np.random.default_rng(0)
    probes = []
    for _ in range(_NUM_PROBES):
        offset = jax.tree.map(lambda leaf: generator.normal(size=leaf.shape), direction)
        length = math.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(offset)))
        for sign in (_PROBE, -_PROBE):
            probes.append(
                jax.tree.map(lambda u, o, s=sign / length: np.asarray(u) + s * o, direction, offset)
            )
    return probes


def _jumps(centre: np.ndarray, sides: list[np.ndarray]) -> np.ndarray:
    """Which gradients differ between the probes by far more than smoothness allows."""
    size = np.linalg.norm(centre, axis=1) + 1e-300
    return np.any([np.linalg.norm(s - centre, axis=1) > _JUMP * size for s in sides], axis=0)


def _multipliers(
    columns: _Columns, direction: np.ndarray, margins: np.ndarray, degree: float
) -> dict[str, Any]:
    """Non-negative least squares on stationarity and complementarity together."""
    flat = margins.ravel()
    gamma = flat.min()
    slack = degree * (flat[columns.owner] - gamma)
    # The part of the system across the columns' span cannot be changed: solve within the span.
    basis, triangle = np.linalg.qr(columns.matrix.T)
    system = np.concatenate([triangle, np.diag(slack)])
    right = np.concatenate([basis.T @ direction, np.zeros(len(slack))])
    weights = _nonnegative_least_squares(system, right)
    residual = direction - columns.matrix.T @ weights
    multipliers = np.zeros(flat.size)
    np.add.at(multipliers, columns.owner, weights)
    return {
        "stationarity": float(np.linalg.norm(residual)),
        "complementarity": float(slack @ weights),
        "dual_infeasibility": float(max(0.0, -weights.min())),
        "multipliers": multipliers.reshape(margins.shape),
        "num_support": int(np.sum(multipliers > 1e-8 * multipliers.max())),
        "kinks": columns.kinks,
        "examined": columns.examined,
    }


def _nonnegative_least_squares(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    try:
        return nnls(system, right, maxiter=30 * system.shape[1])[0]
    except (RuntimeError, ValueError, np.linalg.LinAlgError):
        # It may cycle where columns nearly repeat; interior points do not, at some loss of digits.
        return np.maximum(lsq_linear(system, right, bounds=(0, np.inf)).x, 0.0)
