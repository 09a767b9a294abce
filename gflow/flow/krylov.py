"""The stiff part of the flow's Jacobian, in the space of the examples: a preconditioner.

Where kappa is large the Jacobian of `(u, log rho)` is, but for a part that does not grow with it,

    J ~ -G^T C S - D,   C = -dp/d(kappa q),   D = L sum_i p_i q_i (I - u u^T),

where `G^T C S` has at most the rank of the number of margins with weights p above rounding. The
rows of G are `((I - u u^T) grad q_i, L q_i)`, the motion of the path per weight of a margin. Those
of S are kappa times `(dq_i/du, L q_i)`, the change of a margin along the path; with frozen
perturbations the two differ. Without the part that does not grow, `(shift - J)^-1` follows from the
Sherman-Morrison-Woodbury formula, with a matrix of the size of the number of margins. A few
iterations correct for that part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from gflow._numerics import scaled_margins
from gflow.flow.field import Field, unit_direction
from gflow.kkt.system import gradient_rows
from gflow.problem import GradientMode
from gflow.stiff.operators import Operator, Vector


class StiffPart(NamedTuple):
    """`J ~ -G^T C S - D` at one point, of the heaviest margins.

    Attributes:
        unit: u. Shape (P,).
        gradients: G. Shape (m, P + 1).
        slopes: S. Shape (m, P + 1).
        coupling: C, for the exponential loss `diag p - p p^T`. Shape (m, m).
        damping: `L sum_i p_i q_i`, or 0 if that is negative.
    """

    unit: Float[Array, " P"]
    gradients: Float[Array, "m path"]
    slopes: Float[Array, "m path"]
    coupling: Float[Array, "m m"]
    damping: Float[Array, ""]


def stiff_part(field: Field, path: Float[Array, " path"], rank: int) -> StiffPart:
    """The stiff part of the Jacobian of `(u, log rho)` by its heaviest margins.

    Those of the examples of largest weight, `rank` margins in all at most. Memory: G
    and S, which are one for clean data and for total gradients.
    """
    problem = field.problem
    state = jnp.append(path, 0.0)
    unit, log_kappa = unit_direction(state), field.capped(state)
    params = field.layout.unflatten(unit)
    ascent = problem.ascent(params, log_kappa)
    of_class = 1 if ascent.margins.ndim == 1 else ascent.margins.shape[1]
    weights = ascent.weights.reshape(-1, of_class).sum(axis=1)
    _, heaviest = lax.top_k(weights, min(len(weights), max(1, rank // of_class)))
    margins = ascent.margins[heaviest]

    def rows(mode: GradientMode | None) -> Array:
        """`(I - u u^T) grad q_i`."""
        matrix = gradient_rows(problem, params, heaviest, mode)
        return matrix - (matrix @ unit)[:, None] * unit

    gradients = rows(None)
    slopes = gradients if problem.gradients_are_slopes else rows("total")
    kappa = jnp.exp(log_kappa)
    growth = problem.degree * margins.reshape(-1, 1)
    free = jnp.where(field.log_kappa(state) < field.log_cap, growth, 0.0)
    return StiffPart(
        unit,
        jnp.concatenate([gradients, growth], axis=1),
        kappa * jnp.concatenate([slopes, free], axis=1),
        _coupling(field, margins, kappa, ascent.log_weight),
        # Before the data are separated the sum is negative, growth and not damping: left out.
        jnp.maximum(problem.degree * jnp.vdot(ascent.weights, ascent.margins), 0.0),
    )


def _coupling(field: Field, margins: Array, kappa: Array, log_weight: Array) -> Array:
    """`-dp/d(kappa q)` among these margins. Shapes: margins (m,) or (m, k - 1) -> square."""
    logits = scaled_margins(kappa, margins)
    log_weights = field.problem.loss.log_weights

    def weights(shift: Array) -> Array:
        moved = log_weights(logits + shift.reshape(logits.shape)).ravel()
        # The contribution of all other margins to the normalising sum is held fixed.
        here = logsumexp(log_weights(logits))
        rest = -jnp.expm1(jnp.minimum(here - log_weight, -1e-15))
        total = jnp.logaddexp(logsumexp(moved), log_weight + jnp.log(rest))
        return jnp.exp(moved - total)

    return -jax.jacfwd(weights)(jnp.zeros(margins.size))


def woodbury(part: StiffPart, shift: Array) -> Operator:
    """The function `r -> (shift + G^T C S + D)^-1 r`."""
    damped = shift + part.damping

    def undamped(r: Vector) -> Vector:
        """`(shift + D)^-1 r`: along u and for log rho there is no damping."""
        radial = (part.unit @ r[:-1]) * part.unit
        return jnp.append((r[:-1] - radial) / damped + radial / shift, r[-1] / shift)

    scale = jnp.append(jnp.full_like(part.unit, 1 / damped), 1 / shift)
    # The rows of G and S are tangent to the sphere, so there D is a multiple of the identity.
    kernel = part.coupling @ ((part.slopes * scale) @ part.gradients.T)
    small = jnp.linalg.solve(jnp.eye(len(kernel)) + kernel, part.coupling)

    def solve(r: Vector) -> Vector:
        start = undamped(r)
        return start - scale * ((small @ (part.slopes @ start)) @ part.gradients)

    return solve
