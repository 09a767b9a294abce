"""Certificates of many directions, their margins and gradients by one program."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh

from gflow._layout import Layout
from gflow._programs import compiled_for_many_steps
from gflow._typing import Params
from gflow.batch.stacked import Runs, row_of, spread_over, stacked, taken_rows
from gflow.kkt.certificate import Certificate
from gflow.kkt.certifying import certificate_of, certify, examine
from gflow.kkt.strong_attack import (
    PROJECTED_ORDERS,
    ball_of,
    smallest_margins,
    strongly_attacked,
)
from gflow.kkt.subgradients import MOST_MARGINS, probes_about
from gflow.kkt.system import slopes_and_gradients
from gflow.problem import Problem


def certificates(runs: Runs, problems: list[Problem], params: list[Params]) -> list[Certificate]:
    """`certify(problem, params)` of all runs, in their order.

    Args:
        problems: of the runs, one each.
        params: the points, which are known to be sound.
    """
    if _num_margins(problems[0]) > MOST_MARGINS:
        return [certify(*each) for each in zip(problems, params, strict=True)]
    strong = _attacked(runs, problems)
    points = [runs.layout.flatten_on_host(each) for each in params]
    units = [point / np.linalg.norm(point) for point in points]
    probes = [np.stack([unit, *probes_about(unit)]) for unit in units]
    found: list[Certificate] = []
    for meant, padded in runs.pieces(np.arange(len(problems))):
        tables = [np.stack([table[row] for row in padded]) for table in (points, probes)]
        of_strong = None if strong is None else taken_rows(strong, padded)
        there, beside, attacked = map(runs.placed, (*tables, of_strong))
        values = _examined(
            runs.problems(padded), there, beside, attacked, runs.layout, mesh=runs.mesh
        )
        values = jax.tree.map(np.asarray, values)
        for i, row in enumerate(meant):
            found.append(_certificate(problems[row], row_of(values, i), probes[row]))
    return found


def _num_margins(problem: Problem) -> int:
    data = problem.dataset
    return len(data.x) * max(data.num_outputs - 1, 1)


def _attacked(runs: Runs, problems: list[Problem]) -> tuple[Problem, np.ndarray] | None:
    """All problems under a stronger attack, and its starts, stacked; None where there is none.

    An attack is made once for each ball, the rest of the problem is that of the runs.
    """
    if problems[0].perturbation.order not in PROJECTED_ORDERS:
        return None
    made: dict[tuple[bytes, ...], tuple[Problem, np.ndarray]] = {}
    every = []
    for problem in problems:
        ball = ball_of(problem.perturbation)
        key = tuple(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(ball))
        if key not in made:
            made[key] = strongly_attacked(problem, ball)
        every.append(made[key])
    attacks = stacked([problem.perturbation for problem, _ in every])
    firsts = np.stack([np.asarray(problem.starts) for problem, _ in every])
    attacked = eqx.tree_at(
        lambda problem: (problem.perturbation, problem.starts),
        runs.problem,
        (attacks, firsts),
        is_leaf=lambda leaf: leaf is None,
    )
    return attacked, np.stack([starts for _, starts in every])


def _certificate(problem: Problem, values: Any, probes: np.ndarray) -> Certificate:
    """From what was computed of one run."""
    point, weak, strong, slopes, gradients = values
    rows_there = list(zip(slopes, gradients, strict=True))
    unit = Layout.of(point.direction).flatten_on_host(point.direction)
    # By its bytes: the program has normalized the direction to rounding as NumPy did, or otherwise.
    known = {place.tobytes(): each for place, each in zip(probes, rows_there, strict=True)}
    known |= {
        place.tobytes(): each
        for place, each in zip([unit, *probes_about(unit)], rows_there, strict=True)
    }

    def rows(vector: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return known[vector.tobytes()]

    attacked = np.any(np.asarray(problem.perturbation.radius) > 0)
    strongest = np.minimum(weak, strong) if strong is not None and attacked else weak
    return certificate_of(problem, point, strongest, rows=rows)


@compiled_for_many_steps
def _examined(
    problems: Problem,
    points: Any,
    probes: Any,
    strong: Any,
    layout: Layout,
    *,
    mesh: Mesh | None,
) -> Any:
    """One after another: what `examine` finds, margins under a weak and a strong attack, and the
    slopes and gradients at the direction and at the probes about it.
    """

    def one(given: Any) -> Any:
        problem, point, probes, strong = given
        params = layout.unflatten(point)
        found = examine(problem, params)
        strongest = None
        if strong is not None:
            attacked, starts = strong
            strongest = smallest_margins(attacked, found.direction, starts)
        rows = lax.map(lambda probe: slopes_and_gradients(problem, layout, probe), probes)
        return found, found.weak, strongest, *rows

    def each(*given: Any) -> Any:
        return lax.map(one, given)

    tables = jnp.asarray(points), jnp.asarray(probes)
    return spread_over(mesh, each, 4)(problems, *tables, jax.tree.map(jnp.asarray, strong))
