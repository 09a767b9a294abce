"""The KKT system at kinks, and how to come there: smoothing led to 0 by Newton's method.

Unknown are the point theta, the multipliers lambda and the angles phi of the switches of active
margins (`gflow.switches`). At a smoothing mu they satisfy

    theta = sum_i lambda_i grad q_i(theta, phi),
    lambda_i >= 0,  q_i >= 1,  lambda_i (q_i - 1) = 0,
    v_k cos phi_k = mu w_k sin phi_k.

At the mu of a smoothed problem its KKT points are the solutions, and their multipliers and slopes
the start. Unlike Newton's method on theta alone, which has to cross a slope as steep as 1/mu, that
on all three stays well conditioned for mu -> 0, as primal-dual interior points do. Switches that
have come to rest at +-pi/2 are no kinks and leave; with mu = 0 the last iterations are exact.

Source: Clarke 1983 for the subdifferential; Lyu & Zhu 2022 for the KKT system.
"""

import math
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float
from scipy.linalg import lstsq

from gflow._layout import Layout
from gflow.problem import Problem
from gflow.switches import passes, switched_margins

# Switches with |v| below this many smoothing widths have an angle of their own.
_UNKNOWN, _TURNED = 30.0, 1e-3
# Where the weights are this small, relative, no slope matters and none is defined: dead neurons.
_DEAD = 1e-6
# An example pushes whose multiplier exceeds this many smoothing widths, relative: below, even
# switches that turn as fast as 1/mu do not matter. Inactive margins keep 1e-6 mu / slack.
_SUPPORT, _LEAST_SUPPORT = 0.05, 1e-9
_RANK = 1e-11
_LAST_SMOOTHING = 1e-6
_FIRST_FACTOR, _LAST_FACTOR = 0.6, 0.97
_MOST_ITERATIONS, _MOST_EXACT = 8, 12
_LONGEST = 0.2
# Of the relative error at smoothing 0: where iterating ends, and where rounding may end it before.
_EXACT, _ROUNDED = 1e-13, 1e-10
_SLACK = 1e-9
_BATCH = 256


class Equations(eqx.Module):
    """The system at a point, without the complementarity of the margins, and its derivatives.

    P parameters, m margins, k switches with an angle of their own (padded with empty ones).

    Attributes:
        residual: `theta - sum_i lambda_i grad q_i`.
        margins: q, flattened.
        values, scales: v and w of every switch. Shape (n, s).
        jacobian: of (residual, margins, v of the k switches) by (theta, lambda, phi of them).
    """

    residual: Float[Array, " P"]
    margins: Float[Array, " m"]
    values: Float[Array, "n s"]
    scales: Float[Array, "n s"]
    jacobian: Float[Array, "r r"] | None


@dataclass(frozen=True, eq=False)
class Kinks:
    """A KKT point at kinks.

    Attributes:
        theta: the point, at the norm where its active margins are 1. Shape (P,).
        multipliers: lambda, zero where not active. Shape (m,).
        active: the active margins. Shape (m,).
        coefficients: `sin phi` of every switch: -1 or +1 off its kink. Shape (n, s).
        at_kink: the switches of active margins that stand on their kink. Shape (n, s).
        smoothing: the smoothing that was reached; 0 for an exact point.
        residual: `max(|theta - sum_i lambda_i grad q_i| / |theta|, max_active |q_i - 1|)`.
        converged: exact, with no negative multiplier, no violated margin, and no switch on the
            wrong side.
        num_iterations: systems solved.
        equations: the system there.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    active: np.ndarray
    coefficients: np.ndarray
    at_kink: np.ndarray
    smoothing: float
    residual: float
    converged: bool
    num_iterations: int
    equations: Equations

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)

    @property
    def examples(self) -> np.ndarray:
        """The examples that sit at a kink."""
        return np.flatnonzero(self.at_kink.any(axis=1))


@dataclass(frozen=True, eq=False)
class _Point:
    """An iterate."""

    theta: np.ndarray
    multipliers: np.ndarray
    angles: np.ndarray


def follow(
    problem: Problem,
    layout: Layout,
    theta: np.ndarray,
    multipliers: np.ndarray,
    smoothing: float,
) -> Kinks:
    """The KKT point at kinks to which a KKT point of the smoothed problem leads.

    The smoothing falls by a factor that adapts: it is lowered further while Newton's method takes
    few iterations, and less far where it fails. Where it cannot fall any further, the branch of KKT
    points ends or turns, and the last one is returned, with its smoothing.

    Args:
        problem: with its kinks.
        theta: a KKT point of `smoothed(problem, smoothing)` at unit margin; the weights of dead
            neurons next to nothing, in the direction that decides their slopes. Shape (P,).
        multipliers: its multipliers. Shape (m,).
        smoothing: mu > 0.
    """
    path = _Path(problem, layout, float(multipliers.max()))
    now, factor, count = path.start(theta, multipliers, smoothing), _FIRST_FACTOR, 0
    while smoothing > _LAST_SMOOTHING:
        lower = max(factor * smoothing, 0.5 * _LAST_SMOOTHING)
        found, iterations = path.correct(now, lower)
        count += iterations
        if found is None:
            factor = factor**0.5
            if factor > _LAST_FACTOR:
                return path.result(now, smoothing, count, path.kinks(now))
            continue
        now, smoothing = found, lower
        factor = max(factor**2 if iterations <= _MOST_ITERATIONS // 2 else factor, 1e-2)
    kinks = path.kinks(now)
    exact, iterations = path.correct(now, 0.0, kinks)
    if exact is None:
        return path.result(now, smoothing, count + iterations, kinks)
    return path.result(exact, 0.0, count + iterations, kinks)


def follow_back(problem: Problem, layout: Layout, kinks: Kinks, theta: np.ndarray) -> Kinks:
    """The KKT point with the same kinks near `theta`, a point beside `kinks.theta`."""
    path = _Path(problem, layout, float(kinks.multipliers.max()))
    beside = _Point(theta, kinks.multipliers, np.arcsin(np.clip(kinks.coefficients, -1, 1)))
    found, count = path.correct(beside, 0.0, kinks.at_kink)
    if found is None:
        return path.result(beside, math.nan, count, kinks.at_kink)
    return path.result(found, 0.0, count, kinks.at_kink)


class _Path:
    """Newton's method along a path of smoothings."""

    def __init__(self, problem: Problem, layout: Layout, strength: float):
        self.problem, self.layout, self.strength = problem, layout, strength
        self.per_example = max(problem.dataset.num_outputs - 1, 1)

    def start(self, theta: np.ndarray, multipliers: np.ndarray, smoothing: float) -> _Point:
        """The angles of a smoothed problem, which decide each other pass by pass."""
        shape = len(self.problem.dataset.x), passes(self.problem).size
        angles, change = np.zeros(shape), math.inf
        while change > 1e-12:
            at = self.at(_Point(theta, multipliers, angles), smoothing)
            turned = np.arctan2(at.values, smoothing * np.asarray(at.scales))
            angles, change = turned, np.abs(turned - angles).max(initial=0.0)
        return _Point(theta, np.where(multipliers > 0, multipliers, 0.0), angles)

    def at(self, point: _Point, smoothing: float, index: np.ndarray | None = None) -> Equations:
        """The equations; with the indices of switches, their Jacobian too."""
        found = _equations(
            self.problem,
            self.layout,
            (point.theta, point.multipliers, point.angles),
            np.float64(smoothing),
            index,
        )
        return jax.tree.map(np.asarray, found)

    def support(self, multipliers: np.ndarray, smoothing: float) -> np.ndarray:
        """Which examples push. Shape (n,)."""
        share = max(_SUPPORT * smoothing, _LEAST_SUPPORT)
        pushes = multipliers > share * multipliers.max()
        return pushes.reshape(-1, self.per_example).any(axis=1)

    def alive(self, at: Equations) -> np.ndarray:
        """Switches whose scale is not next to nothing. Shape (n, s)."""
        scales = np.asarray(at.scales)
        return scales > _DEAD * scales.max(initial=0.0)

    def kinks(self, point: _Point) -> np.ndarray:
        """Switches that stand between their two sides."""
        at = self.at(point, _LAST_SMOOTHING)
        turned = np.abs(np.sin(point.angles)) < 1 - 1e-7
        pushes = self.support(point.multipliers, _LAST_SMOOTHING)
        return turned & self.alive(at) & pushes[:, None]

    def correct(
        self, point: _Point, smoothing: float, kinks: np.ndarray | None = None
    ) -> tuple[_Point | None, int]:
        """Newton's method at one smoothing: its solution or None, and the iterations."""
        most = _MOST_EXACT if kinks is not None else _MOST_ITERATIONS
        goal = 1e-2 * smoothing + 1e-10 if kinks is None else _EXACT
        iteration, last = 0, math.inf
        while True:
            at = self.at(point, smoothing)
            unknown = self.unknown(point, at, smoothing) if kinks is None else kinks
            point = self.turned(point, at, smoothing, unknown)
            system = _System(self, point, smoothing, unknown)
            # Next to the largest feasible radius theta is long, and rounding is all that is left.
            stalled = kinks is not None and 0.5 * last <= system.error <= _ROUNDED
            if system.error <= goal or stalled:
                return point, iteration
            last = system.error
            usable = iteration < most and np.isfinite(system.error)
            moved = system.step() if usable else None
            if moved is None:
                return None, iteration
            point, iteration = moved, iteration + 1

    def unknown(self, point: _Point, at: Equations, smoothing: float) -> np.ndarray:
        """The switches whose angles are unknown: those of active margins, near their kink."""
        near = np.abs(at.values) < _UNKNOWN * smoothing * np.asarray(at.scales)
        near |= np.abs(np.sin(point.angles)) < 1 - _TURNED
        return near & self.alive(at) & self.support(point.multipliers, smoothing)[:, None]

    def turned(self, point: _Point, at: Equations, smoothing: float, unknown: np.ndarray) -> _Point:
        """The point with all other switches where their values put them."""
        free = self.alive(at) & ~unknown
        settled = np.arctan2(at.values, smoothing * np.asarray(at.scales))
        return _Point(point.theta, point.multipliers, np.where(free, settled, point.angles))

    def result(self, point: _Point, smoothing: float, count: int, kinks: np.ndarray) -> Kinks:
        """The point as it is returned."""
        theta = _snapped(point.theta)
        support = point.multipliers > _SLACK * point.multipliers.max()
        multipliers = np.where(support, point.multipliers, 0.0)
        last = _Point(theta, multipliers, point.angles)
        at = self.at(last, smoothing, _padded(np.flatnonzero(kinks)))
        residual = max(
            np.linalg.norm(at.residual) / np.linalg.norm(theta),
            np.abs(at.margins[support] - 1).max(initial=0.0),
        )
        if smoothing == 0:  # at the others it is cos phi that is 0: they have turned
            kinks = kinks & (np.abs(at.values) < _SLACK * np.asarray(at.scales))
            at = self.at(last, smoothing, _padded(np.flatnonzero(kinks)))
        examples = self.support(multipliers, smoothing)[:, None]
        wrong = np.sin(point.angles) * at.values < -_SLACK * np.asarray(at.scales)
        wrong &= examples & ~kinks & self.alive(at)
        beyond = np.abs(point.angles[kinks]) > np.pi / 2 - 1e-9
        right = not wrong.any() and not beyond.any() and at.margins.min() > 1 - _SLACK
        return Kinks(
            theta=theta,
            multipliers=multipliers,
            active=support,
            coefficients=np.sin(point.angles),
            at_kink=kinks,
            smoothing=smoothing,
            residual=float(residual),
            converged=bool(smoothing == 0 and right and residual < 1e-9),
            num_iterations=count,
            equations=at,
        )


class _System:
    """The equations at an iterate, complementarity included.

    The margins' complementarity is the Fischer-Burmeister equation
    `lambda + g = sqrt(lambda^2 + g^2 + 2 nu)`, `g = s (q - 1)`, s the size of the multipliers.
    """

    def __init__(self, path: _Path, point: _Point, smoothing: float, unknown: np.ndarray):
        self.point, self.index = point, np.flatnonzero(unknown)
        self.at = path.at(point, smoothing, _padded(self.index))
        values = self.at.values.ravel()[self.index]
        widths = smoothing * self.at.scales.ravel()[self.index]
        self.sizes = self.at.scales.ravel()[self.index]
        phi = point.angles.ravel()[self.index]
        self.turn = values * np.sin(phi) + widths * np.cos(phi), np.cos(phi)
        slack, lam = path.strength * (self.at.margins - 1), point.multipliers
        root = np.sqrt(lam**2 + slack**2 + 2e-6 * smoothing * path.strength**2) + 1e-300
        self.by_multiplier, self.by_margin = 1 - lam / root, path.strength * (1 - slack / root)
        turning = (values * np.cos(phi) - widths * np.sin(phi)) / self.sizes
        parts = self.at.residual, lam + slack - root, turning
        self.right = -np.concatenate(parts)
        units = np.linalg.norm(point.theta), path.strength, 1.0
        lengths = [np.linalg.norm(part) / unit for part, unit in zip(parts, units, strict=True)]
        self.error = float(np.linalg.norm(lengths))

    def matrix(self) -> np.ndarray:
        """The Jacobian of the equations by (theta, lambda, phi)."""
        size, count = len(self.at.residual), len(self.at.margins)
        used = size + count + len(self.index)
        assert self.at.jacobian is not None
        matrix = np.array(self.at.jacobian[:used, :used])
        matrix[size : size + count] *= self.by_margin[:, None]
        rows = np.arange(size, size + count)
        matrix[rows, rows] += self.by_multiplier
        matrix[size + count :] *= (self.turn[1] / self.sizes)[:, None]
        rows = np.arange(size + count, used)
        matrix[rows, rows] -= self.turn[0] / self.sizes
        return matrix

    def step(self) -> _Point | None:
        """The next iterate: of minimum norm, angles kept within their range; None if too long."""
        solution: Any = lstsq(
            self.matrix(), self.right, cond=_RANK, lapack_driver="gelsy", check_finite=False
        )
        size, count = len(self.at.residual), len(self.at.margins)
        theta, multipliers, turns = np.split(solution[0], [size, size + count])
        point = self.point
        if np.linalg.norm(theta) > _LONGEST * np.linalg.norm(point.theta):
            return None
        angles = point.angles.ravel().copy()
        phi = angles[self.index]
        lowest, highest = phi - 0.9 * (np.pi / 2 + phi), phi + 0.9 * (np.pi / 2 - phi)
        angles[self.index] = np.clip(phi + turns, lowest, highest)
        return _Point(
            point.theta + theta,
            point.multipliers + multipliers,
            angles.reshape(point.angles.shape),
        )


def _padded(index: np.ndarray) -> np.ndarray:
    """Indices filled up to the next power of 2, so that few programs are compiled."""
    length = max(32, 1 << int(np.ceil(np.log2(max(len(index), 1)))))
    return np.concatenate([index, np.full(length - len(index), -1)])


def _snapped(theta: np.ndarray) -> np.ndarray:
    """The point with the rounding of its zeros removed."""
    return np.where(np.abs(theta) < 1e-14 * np.abs(theta).max(), 0.0, theta)


@eqx.filter_jit
def _equations(
    problem: Problem, layout: Layout, point: Any, smoothing: Any, index: Any
) -> Equations:
    theta, multipliers, angles = map(jnp.asarray, point)
    size, count = theta.size, multipliers.size

    def evaluated(theta: Array, multipliers: Array, angles: Array) -> tuple[Array, Array, Any]:
        params = layout.unflatten(theta)

        def margins(free: Array) -> Any:
            moved = layout.unflatten(free)
            attacker = params if problem.gradient_mode == "frozen" else moved
            return switched_margins(problem, attacker, moved, angles, smoothing)

        values, pull_back, decided = jax.vjp(margins, theta, has_aux=True)
        (pull,) = pull_back(multipliers.reshape(values.shape))
        return theta - pull, values.ravel(), decided

    residual, margins, decided = evaluated(theta, multipliers, angles)
    if index is None:
        return Equations(residual, margins, *decided, jacobian=None)
    flat = angles.ravel()

    def system(unknown: Array) -> Array:
        theta, multipliers, phi = jnp.split(unknown, [size, size + count])
        turned = flat.at[index].set(phi, mode="drop", wrap_negative_indices=False)
        found = evaluated(theta, multipliers, turned.reshape(angles.shape))
        values = found[2].values.ravel().at[index]
        chosen = values.get(mode="fill", fill_value=0.0, wrap_negative_indices=False)
        return jnp.concatenate([found[0], found[1], chosen])

    phi = flat.at[index].get(mode="fill", fill_value=0.0, wrap_negative_indices=False)
    unknown = jnp.concatenate([theta, multipliers, phi])
    _, product = jax.linearize(system, unknown)
    columns = lax.map(product, jnp.eye(unknown.size), batch_size=min(_BATCH, unknown.size))
    return Equations(residual, margins, *decided, jacobian=columns.T)
