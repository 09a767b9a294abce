"""The space orthogonal to some vectors, in an orthonormal basis that is kept as reflections."""

from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import get_lapack_funcs, qr, svd


class Complement(NamedTuple):
    """An orthonormal basis Z of the vectors of P numbers that are orthogonal to k given ones.

    Z holds the last P - k columns of a product Q of k reflections. To multiply by Q takes 4 P k
    operations a column, by Z itself 2 P (P - k).

    Attributes:
        factors, scalars: of the reflections, as LAPACK's geqrf leaves them. Shapes (P, k), (k,).
    """

    factors: np.ndarray
    scalars: np.ndarray

    @property
    def dimension(self) -> int:
        """P - k."""
        return self.factors.shape[0] - self.factors.shape[1]

    def reflected(self, matrix: np.ndarray, *, side: str, transposed: bool) -> np.ndarray:
        """`Q M`, `Q^T M` (side "L"), `M Q` or `M Q^T` (side "R")."""
        if not (self.scalars.size and matrix.size):
            return np.array(matrix)
        (multiply,) = get_lapack_funcs(("ormqr",), (self.factors, matrix))
        given = (side, "T" if transposed else "N", self.factors, self.scalars, matrix)
        room = int(multiply(*given, -1)[1][0])
        return multiply(*given, room)[0]

    def lifted(self, vectors: np.ndarray) -> np.ndarray:
        """`Z V`. Shapes: (P - k, r) -> (P, r)."""
        count = self.factors.shape[1]
        full = np.zeros((count + len(vectors), vectors.shape[1]), order="F")
        full[count:] = vectors
        return self.reflected(full, side="L", transposed=False)


def complement(rows: np.ndarray, rank: float) -> Complement:
    """The space orthogonal to the rows.

    Args:
        rank: singular values below this part of the largest count as 0.
    """
    _, values, vectors = svd(rows, full_matrices=False, check_finite=False)
    count = int(np.count_nonzero(values > rank * values.max(initial=0.0)))
    if not count:
        return Complement(np.zeros((rows.shape[1], 0)), np.zeros(0))
    decomposed: Any = qr(vectors[:count].T, mode="raw", check_finite=False)
    return Complement(*decomposed[0])


def between(left: Complement, matrix: np.ndarray, right: Complement) -> np.ndarray:
    """`W^T M Z`, with W and Z the bases of two complements. Shapes: (P, P) -> (P - j, P - k)."""
    matrix = left.reflected(matrix, side="L", transposed=True)
    matrix = right.reflected(matrix, side="R", transposed=False)
    return matrix[left.factors.shape[1] :, right.factors.shape[1] :]
