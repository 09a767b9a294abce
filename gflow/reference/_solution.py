"""The answer of `max_margin`: what it holds, and how well it is proved."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from gflow._numerics import dual_order
from gflow.reference._norms import Array, lp_norm


class Point(NamedTuple):
    """A candidate solution, in any scale.

    Shapes: weights (d,); slope (d,), a subgradient of the dual norm there; multipliers (n,).
    """

    weights: Array
    slope: Array
    multipliers: Array


@dataclass(frozen=True, eq=False)
class MaxMargin:
    """The direction that an l_p attack of a given radius leaves with the largest margin.

    With `z_i = y_i x_i`, 1/p + 1/q = 1 and `w = direction / margin` (`weights`), the solution of

        min 1/2 |w|_2^2   subject to   <w, z_i> - radius |w|_q >= 1 for every i,

    `multipliers` and `subgradient` s, a subgradient of `|.|_q` at w, satisfy the KKT conditions

        w = sum_i lambda_i (z_i - radius s),   lambda_i >= 0,   |s|_p <= 1,   <s, w> = |w|_q,
        lambda_i (<w, z_i> - radius |w|_q - 1) = 0,

    whence `sum_i lambda_i = |w|_2^2 = 1 / margin^2`. The direction is unique. The multipliers need
    not be; where they are not, these are the shortest ones for the given subgradient.

    At an infeasible radius every number but `radius`, `order` and `largest_feasible_radius` is NaN
    and `message` says why.

    For classes 0 .. k-1 the weights W have a row for each class, and the constraints are

        <W_y - W_j, x_i> - radius |W_y - W_j|_q >= 1 for every i and every class j other than y_i.

    Attributes:
        direction: of Euclidean norm 1. Shape (d,); for classes (k, d), of Frobenius norm 1.
        margin: the margin under attack, `min_i <direction, z_i> - radius |direction|_q`.
        multipliers: the lambda above. Shape (n,); for classes (n, k-1), against the classes y+1,
            .., y+k-1 (mod k).
        subgradient: the s above. Shape (d,); for classes (k (k-1)/2, d), at `W_a - W_b` of every
            pair of classes a < b.
        duality_gap: `(upper - margin) / upper`, where `upper = |sum_i a_i z_i - radius s|_2`,
            `a_i = lambda_i / sum lambda`, is a bound that no direction's margin exceeds, whatever a
            and s are. It proves `|direction - true direction| <= sqrt(2 duality_gap)`; the true
            error is far smaller.
        stationarity: `|w - sum_i lambda_i (z_i - radius s)|_2 / |w|_2`.
        support: the indices of the multipliers that are not 0. Shape (number of them,); for classes
            (that number, 2).
        radius, order: of the attack.
        largest_feasible_radius: see the function of that name. For classes it takes several cone
            programs, and is found where `radius` is infeasible only; elsewhere it is NaN.
        feasible: whether there is a direction with a positive margin.
        message: what was found, in words.
    """

    direction: Array
    margin: float
    multipliers: Array
    subgradient: Array
    duality_gap: float
    stationarity: float
    support: Array
    radius: float
    order: float
    largest_feasible_radius: float
    feasible: bool
    message: str

    def __repr__(self) -> str:
        attack = f"radius={self.radius:g}, order={self.order:g}"
        if not self.feasible:
            largest = f"largest_feasible_radius={self.largest_feasible_radius:.6g}"
            return f"MaxMargin(infeasible, {attack}, {largest})"
        return (
            f"MaxMargin(margin={self.margin:.6g}, {attack}, support {len(self.support)} of "
            f"{self.multipliers.size}, duality_gap={self.duality_gap:.2g})"
        )

    @property
    def weights(self) -> Array:
        """The minimiser w of the problem above, `direction / margin`. Shapes: (d,)."""
        return self.direction / self.margin


def certified(
    signed: Array, radius: float, order: float, largest: float, point: Point
) -> MaxMargin:
    """`point` in the normalisation of `MaxMargin`, judged by its own margin and dual bound.

    Everything is summed in extended precision where the machine has it, so that what is judged is
    the point and not the judge's rounding.
    """
    if not (np.isfinite(point.weights).all() and point.weights.any() and point.multipliers.any()):
        return unsolved(signed, radius, order, largest)
    exact = signed.astype(np.longdouble)
    direction = _unit(point.weights)
    slope = point.slope / max(1.0, float(lp_norm(point.slope, order)))
    margin = (exact @ direction).min() - radius * lp_norm(direction, dual_order(order))
    rows = exact - radius * slope.astype(np.longdouble)
    answer = certified_margin(
        rows, point.weights, float(margin), point.multipliers, (radius, order, largest)
    )
    if answer is None:
        return unsolved(signed, radius, order, largest)
    return replace(answer, subgradient=slope)


def certified_margin(
    rows: Array,
    weights: Array,
    margin: float,
    multipliers: Array,
    attack: tuple[float, float, float],
) -> MaxMargin | None:
    """A direction of known margin, judged by the bound that its multipliers prove.

    The answer's `subgradient` is left to the caller. None where there is no positive margin.

    Args:
        rows: the gradients of the margins at the weights, in extended precision. Shape (m, d).
        weights: in any scale. Shape (d,).
        margin: the smallest margin of the direction, `weights / |weights|`.
        multipliers: in any scale. Shape (m,).
        attack: radius, order, and largest feasible radius.
    """
    radius, order, largest = attack
    direction = _unit(weights)
    shares = np.maximum(multipliers, 0.0).astype(np.longdouble)
    if not (0 < margin < np.inf and shares.any()):
        return None
    shares = shares / shares.sum()
    # The point of the attacked data's convex hull that should be nearest to 0: margin * direction.
    nearest = shares @ rows
    upper = _length(nearest)
    gap = max(0.0, float((upper - margin) / upper))
    message = _SOLVED if gap <= _ACCEPTABLE_GAP else _INACCURATE
    short = (largest - radius) / largest
    distance = "" if np.isnan(largest) else _DISTANCE.format(largest=largest, short=short)
    return MaxMargin(
        direction=direction.astype(np.float64),
        margin=margin,
        multipliers=(shares / margin**2).astype(np.float64),
        subgradient=np.zeros_like(weights),
        duality_gap=gap,
        stationarity=float(_length(direction - nearest / margin)),
        support=np.flatnonzero(shares > 0),
        radius=radius,
        order=order,
        largest_feasible_radius=largest,
        feasible=True,
        message=message.format(margin=margin, gap=gap, error=np.sqrt(2 * gap), distance=distance),
    )


def unsolved(
    signed: Array,
    radius: float,
    order: float,
    largest: float,
    *,
    feasible: bool = True,
    message: str | None = None,
) -> MaxMargin:
    """An outcome without a solution: nothing in it looks like a number."""
    num_examples, dim = signed.shape
    return MaxMargin(
        direction=np.full(dim, np.nan),
        margin=np.nan,
        multipliers=np.full(num_examples, np.nan),
        subgradient=np.full(dim, np.nan),
        duality_gap=np.nan,
        stationarity=np.nan,
        support=np.zeros(0, dtype=np.intp),
        radius=radius,
        order=order,
        largest_feasible_radius=largest,
        feasible=feasible,
        message=message or _FAILED,
    )


def infeasible(
    signed: Array,
    radius: float,
    order: float,
    largest: float,
    separator: str = "hyperplane through the origin",
) -> MaxMargin:
    """The outcome at a radius that no linear classifier withstands; `largest` is NaN if unknown."""
    template = _UNDECIDED if np.isnan(largest) else _TOO_LARGE if largest else _NOT_SEPARABLE
    beyond = (radius - largest) / largest if largest > 0 else math.nan
    message = template.format(
        radius=radius, order=order, largest=largest, beyond=beyond, separator=separator
    )
    return unsolved(signed, radius, order, largest, feasible=False, message=message)


def at_edge(signed: Array, radius: float, order: float, largest: float) -> MaxMargin:
    """The outcome at a radius that equals the largest feasible one, as far as can be told."""
    message = _AT_EDGE.format(radius=radius, order=order, largest=largest)
    return unsolved(signed, radius, order, largest, feasible=False, message=message)


def _unit(vector: Array) -> Array:
    exact = vector.astype(np.longdouble)
    exact = exact / np.abs(exact).max()
    return exact / _length(exact)


def _length(vector: Array) -> np.floating:
    return np.sqrt(np.sum(vector * vector))


# Below this gap the answer is called solved; the direction is then far better than the proof says.
_ACCEPTABLE_GAP = 1e-6

_SOLVED = "Solved: margin {margin:.6g} under attack, relative duality gap {gap:.1e}."
_INACCURATE = (
    "Not solved to full accuracy: the margin {margin:.6g} under attack is attained, but the "
    "relative duality gap is {gap:.1e} and the direction may be off by {error:.1e}. {distance}"
    "Next to the largest feasible radius rounding decides on the direction: lower the radius. "
    "Further away, inputs that differ by many orders of magnitude are the usual reason: rescale "
    "them."
)
_DISTANCE = "The radius is below the largest feasible one, {largest!r}, by {short:.1e} of it. "
_TOO_LARGE = (
    "Infeasible: at radius {radius:.6g} the l_{order:g} attack can push an example across every "
    "{separator}, so no direction has a positive margin. The largest feasible "
    "radius of this attack on these data is {largest:.6g}, lower by {beyond:.1e} of it; choose "
    "`radius` below it."
)
_AT_EDGE = (
    "At the edge: the radius {radius!r} equals the largest feasible radius of the l_{order:g} "
    "attack on these data, {largest!r}, as far as rounding lets it be told, so the largest margin "
    "is 0 to rounding. Neither a direction with a positive margin nor a proof that there is none "
    "was found; choose `radius` below it."
)
_NOT_SEPARABLE = (
    "Infeasible: the data are not linearly separable by a {separator}, so no "
    "direction has a positive margin even without attack; the largest feasible radius is 0. Append "
    "a constant input if a bias is missing, remove contradicting examples, or use a nonlinear "
    "network."
)
_UNDECIDED = (
    "Undecided: no direction with a positive margin was found, and no proof that there is none. "
    "Examples that nearly contradict each other, or inputs of very different size, are the usual "
    "reasons; rescale the inputs or remove such examples."
)
_FAILED = (
    "Not solved: a positive margin exists (the largest feasible radius is above `radius`), but no "
    "solver reached it. The radius is probably within rounding of the largest feasible one, or the "
    "inputs differ by many orders of magnitude; rescale them or lower the radius."
)
