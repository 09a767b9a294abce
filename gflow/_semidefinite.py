"""Quadratic forms with coefficients that may be chosen, `start + sum_g s_g part_g`, |s_g| <= 1.

Chosen for the largest smallest eigenvalue, they are the solution of a semidefinite program. Chosen
by a direction h itself, `h^T part_g h` counts with the sign that raises the form, or lowers it.
"""

import numpy as np
from scipy import sparse

from gflow._interior import clarabel_with

_TOLERANCE, _MAX_ITERATIONS = 1e-9, 100
_NUM_TRIED, _NUM_KEPT, _NUM_DESCENTS = 256, 4, 20


def best_of(start: np.ndarray, parts: list[np.ndarray]) -> np.ndarray:
    """`start + sum_g s_g part_g` with the largest smallest eigenvalue, -1 <= s <= 1."""
    if not parts:
        return start
    clarabel, settings = clarabel_with(_TOLERANCE, _MAX_ITERATIONS)
    size, count = len(start), len(parts)
    upper = np.triu_indices(size)
    weight = np.where(upper[0] == upper[1], 1.0, np.sqrt(2.0))
    by_columns = np.lexsort((upper[0], upper[1]))

    def stacked(matrix: np.ndarray) -> np.ndarray:
        return (matrix[upper] * weight)[by_columns]

    cone = np.column_stack([*(-stacked(part) for part in parts), stacked(np.eye(size))])
    box = np.column_stack([np.eye(count), np.zeros(count)])
    solver = clarabel.DefaultSolver(
        sparse.csc_matrix((count + 1, count + 1)),
        np.append(np.zeros(count), -1.0),
        sparse.csc_matrix(np.vstack([cone, box, -box])),
        np.concatenate([stacked(start), np.ones(2 * count)]),
        [clarabel.PSDTriangleConeT(size), clarabel.NonnegativeConeT(2 * count)],
        settings,
    )
    shares = np.clip(np.asarray(solver.solve().x)[:count], -1.0, 1.0)
    return start + np.tensordot(shares, np.array(parts), 1)


def escapes(
    start: np.ndarray, worst: np.ndarray, best: list[np.ndarray], rest: list[np.ndarray]
) -> list[np.ndarray]:
    """Directions that may raise the margin: mixtures of the lowest eigenvectors, led downwards."""
    values, vectors = np.linalg.eigh(worst)
    lowest = vectors[:, values <= 0.5 * values[0]]
    generator = np.random.default_rng(0)
    mixtures = generator.normal(size=(_NUM_TRIED, lowest.shape[1])) @ lowest.T
    tried = np.concatenate([vectors[:, :1].T, mixtures])
    tried /= np.linalg.norm(tried, axis=1, keepdims=True)
    ranked = sorted(tried, key=lambda h: _value(h, start, best, rest))
    return [_descended(h, start, best, rest) for h in ranked[:_NUM_KEPT]]


def _value(
    h: np.ndarray, start: np.ndarray, best: list[np.ndarray], rest: list[np.ndarray]
) -> float:
    """`h^T H(s(h)) h`; at its least where a coefficient may fall to either end."""
    added = sum(abs(h @ part @ h) for part in best) - sum(abs(h @ part @ h) for part in rest)
    return float(h @ start @ h + added)


def _descended(
    h: np.ndarray, start: np.ndarray, best: list[np.ndarray], rest: list[np.ndarray]
) -> np.ndarray:
    """To the lowest eigenvector under the coefficients that fall to it, while that is lower."""
    for _ in range(_NUM_DESCENTS):
        matrix = start.copy()
        for parts, side in ((best, 1.0), (rest, -1.0)):
            for part in parts:
                matrix = matrix + side * np.sign(h @ part @ h) * part
        lower = np.linalg.eigh(matrix)[1][:, 0]
        if not _value(lower, start, best, rest) < _value(h, start, best, rest):
            break
        h = lower
    return h
