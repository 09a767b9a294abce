"""The largest eigenvalue of the Hessian of the loss, by Lanczos' method, without the matrix."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh

from gflow._checks import one_of
from gflow._layout import Layout
from gflow._numerics import tree_dot, tree_scale
from gflow._points import of_point
from gflow._programs import compiled
from gflow._typing import Params
from gflow.problem import Problem

# ARPACK needs more dimensions than vectors that it keeps; below, the matrix itself is formed.
_SMALL = 24
# Multiplications with the Hessian at most, in units of the vectors kept, of which there are 20.
_RESTARTS = 100


@of_point
def sharpness(
    problem: Problem,
    params: Params,
    *,
    objective: Literal["loss", "log_loss"] = "loss",
    mean: bool = False,
    tolerance: float = 1e-6,
) -> float:
    """The largest eigenvalue of `hess Loss(params)`, `Loss = sum_i l(q_i)`.

    Gradient descent with steps h is stable along the eigenvector only while `h * sharpness < 2`;
    training often comes to that edge and stays there (Cohen et al. 2021).

    It is the Hessian of the loss that the problem's gradient mode differentiates: for "frozen" with
    the perturbations held fixed, for "total" through them. Both are symmetric. At kinks (ReLU) it
    is that of the piece at hand.

    Args:
        objective: "log_loss" for the Hessian of `log Loss`, which belongs to steps normalised by
            the loss, and does not underflow.
        mean: whether the loss is the mean over examples instead of their sum.
        tolerance: relative, of the eigenvalue.

    Raises:
        ValueError: an unknown objective.
        ArithmeticError: Lanczos' method did not converge, as at values that are not finite.

    Source: Cohen, Kaur, Li, Kolter & Talwalkar 2021, "Gradient descent on neural networks typically
    occurs at the edge of stability"; Lanczos' method with implicit restarts from ARPACK, by SciPy.
    """
    if not one_of(objective, ("loss", "log_loss")):
        raise ValueError(f"`sharpness(objective={objective!r})`: choose 'loss' or 'log_loss'.")
    params = jax.tree.map(jnp.asarray, params)
    layout, logarithmic = Layout.of(params), objective == "log_loss"
    size = layout.size
    if not np.isfinite(float(problem.log_loss(params))):
        raise ArithmeticError("`sharpness`: the loss is no finite number.")

    def times(vector: np.ndarray) -> np.ndarray:
        direction = layout.unflatten(jnp.asarray(vector, float).ravel())
        return np.asarray(layout.flatten(_hessian_times(problem, params, direction, logarithmic)))

    if size <= _SMALL:
        matrix = np.stack([times(row) for row in np.eye(size)])
        largest = float(np.linalg.eigvalsh(0.5 * (matrix + matrix.T))[-1])
    else:
        largest = _largest(times, size, tolerance)
    if logarithmic:
        return largest
    count = len(problem.dataset) if mean else 1
    return largest * float(jnp.exp(problem.log_loss(params))) / count


def _largest(times: Any, size: int, tolerance: float) -> float:
    start = np.random.default_rng(0).normal(size=size)
    if not np.any(times(start)):  # a Hessian of zeros, with which ARPACK cannot begin
        return 0.0
    operator: Any = LinearOperator((size, size), matvec=times, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    try:
        values = eigsh(
            operator,
            k=1,
            which="LA",
            v0=start,
            tol=tolerance,  # pyright: ignore[reportArgumentType]
            maxiter=_RESTARTS,
            return_eigenvectors=False,
        )
    except ArpackNoConvergence as error:
        raise ArithmeticError(f"`sharpness`: Lanczos' method did not converge ({error}).") from None
    return float(values[0])


@compiled
def _hessian_times(
    problem: Problem, params: Params, direction: Params, logarithmic: bool
) -> Params:
    """`hess log Loss v`, or `hess Loss v / Loss`, neither of which underflows."""
    margins_of = problem.free_margins(params)

    def log_loss(free: Params) -> Float[Array, ""]:
        return problem.loss.log_loss(margins_of(free))

    slope, curved = jax.jvp(jax.grad(log_loss), (params,), (direction,))
    if logarithmic:
        return curved
    # hess L / L = hess log L + grad log L grad log L^T
    along = tree_dot(slope, direction)
    return jax.tree.map(lambda a, b: a + b, curved, tree_scale(along, slope))
