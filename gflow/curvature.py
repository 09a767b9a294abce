"""Second order: is a KKT point a maximum of the margin, and if not, which way does the flow leave?

On the tangent space of the active margins, `{v : dq_i . v = 0}`, the flow near a KKT point moves
like `dv/dt = -H v` plus the forces that keep the active margins equal, H the Lagrangian's Hessian.
With Z a basis of that space and W one of the space orthogonal to the active gradients, its rates
are the eigenvalues of the pencil `(W^T H Z, W^T Z)`. Where gradients are those of the margins
(clean data, total gradient) W = Z and H is symmetric, and this is the classical second-order
condition; with frozen perturbations it is the stability of the flow, judged by real parts.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eig, eigh, null_space

from gflow.kkt import System

_RANK = 1e-10
_SYMMETRIC = 1e-9


@dataclass(frozen=True, eq=False)
class Curvature:
    """The eigenvalues of the flow's linearisation on the tangent space of the active margins.

    Attributes:
        values: real parts, smallest first, for `H = I - sum lambda_i hess q_i`. Negative: the flow
            leaves along that direction.
        vectors: (P, r) directions of `values`, of norm 1.
        symmetric: whether they are eigenvalues of a symmetric matrix; otherwise the real parts of
            those of a pencil that is not.
        tolerance: below this in magnitude an eigenvalue counts as zero.
    """

    values: np.ndarray
    vectors: np.ndarray
    symmetric: bool
    tolerance: float

    @property
    def unstable(self) -> np.ndarray:
        """Which eigenvalues are negative."""
        return self.values < -self.tolerance

    @property
    def neutral(self) -> np.ndarray:
        """Which eigenvalues are zero."""
        return np.abs(self.values) <= self.tolerance


def curvature(at: System, active: np.ndarray, *, tolerance: float = 1e-7) -> Curvature:
    """The eigenvalues at a KKT point; see above. Costs O(P^3).

    Args:
        at: the KKT system at the point.
        active: its active margins. Shape (m,).
        tolerance: of a zero, relative to the largest entry of H, or to 1 if that is more.
    """
    tangent = null_space(at.slopes[active], rcond=_RANK)
    scale = max(1.0, float(np.abs(at.hessian).max()))
    across = np.abs(at.slopes[active] - at.gradients[active]).max(initial=0.0)
    size = np.abs(at.gradients[active]).max(initial=1.0)
    asymmetry = np.abs(at.hessian - at.hessian.T).max() / scale
    symmetric = bool(across <= _SYMMETRIC * size and asymmetry <= _SYMMETRIC)
    if symmetric:
        half = tangent.T @ at.hessian @ tangent
        values, small = eigh(0.5 * (half + half.T), check_finite=False)
    else:
        normal = null_space(at.gradients[active], rcond=_RANK)
        pencil: Any = eig(normal.T @ at.hessian @ tangent, normal.T @ tangent)
        values, small = pencil
        order = np.argsort(values.real)
        values, small = values.real[order], small.real[:, order]
    vectors = tangent @ small
    lengths = np.linalg.norm(vectors, axis=0)
    vectors = vectors / np.where(lengths > 0, lengths, 1.0)
    return Curvature(values, vectors, symmetric, tolerance * scale)
