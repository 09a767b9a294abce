"""Coefficients at kinks that stationarity leaves open, and what they do to the curvature.

Where everything behind a sign or a ReLU vanishes, as both weights `u_j = v_j = 0` of a coordinate
of a diagonal network of depth 2 under an l_inf attack, the coefficient `s_k` of that switch drops
out of `F = theta - sum_i lambda_i grad q_i`, and any number in [-1, 1] solves the KKT system. It
does not drop out of the derivative `H = dF/dtheta`, in which it is affine:

    H(s) = H(0) + sum_k s_k D_k,    D_k = d^2 F / (dtheta ds_k).

Next to the point, at `theta + h`, the switch has the sign of `v_k(theta + h)`: of `dv_k . h`, or of
`h^T V_k h`, V_k the Hessian of v_k, where the gradient vanishes too. So the Lagrangian's own second
order is `h^T H(s(h)) h`, with the coefficients that fall to h.
"""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow.kinks.equations import Point
from gflow.kinks.found import Kinks
from gflow.problem import Problem
from gflow.switches import alone_with, switched_margins

# A coefficient is open where a step of this part of |theta| undoes what it does to F, to first
# order; worth a closer look where it changes F by less than that part of |theta| times |H|.
_NEXT_TO, _CLOSE = 1e-5, 1e-4
# H is `I - ...` at unit margin: a change of its entries by less is rounding.
_NOTHING = 1e-9
_BATCH, _CHUNK = 64, 256


class Effects(NamedTuple):
    """What the coefficients of k switches do, at a point and along a vector of each.

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
    """The switches at a KKT point at kinks whose coefficients are open.

    Attributes:
        places: (example, switch) of each. Shape (k, 2).
        point: the KKT point with their coefficients 0; all others as they are.
    """

    def __init__(self, problem: Problem, layout: Layout, kinks: Kinks):
        self._problem, self._layout = problem, layout
        self.point, self.places = kinks.point, _candidates(kinks)
        probe = np.random.default_rng(0).normal(size=kinks.theta.size)
        self.places = self.places[_open(self.effects(probe), float(np.linalg.norm(kinks.theta)))]
        self.point = _released(kinks.point, self.places)

    def effects(self, vectors: np.ndarray, which: np.ndarray | None = None) -> Effects:
        """What they do, each along its own vector or all along one.

        Args:
            vectors: r. Shape (P,) or (k, P).
            which: indices of switches, which may repeat; all by default. Shape (k,).
        """
        places = self.places if which is None else self.places[which]
        vectors = np.broadcast_to(vectors, (len(places), vectors.shape[-1]))
        parts = []
        for start in range(0, len(places), _CHUNK):
            chunk = slice(start, min(start + _CHUNK, len(places)))
            short = _CHUNK - (chunk.stop - start)
            given = np.pad(places[chunk], ((0, short), (0, 0)))
            along = np.pad(vectors[chunk], ((0, short), (0, 0)))
            found = _effects(self._problem, self._layout, self.point, given, along)
            parts.append([np.asarray(part)[: chunk.stop - start] for part in found])
        if not parts:
            return Effects(*[np.zeros((0, vectors.shape[-1]))] * 4)
        return Effects(*map(np.concatenate, zip(*parts, strict=True)))


def _candidates(kinks: Kinks) -> np.ndarray:
    """Switches at kinks that hardly change F, by the Jacobian at hand. Shape (k, 2)."""
    places, size = np.argwhere(kinks.at_kink), kinks.theta.size
    jacobian = kinks.jacobian
    columns = jacobian[:size, len(jacobian) - len(places) :]
    sines = kinks.coefficients[kinks.at_kink]
    by_sine = np.linalg.norm(columns, axis=0) / np.sqrt(np.maximum(1 - sines**2, _NOTHING))
    most = _CLOSE * max(1.0, np.abs(jacobian[:size, :size]).max()) * np.linalg.norm(kinks.theta)
    return places[by_sine <= most]


def _released(point: Point, places: np.ndarray) -> Point:
    angles = point.angles.copy()
    angles[tuple(places.T)] = 0.0
    return point._replace(angles=angles)


def _open(effects: Effects, length: float) -> np.ndarray:
    """Which coefficients stationarity leaves open, and the curvature does not. Shape (k,).

    Args:
        effects: along one normal random vector, whose image by D has the length of D's own entries.
    """
    column = np.linalg.norm(effects.columns, axis=1)
    turned = np.linalg.norm(effects.turned, axis=1)
    return (column <= _NEXT_TO * turned * length) & (turned > _NOTHING)


@eqx.filter_jit
def _effects(
    problem: Problem, layout: Layout, point: Any, places: Any, vectors: Any
) -> tuple[Float[Array, "k P"], ...]:
    theta, multipliers, angles = map(jnp.asarray, point)
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

        # At the angle 0 the derivative by it is that by its sine.
        def column(theta: Array) -> Array:
            return jax.jvp(lambda angle: pull(theta, angle), (jnp.zeros(()),), (jnp.ones(()),))[1]

        def row(theta: Array) -> Array:
            return jax.grad(lambda moved: margins(moved, moved, angles[index, switch])[1])(theta)

        return *jax.jvp(column, (theta,), (vector,)), *jax.jvp(row, (theta,), (vector,))

    return lax.map(one, (jnp.asarray(places), jnp.asarray(vectors)), batch_size=_BATCH)
