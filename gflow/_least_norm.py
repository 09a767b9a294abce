"""Linear systems that may lack rank: the solution of minimum norm."""

from typing import Any

import numpy as np
from scipy.linalg import get_lapack_funcs, lstsq

# Singular values below this part of the largest count as 0.
_RANK = 1e-11
# A matrix of so much reciprocal condition has full rank beyond doubt; to tell takes longer than
# the rank-revealing factors of one with fewer rows than this.
_WELL, _SMALL = 1e-10, 200


def least_norm(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution of least squares of `matrix @ x = right` that has the smallest norm.

    By LU factors where a square matrix is far from singular, which is 4 to 6 times as fast as the
    rank-revealing QR that it takes otherwise.
    """
    if len(matrix) >= _SMALL and matrix.shape[0] == matrix.shape[1]:
        factorised, condition, solved = get_lapack_funcs(("getrf", "gecon", "getrs"), (matrix,))
        factors, pivots, singular = factorised(matrix)
        norm = np.abs(matrix).sum(axis=0).max()
        if not singular and condition(factors, norm)[0] > _WELL:
            return solved(factors, pivots, right)[0]
    solution: Any = lstsq(matrix, right, cond=_RANK, lapack_driver="gelsy", check_finite=False)
    return solution[0]


def nearly_solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The solution by LU factors, however nearly singular the matrix; NaN where it is singular.

    `scipy.linalg.solve` would warn of it. A matrix in Fortran's order is overwritten.
    """
    (solve,) = get_lapack_funcs(("gesv",), (matrix, right))
    *_, solution, singular = solve(matrix, right, overwrite_a=True)
    return np.full_like(right, np.nan) if singular else solution
