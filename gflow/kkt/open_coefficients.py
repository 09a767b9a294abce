"""Coefficients at kinks that stationarity leaves open, and what they do to the curvature.

The coefficient `s_k` of a switch may have no influence on `F = theta - sum_i lambda_i grad q_i`, if
all that it multiplies is 0: for instance where both weights `u_j = v_j = 0` of a coordinate of a
diagonal network of depth 2 vanish, under an l_inf attack. Then its column `dF/ds_k` is 0, and every
number in [-1, 1] solves the KKT system: the coefficient is open. If columns are linearly dependent,
combinations of coefficients are open in the same way. Open coefficients do act on the derivative
`H = dF/dtheta`, which is affine in them:

    H(s + ds) = H(s) + sum_k ds_k D_k,    D_k = d^2 F / (dtheta ds_k).

Next to the point, at `theta + h`, a switch has the sign of its `v_k(theta + h)`: of `dv_k . h`, or
of `h^T V_k h`, V_k the Hessian of v_k, where the gradient vanishes too.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._programs import compiled_for_some_calls
from gflow.kkt.batches import padded_chunks
from gflow.kkt.point import KKTPoint
from gflow.kkt.switches import alone_with, switched_margins
from gflow.problem import Problem

# The first: a coefficient is open if its whole effect on F is, to first order, that of moving theta
# by less than this part of |theta|. The second: only coefficients that change F by less than this
# part of |theta| |H| are examined.
_NEXT_TO, _CLOSE = 1e-5, 1e-4
# H is `I - ...` at unit margin: a change of its entries by less is rounding.
_NOTHING = 1e-9
# Columns of length 1 depend on each other where a singular value is below this.
_RANK = 1e-6
# The number of switches for which derivatives are computed side by side, and in one call.
_BATCH, _CHUNK = 64, 256


class Effects(NamedTuple):
    """Derivatives by the coefficients of k switches, at a point and along one vector r_k for each.

    Attributes:
        columns: `dF/ds_k`. Shape (k, P).
        turned: `D_k r_k`. Shape (k, P).
        rows: `dv_k/dtheta`. Shape (k, P).
        bent: `V_k r_k`. Shape (k, P).
    """

    columns: np.ndarray
    turned: np.ndarray
    rows: np.ndarray
    bent: np.ndarray


class OpenSwitches:
    """The switches at a KKT point at kinks whose coefficients are open, alone or together.

    Attributes:
        places: (example, switch) of each. Shape (k, 2).
        coefficients: s of each at the point. Shape (k,).
        vanishing: whether the column of each is 0, so that the switch does not keep the flow on its
            kink. Shape (k,).
        variables: of the KKT point.
    """

    def __init__(self, problem: Problem, layout: Layout, point: KKTPoint):
        self._problem, self._layout = problem, layout
        self.variables, self.places = point.variables, _candidates(point)
        # The image of a random normal vector under D_k has about the Frobenius norm of D_k.
        probe = np.random.default_rng(0).normal(size=point.theta.size)
        effects = self.effects(probe)
        columns = np.linalg.norm(effects.columns, axis=1)
        turned = np.linalg.norm(effects.turned, axis=1)
        self.vanishing = columns <= _NEXT_TO * turned * np.linalg.norm(point.theta)
        # If no coefficient changes H, whose entries are of the order of 1, none matters.
        if not (turned > _NOTHING).any():
            self.places, self.vanishing = self.places[:0], self.vanishing[:0]
        self.coefficients = point.coefficients[tuple(self.places.T)]

    def effects(self, vectors: np.ndarray, which: np.ndarray | None = None) -> Effects:
        """The effects of the switches, each along its own vector or all along the same.

        Args:
            vectors: r. Shape (P,) or (k, P).
            which: indices of switches, which may repeat; all by default. Shape (k,).
        """
        places = self.places if which is None else self.places[which]
        vectors = np.broadcast_to(vectors, (len(places), vectors.shape[-1]))
        effects = Effects(*[np.empty(vectors.shape) for _ in Effects._fields])
        chunks = padded_chunks(places, _CHUNK, 0), padded_chunks(vectors, _CHUNK, 0)
        for (chunk, given), (_, along) in zip(*chunks, strict=True):
            found = _effects(self._problem, self._layout, self.variables, given, along)
            for whole, part in zip(effects, found, strict=True):
                whole[chunk] = np.asarray(part)[: chunk.stop - chunk.start]
        return effects


def _candidates(point: KKTPoint) -> np.ndarray:
    """Switches at kinks whose columns are nearly 0 or linearly dependent. Shape (k, 2)."""
    places, size = np.argwhere(point.at_kink), point.theta.size
    if not len(places):
        return places
    at = point.linearized
    assert at.switches is not None
    # By the coefficient `sin phi` instead of the angle.
    cosines = np.sqrt(np.maximum(1 - point.coefficients[point.at_kink] ** 2, _NOTHING))
    columns = at.switches.columns[:size] / cosines
    most = _CLOSE * max(1.0, np.abs(at.hessian).max()) * np.linalg.norm(point.theta)
    small = np.linalg.norm(columns, axis=0) <= most
    return places[small | dependent(np.where(small, 0.0, columns)).any(axis=1)]


def dependent(columns: np.ndarray) -> np.ndarray:
    """The projector onto the coefficients of combinations of columns that are 0, with 0 for entries
    that are rounding. Shapes: (P, k) -> (k, k).
    """
    lengths = np.linalg.norm(columns, axis=0)
    normed = columns / np.where(lengths > 0, lengths, 1.0)
    _, values, right = np.linalg.svd(normed, full_matrices=False)
    # A combination c of the columns themselves is one `lengths * c` of those of length 1.
    spanned = right[values > _RANK] * lengths
    basis = np.linalg.qr(spanned.T)[0] if len(spanned) else np.zeros((len(lengths), 0))
    found = np.eye(len(lengths)) - basis @ basis.T
    return np.where(np.abs(found) > _NOTHING, found, 0.0)


@compiled_for_some_calls
def _effects(
    problem: Problem, layout: Layout, variables: Any, places: Any, vectors: Any
) -> tuple[Float[Array, "k P"], ...]:
    """The parts of `Effects` for the switches at `places`, along one vector for each."""
    theta, multipliers, angles = map(jnp.asarray, variables)
    multipliers = multipliers.reshape(len(angles), -1)

    def one(given: tuple[Array, Array]) -> tuple[Array, ...]:
        (index, switch), vector = given
        alone = alone_with(problem, index)

        def margins(theta: Array, free: Array, angle: Array) -> tuple[Array, Array]:
            moved = layout.unflatten(free)
            attacker = layout.unflatten(theta) if problem.gradient_mode == "frozen" else moved
            own = angles[index].at[switch].set(angle)[None]
            found, decided = switched_margins(alone, attacker, moved, own, 0.0)
            return multipliers[index] @ found.reshape(-1), decided.values[0, switch]

        def pull(theta: Array, angle: Array) -> Array:
            return -jax.grad(lambda free: margins(theta, free, angle)[0])(theta)

        # At the angle 0 the derivatives by the angle and by its sine are the same.
        def column(theta: Array) -> Array:
            return jax.jvp(lambda angle: pull(theta, angle), (jnp.zeros(()),), (jnp.ones(()),))[1]

        def row(theta: Array) -> Array:
            return jax.grad(lambda moved: margins(moved, moved, angles[index, switch])[1])(theta)

        return *jax.jvp(column, (theta,), (vector,)), *jax.jvp(row, (theta,), (vector,))

    return lax.map(one, (jnp.asarray(places), jnp.asarray(vectors)), batch_size=_BATCH)
