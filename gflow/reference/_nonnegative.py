"""SciPy's nonnegative least squares, with its failures told by None."""

from scipy.linalg import LinAlgError
from scipy.optimize import nnls

from gflow.reference._norms import Array


def nonnegative_least_squares(system: Array, target: Array) -> tuple[Array, float] | None:
    """`argmin |A u - b|_2` subject to `u >= 0`, and the residual's norm; None if SciPy gives up.

    SciPy raises RuntimeError at its limit of iterations; its own, 3n, was enough on all data tried
    and is raised further here. Releases before 1.15 solve normal equations and may also fail with
    LinAlgError or ValueError on degenerate data.

    Shapes: system (m, n), target (m,); u (n,).
    """
    try:
        return nnls(system, target, maxiter=30 * sum(system.shape))
    except (RuntimeError, LinAlgError, ValueError):
        return None
