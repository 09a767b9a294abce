"""Subspaces outside of which the Hessian of the Lagrangian acts like the identity.

With every switch held, `H = I - B`, and B moves theta only where weights of several layers meet in
an example that pushes, or where an attack turns: for a two-layer network on clean data its rank is
at most twice the width. A system with H therefore has its solution in a subspace U that holds the
right-hand side and all other columns of the matrix, and that B maps into itself: in the quotient
the matrix is a multiple of the identity. The eigenvalues of H are those on U, and 1, if U holds the
range of B.

Source: Saad 2003, "Iterative Methods for Sparse Linear Systems", section 6.12, for block Krylov
subspaces; Halko, Martinsson & Tropp 2011, SIAM Review 53, for the range of a matrix from its images
of random vectors.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import qr

# Random vectors whose images are taken at a time, where the range of B is looked for.
_BLOCK = 64

EXACT = 1e-9
"""What is dropped (see `invariant`) where steps and eigenvalues are to be those of the whole
matrix: some digits above the rounding of products."""

Images = Callable[[np.ndarray], np.ndarray]
"""Columns to their images under B. Shapes: (P, c) -> (P, c)."""


def invariant(
    images: Images, start: np.ndarray, drop: float, *, whole: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A basis of the subspace, of columns of norm 1, and its image under B. Shapes (P, s) each.

    Args:
        images: of B.
        start: columns in the subspace, in units in which their coefficients in a solution are of
            the order of 1. Shape (P, c).
        drop: directions in which a column of `start`, or an image of it under a power of B, is
            shorter than this are left out.
        whole: whether the subspace is to hold the range of B, with probability 1.
    """
    basis = _range(images, len(start), drop) if whole else np.zeros((len(start), 0))
    mapped = images(basis) if whole else basis
    fresh, lengths = _independent(start, basis, drop)
    while fresh.shape[1]:
        image = images(fresh)
        basis, mapped = np.column_stack([basis, fresh]), np.column_stack([mapped, image])
        fresh, lengths = _independent(image * lengths, basis, drop)
    return basis, mapped


def of_length_one(columns: np.ndarray) -> np.ndarray:
    """The columns that are not 0, each divided by its length."""
    lengths = np.linalg.norm(columns, axis=0)
    return columns[:, lengths > 0] / lengths[lengths > 0]


def _range(images: Images, size: int, drop: float) -> np.ndarray:
    """A basis of the range of B. Shape (P, r)."""
    random, found = np.random.default_rng(0), np.zeros((size, 0))
    while found.shape[1] < size:
        fresh, _ = _independent(images(random.normal(size=(size, _BLOCK))), found, drop)
        found = np.column_stack([found, fresh])
        if fresh.shape[1] < _BLOCK:
            break
    return found


def _independent(
    columns: np.ndarray, basis: np.ndarray, drop: float
) -> tuple[np.ndarray, np.ndarray]:
    """Orthonormal columns that with `basis` span the columns, but for parts shorter than `drop`;
    and how long the parts along each are, at most 1. Shapes (P, r), (r,).
    """
    # Once more, as of a column that lies nearly in the span the first time leaves rounding.
    for _ in range(2):
        columns = columns - basis @ (basis.T @ columns)
    factors: Any = qr(columns, mode="economic", pivoting=True, check_finite=False)
    orthonormal, upper, _ = factors
    lengths = np.abs(np.diagonal(upper))
    fresh, lengths = orthonormal[:, lengths > drop], np.minimum(lengths[lengths > drop], 1.0)
    fresh = fresh - basis @ (basis.T @ fresh)
    return fresh / np.linalg.norm(fresh, axis=0), lengths
