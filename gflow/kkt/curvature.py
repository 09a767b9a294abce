"""Second order: is a KKT point a maximum of the margin, and if not, which way does the flow leave?

On the tangent space of the active margins, `{v : dq_i . v = 0}`, the flow near a KKT point moves
like `dv/dt = -H v` plus the forces that keep the active margins equal, H the Lagrangian's Hessian.
With Z a basis of that space and W one of the space orthogonal to the active gradients, its rates
are the eigenvalues of the pencil `(W^T H Z, W^T Z)`. Where gradients are those of the margins
(clean data, total gradient) W = Z and H is symmetric, and this is the classical second-order
condition; with frozen perturbations it is the stability of the flow, judged by real parts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
from scipy.linalg import eig, eigh, lu_factor, lu_solve
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigs

from gflow._complement import between, complement
from gflow.kkt.point import KKTPoint
from gflow.kkt.settings import CURVATURE, SIZES, CurvatureSettings, Sizes
from gflow.kkt.system import KKTSystem
from gflow.watch import in_time

# An eigenvalue counts as 0 below this times the largest entry of H, or times 1 if that is more.
_ZERO = 1e-7


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
        frequencies: imaginary parts of the eigenvalues, in magnitude, or one 0 for all of them.
        undecided: (example, switch) of the kinks on whose coefficients, which stationarity leaves
            open, it depends whether the point is a maximum; see `gflow.kkt.open_curvature`.
    """

    values: np.ndarray
    vectors: np.ndarray
    symmetric: bool
    tolerance: float
    frequencies: np.ndarray = field(default_factory=lambda: np.zeros(()))
    undecided: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        counts = f"{self.unstable.sum()} negative, {self.neutral.sum()} zero"
        smallest = f", smallest {self.values.min():.3g}" if self.values.size else ""
        return f"Curvature({self.values.size} eigenvalues, {counts}{smallest})"

    @property
    def spirals(self) -> bool:
        """Whether the flow leaves in spirals: along complex eigenvalues, and no other ones."""
        frequencies = np.broadcast_to(self.frequencies, self.values.shape)
        turning = frequencies[self.unstable] > self.tolerance
        return bool(self.unstable.any() and turning.all())

    @property
    def unstable(self) -> np.ndarray:
        """Which eigenvalues are negative."""
        return self.values < -self.tolerance

    @property
    def neutral(self) -> np.ndarray:
        """Which eigenvalues are zero."""
        return np.abs(self.values) <= self.tolerance


def curvature(
    at: KKTSystem,
    active: np.ndarray,
    *,
    sizes: Sizes = SIZES,
    settings: CurvatureSettings = CURVATURE,
) -> Curvature:
    """The eigenvalues at a KKT point off kinks; see above. Costs O(P^3).

    Of a system within a subspace they are those of the directions in it: of all others they are 1.
    Beyond `sizes.factored` parameters, or dimensions of the subspace, only the 16 nearest to -0.01
    are sought, and a few to the left of them, by Arnoldi's method; where it finds none, all.

    Args:
        at: the KKT system at the point.
        active: its active margins. Shape (m,).
    """
    inner = at.on_basis
    large = len(inner.hessian) > sizes.factored
    few = _smallest(inner, active, settings) if large else None
    found = _all(inner, active, settings) if few is None else few
    return replace(found, vectors=at.vectors(found.vectors))


def _all(at: KKTSystem, active: np.ndarray, settings: CurvatureSettings) -> Curvature:
    """All eigenvalues, in bases Z of the tangent space and W of the space orthogonal to the active
    gradients.
    """
    tangent = complement(at.slopes[active], settings.rank)
    scale = max(1.0, float(np.abs(at.hessian).max()))
    across = np.abs(at.slopes[active] - at.gradients[active]).max(initial=0.0)
    size = np.abs(at.gradients[active]).max(initial=1.0)
    asymmetry = np.abs(at.hessian - at.hessian.T).max() / scale
    symmetric = bool(across <= settings.symmetric * size and asymmetry <= settings.symmetric)
    if symmetric:
        values, small = _spectrum(between(tangent, at.hessian, tangent), None, symmetric)
    else:
        normal = complement(at.gradients[active], settings.rank)
        mass = between(normal, np.eye(len(at.hessian)), tangent)
        values, small = _spectrum(between(normal, at.hessian, tangent), mass, symmetric)
    return _curvature(values, tangent.lifted(small), symmetric, _ZERO * scale)


def _smallest(at: KKTSystem, active: np.ndarray, settings: CurvatureSettings) -> Curvature | None:
    """Eigenvalues near 0, and some to the left of all of them; None where none is found.

    On the tangent space they are those of `P H`, with G and S the active gradients and slopes and
    `P = I - G^T (S G^T)^-1 S`, the projector that removes the motion against the active margins.
    """
    nearest, vectors = _nearest(at, active, settings)
    if not len(nearest):
        return None
    leftmost, others = _leftmost(at, active, settings)
    aside = settings.aside
    # Within the circle about -aside that holds the nearest ones there are no others.
    beyond = np.real(leftmost) < -aside - np.abs(nearest + aside).max()
    values = np.concatenate([leftmost[beyond], nearest])
    vectors = np.concatenate([others[:, beyond], vectors], axis=1)
    order = np.argsort(np.real(values))
    scale = max(1.0, float(np.abs(at.hessian).max()))
    return _curvature(values[order], vectors[:, order], False, _ZERO * scale)


def _nearest(
    at: KKTSystem, active: np.ndarray, settings: CurvatureSettings
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues nearest to -aside, by Arnoldi's method for the inverse of `P (H + aside)`. The
    inverse maps r to the x that solves `(H + aside) x - G^T nu = r, S x = 0`.
    """
    size, count = len(at.stationarity), np.count_nonzero(active)
    # Slopes may be linearly dependent, as those of an example that occurs twice. The small numbers
    # in the corner of the matrix keep it invertible then.
    matrix = at.bordered(active, shift=settings.aside, corner=settings.rank)
    factors = lu_factor(matrix, overwrite_a=True, check_finite=False)

    def inverse(vector: np.ndarray) -> np.ndarray:
        in_time()
        right = np.concatenate([np.ravel(vector), np.zeros(count)])
        return lu_solve(factors, right, check_finite=False)[:size]

    sought = settings.num_nearest, "LM", 1e-10
    values, vectors = _outermost(inverse, size, *sought, settings)
    return 1 / values - settings.aside, vectors


def _leftmost(
    at: KKTSystem, active: np.ndarray, settings: CurvatureSettings
) -> tuple[np.ndarray, np.ndarray]:
    """A few of the smallest eigenvalues."""
    slopes, gradients, away = at.slopes[active], at.gradients[active], settings.away
    inverse = np.linalg.pinv(slopes @ gradients.T, rcond=settings.rank)

    def project(vector: np.ndarray) -> np.ndarray:
        return vector - gradients.T @ (inverse @ (slopes @ vector))

    def product(vector: np.ndarray) -> np.ndarray:
        in_time()
        along = project(np.ravel(vector))
        # So shifted the spectrum is negative on the tangent space and 0 across it. The errors of
        # Arnoldi's method are relative to `away`.
        return project(at.hessian @ along) - away * along

    sought = settings.num_leftmost, "SR", settings.leftmost_error / away
    values, vectors = _outermost(product, len(at.stationarity), *sought, settings)
    return values + away, vectors


def _outermost(
    product: Callable[[np.ndarray], np.ndarray],
    size: int,
    count: int,
    which: str,
    error: float,
    settings: CurvatureSettings,
) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues that Arnoldi's method finds, and the real parts of their eigenvectors."""
    operator = cast(Any, LinearOperator)((size, size), matvec=product, dtype=float)
    start = np.random.default_rng(0).normal(size=size)
    bases = min(size, settings.num_vectors)
    options: Any = {"k": count, "which": which, "v0": start, "ncv": bases, "tol": error}
    try:
        values, vectors = cast(Any, eigs)(operator, maxiter=settings.most_restarts, **options)
    except ArpackNoConvergence as failure:
        values, vectors = failure.eigenvalues, failure.eigenvectors
    return values, vectors.real


def kinked_curvature(point: KKTPoint, *, settings: CurvatureSettings = CURVATURE) -> Curvature:
    """The eigenvalues at a KKT point at kinks. Costs O((P + k)^3), k active margins and kinks.

    There the flow stays on the kinks, as it keeps the active margins equal. Let z = (lambda, phi)
    and c(theta, z) = (q - 1, v). In the smoothed flow at a finite kappa, z is a function of theta,
    `(dc/dz + E) dz = -dc/dtheta dtheta`, `E = diag(1/(kappa lambda), -mu w / cos^2 phi)`, so that
    the linearisation of the flow is

        H - dF/dz (dc/dz + E)^-1 dc/dtheta,    F = theta - sum_i lambda_i grad q_i.

    It is evaluated for kappa and 1/mu as large as rounding allows. The eigenvalues that do not grow
    with them are those of the motion along active margins and kinks. In this way no rank has to be
    decided, and constraints may be repeated, as where a weight of 0 gives the same kink to all
    examples. If the matrix is not symmetric, rounding in its large eigenvalues would spoil the
    small ones. Then these are found as those of the pencil
    `[[H, dF/dz], [dc/dtheta, dc/dz + E]] x = value diag(I, 0) x`, by the QZ method.
    """
    at, active = point.linearized, np.count_nonzero(point.active)
    matrix, slack, size = at.bordered(point.active), _slack(point), len(at.hessian)
    hessian = matrix[:size, :size]
    scale = max(1.0, float(np.abs(hessian).max()))
    # The matrix is symmetric if the gradients are the margins' own and no attack depends on the
    # angles.
    slopes, pulls = matrix[size : size + active, :size], matrix[:size, size : size + active]
    asymmetries = hessian - hessian.T, slopes + pulls.T, matrix[size:, size:]
    largest = [np.abs(part).max(initial=0.0) for part in asymmetries]
    symmetric = bool(max(largest) <= settings.symmetric * scale)
    inner = np.arange(size, len(matrix))
    matrix[inner, inner] += slack / (
        settings.stiffness if symmetric else settings.stiffness_of_pencils
    )
    if symmetric:
        forced = np.linalg.solve(matrix[size:, size:], matrix[size:, :size])
        values, vectors = _spectrum(hessian - matrix[:size, size:] @ forced, None, symmetric)
    else:
        mass = np.diag(np.where(np.arange(len(matrix)) < size, 1.0, 0.0))
        values, vectors = _spectrum(matrix, mass, symmetric)
    slow = np.abs(np.real(values)) < np.sqrt(settings.stiffness) * scale
    tolerance = settings.tolerance_at_kinks * scale
    return _curvature(values[slow], at.vectors(vectors[:size, slow]), symmetric, tolerance)


def _slack(point: KKTPoint) -> np.ndarray:
    """The diagonal of E, times kappa for the margins and 1/mu for the switches. Shape (k,)."""
    switches = point.linearized.switches
    assert switches is not None
    cosines = np.sqrt(np.maximum(1 - point.coefficients[point.at_kink] ** 2, 1e-12))
    scales = switches.scales[point.at_kink]
    return np.concatenate([1 / point.multipliers[point.active], -scales / cosines**2])


def _spectrum(
    matrix: np.ndarray, mass: np.ndarray | None, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues and real parts of eigenvectors, smallest real parts first."""
    if symmetric:
        # By divide and conquer: where many eigenvalues are equal, as the 1 of all directions that
        # the margins do not bend in, four times as fast as by relatively robust representations.
        return eigh(0.5 * (matrix + matrix.T), driver="evd", check_finite=False)
    pencil: Any = eig(matrix, mass)
    values, vectors = pencil
    finite = np.isfinite(values)
    values, vectors = values[finite], vectors[:, finite]
    order = np.argsort(values.real)
    return values[order], vectors.real[:, order]


def _curvature(
    values: np.ndarray, vectors: np.ndarray, symmetric: bool, tolerance: float
) -> Curvature:
    """The curvature from complex eigenvalues, with vectors scaled to norm 1."""
    parts, unit = (np.real(values), np.abs(np.imag(values))), _unit_columns(vectors)
    return Curvature(parts[0], unit, symmetric, tolerance, parts[1])


def _unit_columns(vectors: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(vectors, axis=0)
    return vectors / np.where(lengths > 0, lengths, 1.0)
