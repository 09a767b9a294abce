"""Newton's method on the KKT system from where many flows ended, side by side.

From a stationarity of 1e-3 the flow's weights tell the active margins in most runs, and the matrix
of the first system serves all iterations: each then costs an evaluation of the equations, and the
linear convergence, with a factor of about the first displacement, is fast. A run whose point does
not come out right, with a negative multiplier, a violated margin or a residual that does not fall,
is left to `gflow.limit.polish`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh
from scipy.linalg import get_lapack_funcs, lstsq

from gflow._layout import Layout
from gflow._programs import compiled_for_few_calls, compiled_for_many_steps
from gflow.batch.lanes import Lane
from gflow.batch.stacked import Runs, row_of, spread_over, taken_rows
from gflow.kkt.point import KKTPoint
from gflow.kkt.system import (
    KKTSystem,
    margins_and_rows,
    stationarity_and_margins,
    without_dead,
)
from gflow.limit.polish import Iterate
from gflow.limit.settings import RefineSettings
from gflow.problem import Problem

# Iterations with one matrix at most, and matrices. Where the error falls by less than the factor,
# another matrix is formed.
_MOST_ITERATIONS, _MOST_MATRICES, _FALL = 12, 8, 0.2
# Matrices with a reciprocal condition above this are solved by their LU factors.
_REGULAR, _RANK = 1e-9, 1e-11


def points(
    runs: Runs, lanes: Lane, rows: np.ndarray, tolerance: float, settings: RefineSettings
) -> dict[int, KKTPoint]:
    """The KKT points near the ends of these runs, of those of them where one was found."""
    ends = _collected(runs, rows, _begun_of, lanes)
    starts = {}
    for row, (theta, multipliers, weights) in ends.items():
        active = weights > settings.newton.flow_support * weights.max()
        if np.all(np.isfinite(theta)):
            starts[row] = Iterate(theta, np.where(active, multipliers, 0.0), active)
    return _solved(runs, starts, tolerance, settings)


def points_beside(
    runs: Runs, given: dict[int, tuple[KKTPoint, np.ndarray]], settings: RefineSettings
) -> dict[int, KKTPoint]:
    """The KKT points near directions beside others, where one was found.

    Args:
        given: of each run a KKT point and a direction beside it.
    """
    starts = {}
    for row, (point, direction) in given.items():
        theta = direction * np.linalg.norm(point.theta)
        starts[row] = Iterate(theta, np.where(point.active, point.multipliers, 0.0), point.active)
    return _solved(runs, starts, settings.newton.rounded, settings)


def _solved(
    runs: Runs, starts: dict[int, Iterate], tolerance: float, settings: RefineSettings
) -> dict[int, KKTPoint]:
    """The KKT points to which these iterates lead."""
    now, ended = starts, {}
    for _ in range(_MOST_MATRICES):
        if not now:
            break
        systems = _systems(runs, now)
        now = _iterated(runs, now, systems, ended, tolerance, settings)
    systems = _systems(runs, {row: iterate for row, (iterate, _) in ended.items()})
    return _confirmed(ended, systems, tolerance, settings)


def _iterated(
    runs: Runs,
    now: dict[int, Iterate],
    systems: dict[int, KKTSystem],
    ended: dict[int, tuple[Iterate, int]],
    tolerance: float,
    settings: RefineSettings,
) -> dict[int, Iterate]:
    """Iterations with one matrix each. Runs that have converged are put among those that ended;
    what is left over needs another matrix, for its active set has changed, or it has come closer.
    """
    newton, others, solvers = settings.newton, {}, {}
    for row, each in now.items():
        at = systems[row]
        error = each.error(at.stationarity, at.margins)
        solvers[row] = _solver(at, each.active, min(error**2, newton.family_rank))
    active, before = dict(now), dict.fromkeys(now, np.inf)
    for iteration in range(_MOST_ITERATIONS + 1):
        values = _equations(runs, active)
        further = {}
        for row, iterate in active.items():
            stationarity, margins = values[row]
            error = iterate.error(stationarity, margins)
            falls = error < _FALL * before[row]
            close = error <= min(newton.aim, tolerance)
            close |= error > 0.5 * before[row] and error <= min(newton.rounded, tolerance)
            mended = _mended(iterate, margins, newton.slack) if close else iterate.active
            if close and mended is None:
                ended[row] = iterate, iteration
            elif close or (np.isfinite(error) and not falls):
                assert mended is not None
                others[row] = iterate.with_active(mended)
            elif np.isfinite(error):
                step = solvers[row](stationarity, margins)
                further[row] = iterate.stepped(step, newton.longest_step)
                before[row] = error
        active = further
        if not active:
            break
    return others | active


def _solver(at: KKTSystem, active: np.ndarray, rank: float) -> Any:
    """The step of minimum norm for the equations at any iterate, by the matrix of the first.

    Args:
        rank: singular values below this part of the largest count as 0.
    """
    rank = max(rank, _RANK)
    matrix = at.bordered(active)
    factorised, condition, solved = get_lapack_funcs(("getrf", "gecon", "getrs"), (matrix,))
    factors, pivots, singular = factorised(matrix)
    norm = np.abs(matrix).sum(axis=0).max()
    regular = not singular and condition(factors, norm)[0] > max(rank, _REGULAR)

    def step(stationarity: np.ndarray, margins: np.ndarray) -> np.ndarray:
        right = -np.concatenate([stationarity, margins[active] - 1])
        if regular:
            return solved(factors, pivots, right)[0]
        found: Any = lstsq(matrix, right, cond=rank, lapack_driver="gelsy", check_finite=False)
        return found[0]

    return step


def _mended(now: Iterate, margins: np.ndarray, slack: float) -> np.ndarray | None:
    """The active set without negative multipliers, or with the margins violated; None if right."""
    negative = now.active & (now.multipliers < -slack * now.multipliers.max())
    if negative.any():
        return now.active & ~negative
    violated = ~now.active & (margins < 1 - slack)
    return now.active | violated if violated.any() else None


def _confirmed(
    ended: dict[int, tuple[Iterate, int]],
    systems: dict[int, KKTSystem],
    tolerance: float,
    settings: RefineSettings,
) -> dict[int, KKTPoint]:
    """The points whose systems, evaluated anew, agree."""
    found = {}
    for row, (iterate, iterations) in ended.items():
        at = systems[row]
        error = iterate.error(at.stationarity, at.margins)
        right = _mended(iterate, at.margins, settings.newton.slack) is None
        if error <= min(tolerance, settings.newton.rounded) and right:
            # Two systems were factorised or evaluated with their matrices.
            found[row] = KKTPoint(*iterate, error, True, iterations + 1, at)
    return found


def _systems(runs: Runs, now: dict[int, Iterate]) -> dict[int, KKTSystem]:
    """The KKT systems with their matrices."""
    tables = {row: (without_dead(it.theta), it.multipliers) for row, it in now.items()}
    found = _collected(runs, np.array(list(now), int), _kkt_systems_of, tables)
    return {
        row: KKTSystem(stationarity, margins, hessian, slopes, gradients)
        for row, (stationarity, hessian, margins, slopes, gradients) in found.items()
    }


def _equations(runs: Runs, now: dict[int, Iterate]) -> dict[int, Any]:
    """Stationarity and margins."""
    tables = {row: (it.theta, it.multipliers) for row, it in now.items()}
    return _collected(runs, np.array(list(now), int), _equations_of, tables)


def _begun_of(runs: Runs, problems: Problem, lanes: Lane) -> Any:
    return _begun(problems, lanes, runs.layout, mesh=runs.mesh)


def _kkt_systems_of(runs: Runs, problems: Problem, tables: Any) -> Any:
    thetas, multipliers = tables
    return _kkt_systems(problems, thetas, multipliers, runs.layout, mesh=runs.mesh)


def _equations_of(runs: Runs, problems: Problem, tables: Any) -> Any:
    thetas, multipliers = tables
    return _values(problems, thetas, multipliers, runs.layout, mesh=runs.mesh)


def _collected(runs: Runs, rows: np.ndarray, program: Any, tables: Any) -> dict[int, Any]:
    """What a program computes of some runs, by their rows."""
    found = {}
    for meant, padded in runs.pieces(rows):
        if isinstance(tables, dict):
            parts = [np.stack(part) for part in zip(*(tables[row] for row in padded), strict=True)]
        else:
            parts = taken_rows(tables, padded)
        found_here = program(runs, runs.problems(padded), runs.placed(parts))
        values = jax.tree.map(np.asarray, found_here)
        found |= {int(row): row_of(values, i) for i, row in enumerate(meant)}
    return found


@compiled_for_few_calls
def _begun(problems: Problem, lanes: Lane, layout: Layout, *, mesh: Mesh | None) -> Any:
    """theta at unit margin, multipliers and weights, of the ends of the flows."""

    def one(problem: Problem, lane: Lane) -> Any:
        direction = lane.path[:-1] / jnp.linalg.norm(lane.path[:-1])
        ascent = problem.ascent(layout.unflatten(direction), lane.log_cap)
        margins, weights = ascent.margins.ravel(), ascent.weights.ravel()
        theta = direction / jnp.min(margins) ** (1 / problem.degree)
        size = (theta @ theta) / (problem.degree * (weights @ margins) / jnp.min(margins))
        return theta, size * weights, weights

    lanes = jax.tree.map(jnp.asarray, lanes)
    return spread_over(mesh, jax.vmap(one), 2)(problems, lanes)


@compiled_for_many_steps
def _values(
    problems: Problem, thetas: Any, multipliers: Any, layout: Layout, *, mesh: Mesh | None
) -> Any:
    def one(problem: Problem, theta: Any, multipliers: Any) -> Any:
        return stationarity_and_margins(problem, layout, theta, multipliers)

    tables = jnp.asarray(thetas), jnp.asarray(multipliers)
    return spread_over(mesh, jax.vmap(one), 3)(problems, *tables)


@compiled_for_many_steps
def _kkt_systems(
    problems: Problem, thetas: Any, multipliers: Any, layout: Layout, *, mesh: Mesh | None
) -> Any:
    """One after another: second derivatives side by side cost more a run."""

    def one(given: Any) -> Any:
        problem, theta, multipliers = given

        def stationarity(point: Any) -> Any:
            return stationarity_and_margins(problem, layout, point, multipliers)[0]

        value, product = jax.linearize(stationarity, theta)
        hessian = lax.map(product, jnp.eye(theta.size), batch_size=min(theta.size, 128)).T
        return value, hessian, *margins_and_rows(problem, layout, theta)

    def each(*given: Any) -> Any:
        return lax.map(one, given)

    tables = jnp.asarray(thetas), jnp.asarray(multipliers)
    return spread_over(mesh, each, 3)(problems, *tables)
