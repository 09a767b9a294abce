"""The largest margin of several classes as a cone program for Clarabel: about nine digits."""

from typing import Any

import numpy as np
from scipy import sparse

from gflow._interior import clarabel_with
from gflow.reference._cones import norm_epigraph
from gflow.reference._norms import Array
from gflow.reference._rivals import Candidate, Rivals, slopes_at, withstood

_TOLERANCE = 1e-11
_MAX_ITERATIONS = 200


def by_cones(
    rivals: Rivals, radius: float, order: float, *, units: Array | None = None
) -> Candidate | None:
    """Clarabel's solution; None where it finds none with a positive margin.

    Variables (W, t, r): `|W_a - W_b|_q <= t_ab`.

    Args:
        units: then W has a norm of at most 1, and the largest r with margins of at least
            `r units` is sought, which has a solution at every radius. Shape (m,).
    """
    bounded = units is not None
    size = rivals.shape[0] * rivals.shape[1]
    blocks, cones, width = _epigraphs(rivals, order)
    num_variables = size + width + bounded
    margins = sparse.lil_matrix((len(rivals.x), num_variables))
    margins[:, :size] = -rivals.rows(rivals.x)
    per_pair = width // len(rivals.pairs)
    margins[np.arange(len(rivals.x)), size + per_pair * rivals.pair] = radius
    clarabel, settings = clarabel_with(_TOLERANCE, _MAX_ITERATIONS)
    parts, right = [margins, _widened(blocks, num_variables)], np.zeros(blocks.shape[0])
    limits = np.full(len(rivals.x), -1.0)
    quadratic = sparse.diags([1.0] * size + [0.0] * (num_variables - size), format="csc")
    linear = np.zeros(num_variables)
    if bounded:
        margins[:, -1], limits, linear[-1] = units, np.zeros(len(rivals.x)), -1.0
        ball = sparse.vstack([sparse.csc_matrix((1, size)), -sparse.identity(size)])
        parts.append(_widened(ball, num_variables))
        right = np.concatenate([right, [1.0], np.zeros(size)])
        cones = [*cones, clarabel.SecondOrderConeT(size + 1)]
        quadratic = sparse.csc_matrix((num_variables, num_variables))
    system = sparse.vstack(parts, format="csc")
    cones = [clarabel.NonnegativeConeT(len(rivals.x)), *cones]
    solver = clarabel.DefaultSolver(
        quadratic, linear, system, np.concatenate([limits, right]), cones, settings
    )
    solution = solver.solve()
    values = np.asarray(solution.x)
    if not np.isfinite(values).all() or not values[:size].any():
        return None
    weights = values[:size].reshape(rivals.shape)
    if withstood(rivals, order, weights) <= radius and not bounded:
        return None
    multipliers = np.maximum(np.asarray(solution.z)[: len(rivals.x)], 0.0)
    return Candidate(weights, slopes_at(rivals.differences(weights), order), multipliers)


def _widened(rows: Any, width: int) -> Any:
    return sparse.hstack([rows, sparse.csc_matrix((rows.shape[0], width - rows.shape[1]))])


def _epigraphs(rivals: Rivals, order: float) -> tuple[Any, list[Any], int]:
    """Rows A of all pairs with `-A (W, t, r)` in the cones, the cones, and how many t and r."""
    clarabel, _ = clarabel_with(_TOLERANCE, _MAX_ITERATIONS)
    num_classes, dim = rivals.shape
    if order == 2:
        norm_rows = sparse.vstack(
            [
                sparse.hstack([sparse.csc_matrix((1, dim)), [[-1.0]]]),
                sparse.hstack([-sparse.identity(dim), sparse.csc_matrix((dim, 1))]),
            ]
        )
        cones = [clarabel.SecondOrderConeT(dim + 1)]
    else:
        norm_rows, num_linear, exponents = norm_epigraph(dim, order)
        cones = [clarabel.NonnegativeConeT(num_linear), *map(clarabel.PowerConeT, exponents)]
    norm_rows: Any = sparse.csc_matrix(norm_rows)
    differences = np.zeros((len(rivals.pairs), num_classes))
    number = np.arange(len(rivals.pairs))
    differences[number, rivals.pairs[:, 0]], differences[number, rivals.pairs[:, 1]] = 1.0, -1.0
    weights = sparse.kron(sparse.csc_matrix(differences), norm_rows[:, :dim])
    others = sparse.kron(sparse.identity(len(rivals.pairs)), norm_rows[:, dim:])
    width = len(rivals.pairs) * (norm_rows.shape[1] - dim)
    return sparse.hstack([weights, others]), cones * len(rivals.pairs), width
