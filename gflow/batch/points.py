"""Newton's method on the KKT system from where many flows ended, side by side.

From a stationarity of 1e-3 the flow's weights tell the active margins in most runs, and the matrix
of the first system serves all iterations: each then costs an evaluation of the equations, and the
linear convergence, with a factor of about the first displacement, is fast. A run whose point does
not come out right, with a negative multiplier, a violated margin or a residual that does not fall,
is left to `gflow.limit.polish`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from scipy.linalg import get_lapack_funcs, lstsq

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls, compiled_for_many_steps
from gflow.batch.lanes import Lane
from gflow.batch.stacked import Runs, row_of, taken_rows
from gflow.kkt.point import KKTPoint, active_residual
from gflow.kkt.settings import DEAD
from gflow.kkt.system import KKTSystem, margins_and_rows, stationarity_and_margins
from gflow.limit.settings import RefineSettings
from gflow.problem import Problem

# Iterations with one matrix at most, and active sets that are tried.
_MOST_ITERATIONS, _MOST_SETS = 24, 4
# Matrices with a reciprocal condition above this are solved by their LU factors.
_REGULAR = 1e-9


class _Iterate(NamedTuple):
    theta: np.ndarray
    multipliers: np.ndarray
    active: np.ndarray


def points(
    runs: Runs, lanes: Lane, rows: np.ndarray, tolerance: float, settings: RefineSettings
) -> dict[int, KKTPoint]:
    """The KKT points near the ends of these runs, of those of them where one was found."""
    starts = _collected(runs, rows, lambda given, part: _begun(*given, part), lanes)
    now: dict[int, _Iterate] = {}
    for row, (theta, multipliers, weights) in starts.items():
        active = weights > settings.newton.flow_support * weights.max()
        if np.all(np.isfinite(theta)):
            now[row] = _Iterate(theta, np.where(active, multipliers, 0.0), active)
    systems = _systems(runs, now)
    ended: dict[int, tuple[_Iterate, int]] = {}
    for _ in range(_MOST_SETS):
        now = _iterated(runs, now, systems, ended, tolerance, settings)
    systems = _systems(runs, {row: iterate for row, (iterate, _) in ended.items()})
    return _confirmed(ended, systems, tolerance, settings)


def _iterated(
    runs: Runs,
    now: dict[int, _Iterate],
    systems: dict[int, KKTSystem],
    ended: dict[int, tuple[_Iterate, int]],
    tolerance: float,
    settings: RefineSettings,
) -> dict[int, _Iterate]:
    """Iterations with these active sets. Runs that have converged are put among those that ended;
    those left over have another active set.
    """
    newton, others = settings.newton, {}
    first = {row: (iterate, None, np.inf) for row, iterate in now.items()}
    solvers = {row: _solver(systems[row], now[row].active) for row in now}
    state: dict[int, Any] = first
    for iteration in range(_MOST_ITERATIONS + 1):
        values = _equations(runs, {row: iterate for row, (iterate, *_) in state.items()})
        further: dict[int, Any] = {}
        for row, (iterate, _, before) in state.items():
            stationarity, margins = values[row]
            error = active_residual(stationarity, margins, iterate.theta, iterate.active)
            close = error <= min(newton.aim, tolerance)
            close |= error > 0.5 * before and error <= min(newton.rounded, tolerance)
            if close:
                mended = _mended(iterate, margins, newton.slack)
                if mended is None:
                    ended[row] = iterate, iteration
                else:
                    others[row] = iterate._replace(
                        multipliers=np.where(mended, iterate.multipliers, 0.0), active=mended
                    )
            elif np.isfinite(error) and error < 2 * before:
                step = solvers[row](stationarity, margins)
                after = _stepped(iterate, step, newton.longest_step)
                if after is not None:
                    further[row] = after, None, error
        state = further
        if not state:
            break
    return others


def _stepped(now: _Iterate, step: np.ndarray, longest: float) -> _Iterate | None:
    """After a step; None where it is too long."""
    size = len(now.theta)
    if not np.linalg.norm(step[:size]) <= longest * np.linalg.norm(now.theta):
        return None
    multipliers = now.multipliers.copy()
    multipliers[now.active] += step[size:]
    return _Iterate(now.theta + step[:size], multipliers, now.active)


def _solver(at: KKTSystem, active: np.ndarray) -> Any:
    """The step of minimum norm for the equations at any iterate, by the matrix of the first."""
    matrix = at.bordered(active)
    factorised, condition, solved = get_lapack_funcs(("getrf", "gecon", "getrs"), (matrix,))
    factors, pivots, singular = factorised(matrix)
    norm = np.abs(matrix).sum(axis=0).max()
    regular = not singular and condition(factors, norm)[0] > _REGULAR

    def step(stationarity: np.ndarray, margins: np.ndarray) -> np.ndarray:
        right = -np.concatenate([stationarity, margins[active] - 1])
        if regular:
            return solved(factors, pivots, right)[0]
        found: Any = lstsq(matrix, right, cond=1e-6, lapack_driver="gelsy", check_finite=False)
        return found[0]

    return step


def _mended(now: _Iterate, margins: np.ndarray, slack: float) -> np.ndarray | None:
    """The active set without negative multipliers, or with the margins violated; None if right."""
    negative = now.active & (now.multipliers < -slack * now.multipliers.max())
    if negative.any():
        return now.active & ~negative
    violated = ~now.active & (margins < 1 - slack)
    return now.active | violated if violated.any() else None


def _confirmed(
    ended: dict[int, tuple[_Iterate, int]],
    systems: dict[int, KKTSystem],
    tolerance: float,
    settings: RefineSettings,
) -> dict[int, KKTPoint]:
    """The points whose systems, evaluated anew, agree."""
    found = {}
    for row, (iterate, iterations) in ended.items():
        at = systems[row]
        error = active_residual(at.stationarity, at.margins, iterate.theta, iterate.active)
        right = _mended(iterate, at.margins, settings.newton.slack) is None
        if error <= min(tolerance, settings.newton.rounded) and right:
            # Two systems were factorised or evaluated with their matrices.
            found[row] = KKTPoint(*iterate, error, True, iterations + 1, at)
    return found


def _systems(runs: Runs, now: dict[int, _Iterate]) -> dict[int, KKTSystem]:
    """The KKT systems with their matrices."""
    tables = {row: (_without_dead(it.theta), it.multipliers) for row, it in now.items()}
    found = _collected(runs, np.array(list(now), int), _kkt_systems_of, tables)
    return {
        row: KKTSystem(stationarity, margins, hessian, slopes, gradients)
        for row, (stationarity, hessian, margins, slopes, gradients) in found.items()
    }


def _equations(runs: Runs, now: dict[int, _Iterate]) -> dict[int, Any]:
    """Stationarity and margins."""
    tables = {row: (it.theta, it.multipliers) for row, it in now.items()}
    return _collected(runs, np.array(list(now), int), _equations_of, tables)


def _kkt_systems_of(given: Any, tables: Any) -> Any:
    return _kkt_systems(*given, *tables)


def _equations_of(given: Any, tables: Any) -> Any:
    return _values(*given, *tables)


def _without_dead(theta: np.ndarray) -> np.ndarray:
    return np.where(np.abs(theta) < DEAD.underflowing * np.abs(theta).max(), 0.0, theta)


def _collected(runs: Runs, rows: np.ndarray, program: Any, tables: Any) -> dict[int, Any]:
    """What a program computes of some runs, by their rows."""
    found = {}
    for meant, padded in runs.pieces(rows):
        if isinstance(tables, dict):
            parts = [np.stack(part) for part in zip(*(tables[row] for row in padded), strict=True)]
        else:
            parts = taken_rows(tables, padded)
        given = runs.problems(padded), runs.layout
        values = jax.tree.map(np.asarray, program(given, runs.placed(parts)))
        found |= {int(row): row_of(values, i) for i, row in enumerate(meant)}
    return found


@compiled_for_few_calls
def _begun(problems: Problem, layout: Layout, lanes: Lane) -> Any:
    """theta at unit margin, multipliers and weights, of the ends of the flows."""

    def one(problem: Problem, lane: Lane) -> Any:
        direction = lane.path[:-1] / jnp.linalg.norm(lane.path[:-1])
        ascent = problem.ascent(layout.unflatten(direction), lane.log_cap)
        margins, weights = ascent.margins.ravel(), ascent.weights.ravel()
        theta = direction / jnp.min(margins) ** (1 / problem.degree)
        size = (theta @ theta) / (problem.degree * (weights @ margins) / jnp.min(margins))
        return theta, size * weights, weights

    return jax.vmap(one)(problems, lanes)


@compiled_for_many_steps
def _values(problems: Problem, layout: Layout, thetas: Any, multipliers: Any) -> Any:
    def one(problem: Problem, theta: Any, multipliers: Any) -> Any:
        return stationarity_and_margins(problem, layout, theta, multipliers)

    return jax.vmap(one)(problems, jnp.asarray(thetas), jnp.asarray(multipliers))


@compiled_for_many_steps
def _kkt_systems(problems: Problem, layout: Layout, thetas: Any, multipliers: Any) -> Any:
    """One after another: second derivatives side by side cost more a run."""

    def one(given: Any) -> Any:
        problem, theta, multipliers = given

        def stationarity(point: Any) -> Any:
            return stationarity_and_margins(problem, layout, point, multipliers)[0]

        value, product = jax.linearize(stationarity, theta)
        hessian = lax.map(product, jnp.eye(theta.size), batch_size=min(theta.size, 128)).T
        return value, hessian, *margins_and_rows(problem, layout, theta)

    return lax.map(one, (problems, jnp.asarray(thetas), jnp.asarray(multipliers)))
