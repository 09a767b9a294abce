"""From the capped flow to a KKT point: the temperature led to 0 by Newton's method.

Where the flow with capped temperature rests, at the norm where its heaviest margin is 1,

    theta = sum_i lambda_i grad q_i(theta),    q_i - 1 + log(lambda_i / max_j lambda_j) / s = 0,

s = kappa_c gamma its *sharpness*: the multipliers are its weights. For s -> infinity a margin is 1,
or its multiplier is 0: a KKT point, whose active margins nobody had to name. With the multipliers
as unknowns of their own the system stays well conditioned on the way, as interior points with an
entropic barrier do, while Newton's method on active margins alone needs the right ones to begin
with; with hundreds of examples the weights at a moderate temperature do not tell them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.linalg import lu_factor, lu_solve
from scipy.sparse.linalg import LinearOperator, gmres

from gflow._layout import Layout
from gflow._least_norm import nearly_solved
from gflow.kkt import residual, residual_at, slopes_and_gradients, system
from gflow.problem import Problem

_SHARPEST = 1e14
_FIRST_FACTOR, _LARGEST_FACTOR, _LEAST_FACTOR = 2.0, 1e3, 1.05
# Iterations at one temperature; so few that the next may be much lower; and in all.
_MOST_ITERATIONS, _FEW, _MOST_SYSTEMS = 60, 4, 200
# How far a step may move the point, relative to its norm; by which factor the error may rise, or
# up to which in any case.
_LONGEST, _RISE, _LEAST_RISEN = 0.1, 3.0, 1e-2
# Time steps: all but infinite at first, as for Newton's method, with a shift of the Hessian that is
# the only hold along a family of KKT points; where that leads astray, from the second one on; and
# those of steps that correct.
_LONGEST_TIME, _ASTRAY, _CORRECTING, _SHORTEST_TIME = 1e9, 3e3, 30.0, 1e-3
# Factors: after a failure; the least after a success, after a correction, and the largest.
_SHRINK, _GROW = 0.2, (1.5, 4.0, 10.0)
# Errors at rest: at most, and times the temperature from this sharpness on.
_LOOSE, _TIGHT, _COLD = 1e-3, 1e-2, 1e3
# What rounding leaves; and where iterating ends once rounding is all that is left.
_ROUNDING, _ROUNDED = 5e-13, 1e-10
# How far a multiplier may fall in an iteration: to exp(-30) of what it was.
_LEAST_CHANGE = -30.0
_TINY = 1e-300
# How far a margin that was not active may have sunk below the others.
_VIOLATED = 1e-9
# The most parameters for which the matrix is formed; and beyond, the products at most with it, the
# relative tolerance, and what may be left over of a system all the same.
_DENSE_AT_MOST, _PRODUCTS, _LINEAR, _UNSOLVED = 1000, 200, 1e-3, 0.1
# Rows of margins with less than this weight are left out of the preconditioner.
_PUSHING = 0.1


class Cooled(NamedTuple):
    """Where the temperature ended.

    Attributes:
        theta: the point. Shape (P,).
        multipliers: lambda. Shape (m,).
        sharpness: s; large where the path could be followed.
        num_iterations: systems solved.
    """

    theta: np.ndarray
    multipliers: np.ndarray
    sharpness: float
    num_iterations: int

    @property
    def direction(self) -> np.ndarray:
        """`theta / |theta|`. Shape (P,)."""
        return self.theta / np.linalg.norm(self.theta)

    @property
    def converged(self) -> bool:
        """Whether the last temperature was reached."""
        return self.sharpness >= _SHARPEST


def cool(
    problem: Problem, layout: Layout, direction: np.ndarray, weights: np.ndarray, log_kappa: float
) -> Cooled:
    """The KKT point, but for an error of about 1e-11, to which the capped flow's rest point leads.

    Args:
        direction: u, where the capped flow is nearly at rest; its margins are positive. Shape (P,).
        weights: the flow's weights p there, flattened. Shape (m,).
        log_kappa: log kappa_c.
    """
    degree = problem.degree
    margins = np.asarray(problem.margins(layout.unflatten(direction))).ravel()
    gamma = float(margins[np.argmax(weights)])
    theta = direction / gamma ** (1 / degree)
    # Euler's identity.
    multipliers = weights * (theta @ theta) / (degree * (weights @ (margins / gamma)))
    path = _Path(problem, layout, float(multipliers.max()))
    return path.follow(theta, multipliers, math.exp(log_kappa) * gamma)


def cooled_again(
    problem: Problem, layout: Layout, direction: np.ndarray, multipliers: np.ndarray
) -> Cooled:
    """The KKT point to which the last temperature alone leads from beside one; `sharpness` is 0
    where there is none.

    Args:
        direction: a unit vector close to the KKT point; its margins are positive. Shape (P,).
        multipliers: of the KKT point. Shape (m,).
    """
    margins = np.asarray(problem.margins(layout.unflatten(direction)))
    theta = direction / margins.min() ** (1 / problem.degree)
    path = _Path(problem, layout, float(multipliers.max()))
    start = _System(path, theta, np.maximum(multipliers, _TINY), _SHARPEST)
    found, _ = path.rest(start)
    if found is None or found.margins.min() < 1 - _VIOLATED:
        return Cooled(theta, multipliers, 0.0, path.count)
    return Cooled(found.theta, found.multipliers, _SHARPEST, path.count)


class _Path:
    """Newton's method along a path of temperatures.

    Up to a thousand parameters its matrix is formed and factorised; beyond, the systems are solved
    by GMRES with exact products.
    """

    def __init__(self, problem: Problem, layout: Layout, largest: float):
        self.problem, self.layout, self.largest = problem, layout, largest
        self.count, self.time = 0, _LONGEST_TIME

    def follow(self, theta: np.ndarray, multipliers: np.ndarray, sharpness: float) -> Cooled:
        """From one sharpness to the last, or to where the path can be followed no further."""
        now, reached, factor, following = (theta, multipliers), 0.0, _FIRST_FACTOR, sharpness
        while reached < _SHARPEST and self.count < _MOST_SYSTEMS:
            found, iterations = self.rest(_System(self, *now, following))
            if found is None:
                factor = math.sqrt(factor)
                if not reached or factor < _LEAST_FACTOR:
                    break
            else:
                now, reached = (found.theta, found.multipliers), following
                if iterations <= _FEW:
                    factor = min(factor**1.5, _LARGEST_FACTOR)
            following = min(reached * factor, _SHARPEST)
        return Cooled(*now, reached, self.count)

    def rest(self, system: "_System") -> tuple["_System | None", int]:
        """The rest point at the sharpness of a system, or None; and the iterations.

        They are steps of the linearly implicit Euler method for the flow, longer as it comes to
        rest: Newton's method in the end, and from the start where that serves. Where the rest
        point has hardly any curvature, Newton's method alone would leave for nowhere.

        Source: Kelley & Keyes 1998, "Convergence analysis of pseudo-transient continuation", SIAM
        J. Numer. Anal. 35.
        """
        for iteration in range(_MOST_ITERATIONS + 1):
            if system.error < _close_enough(system.sharpness):
                return system, iteration
            if not np.isfinite(system.error) or self.time < _SHORTEST_TIME:
                break
            after = self.stepped(system, self.time)
            if after is not None and after.error >= system.error < _ROUNDED:
                return system, iteration
            if after is None or not after.error < max(_RISE * system.error, _LEAST_RISEN):
                self.time = _SHRINK * min(self.time, _ASTRAY / _SHRINK)
                continue
            risen = after.error > system.error and self.time > _CORRECTING
            system, growth = self.corrected(after) if risen else (after, _growth(system, after))
            self.time = min(growth * self.time, _LONGEST_TIME)
        self.time = max(self.time, _CORRECTING)
        return None, _MOST_ITERATIONS

    def corrected(self, system: "_System") -> tuple["_System", float]:
        """The system after a short step, and by how much the next long one may be longer.

        Along a family of KKT points, or nearly one, long steps are what leads on; the family bends,
        and they end beside it, from where a short step leads back.
        """
        after = self.stepped(system, _CORRECTING)
        if after is None or not after.error < system.error:
            return system, _GROW[0]
        return after, _GROW[1] if system.error < _SHRINK * _LEAST_RISEN else 1.0

    def stepped(self, system: "_System", time: float) -> "_System | None":
        """The system after a step over some time, or None where the step is no good."""
        self.count += 1
        step = system.solve(time)
        theta, multipliers = system.theta, system.multipliers
        size = len(theta)
        if step is None or not np.linalg.norm(step[:size]) < _LONGEST * np.linalg.norm(theta):
            return None
        change = np.maximum(step[size:] / np.maximum(multipliers, _TINY), _LEAST_CHANGE)
        factors = np.where(change < 0, np.exp(np.minimum(change, 0.0)), 1 + change)
        multipliers = np.maximum(multipliers * factors, _TINY)
        return _System(self, theta + step[:size], multipliers, system.sharpness)


class _System:
    """The linearised equations at an iterate.

    The row of margin i is multiplied by `t_i = s lambda_i / (1 + s lambda_i)`: where it hardly
    pushes it is a row for its multiplier, and for a large s it hardly depends on s.
    """

    def __init__(self, path: _Path, theta: np.ndarray, multipliers: np.ndarray, sharpness: float):
        self.problem, self.layout = path.problem, path.layout
        self.theta, self.multipliers, self.sharpness = theta, multipliers, sharpness
        weight = sharpness * multipliers
        self.rows, self.own = weight / (1 + weight), 1 / (1 + weight)
        found = residual_at(self.problem, self.layout, theta, multipliers)
        stationarity, margins = map(np.asarray, found)
        self.margins = margins
        logarithm = np.log(np.maximum(multipliers, _TINY) / path.largest)
        barrier = self.own * multipliers * logarithm
        self.right = -np.concatenate([stationarity, self.rows * (margins - 1) + barrier])
        self.error = max(
            np.linalg.norm(stationarity) / np.linalg.norm(theta),
            np.abs(self.right[len(theta) :]).max(),
        )

    def solve(self, time: float) -> np.ndarray | None:
        """The step of (theta, multipliers) over some time; None where it was not found."""
        return self.direct(time) if len(self.theta) <= _DENSE_AT_MOST else self.iterated(time)

    def direct(self, time: float) -> np.ndarray:
        """The step with the matrix itself. Memory: 8 (P + m)^2 bytes."""
        at = system(self.problem, self.layout, self.theta, self.multipliers)
        size, count = at.gradients.shape[::-1]
        matrix = np.zeros((size + count, size + count), order="F")
        matrix[:size, :size] = at.hessian
        matrix[np.arange(size), np.arange(size)] += 1 / time
        matrix[:size, size:] = -at.gradients.T
        matrix[size:, :size] = self.rows[:, None] * at.slopes
        inner = np.arange(size, size + count)
        matrix[inner, inner] = self.own
        return nearly_solved(matrix, self.right)

    def iterated(self, time: float) -> np.ndarray | None:
        """The step by GMRES, with exact products. Memory: 16 m P bytes."""
        linear = _linearized(self.problem, self.layout, self.theta, self.multipliers)
        nearly, size = self.preconditioner(time), len(self.theta)

        def matrix(vector: np.ndarray) -> np.ndarray:
            first, second = np.split(np.ravel(vector), [size])
            across, margins = map(np.asarray, _applied(linear, first, second))
            return np.concatenate([across + first / time, self.rows * margins + self.own * second])

        shape, operator = (len(self.right), len(self.right)), cast(Any, LinearOperator)
        step, _ = gmres(
            operator(shape, matvec=matrix, dtype=float),
            self.right,
            M=operator(shape, matvec=nearly, dtype=float),
            rtol=_LINEAR,
            restart=_PRODUCTS,
            maxiter=1,
        )
        left = np.linalg.norm(nearly(matrix(step) - self.right))
        return step if left <= _UNSOLVED * np.linalg.norm(nearly(self.right)) else None

    def preconditioner(self, time: float) -> Callable[[np.ndarray], np.ndarray]:
        """Nearly the inverse: with the identity for the Hessian H, most of whose eigenvalues are
        near 1, and without the margins that hardly push. Directions in which H nearly vanishes, as
        of a family of KKT points, are solved last or not at all.
        """
        slopes, gradients = map(
            np.asarray, slopes_and_gradients(self.problem, self.layout, self.theta)
        )
        pushing, size, shifted = self.rows > _PUSHING, len(self.theta), 1 + 1 / time
        slopes, gradients = self.rows[pushing, None] * slopes[pushing], gradients[pushing]
        inner = np.diag(self.own[pushing]) + slopes @ gradients.T / shifted
        inner = lu_factor(inner, check_finite=False)

        def nearly(right: np.ndarray) -> np.ndarray:
            across, margins = np.split(np.ravel(right), [size])
            across, found = across / shifted, margins / self.own
            pushed = margins[pushing] - slopes @ across
            found[pushing] = lu_solve(inner, pushed, check_finite=False)
            return np.concatenate([across + found[pushing] @ gradients / shifted, found])

        return nearly


def _growth(before: _System, after: _System) -> float:
    """The factor of the time step: as the error falls."""
    return float(np.clip(before.error / max(after.error, _TINY), _GROW[0], _GROW[2]))


def _close_enough(sharpness: float) -> float:
    """The error at which the next temperature is tried: loose where most margins still push."""
    return min(_LOOSE, _TIGHT * max(1.0, _COLD / sharpness) / sharpness) + _ROUNDING


@eqx.filter_jit
def _linearized(problem: Problem, layout: Layout, theta: Any, multipliers: Any) -> Any:
    """The derivative of the equations along a vector, a function that may leave the program."""

    def equations(theta: Array, multipliers: Array) -> tuple[Array, Array]:
        return residual(problem, layout, theta, multipliers)

    return jax.linearize(equations, jnp.asarray(theta), jnp.asarray(multipliers))[1]


@eqx.filter_jit
def _applied(linear: Any, first: Any, second: Any) -> Any:
    return linear(jnp.asarray(first), jnp.asarray(second))
