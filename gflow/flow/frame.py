"""The frame of a linearly implicit step: the parameters over a norm that grows at a constant rate.

In polar coordinates the rate of log rho is `L sum_i p_i q_i`. If the radius equals the margin, the
q_i are of the order of 1/rho, and on the slow motion their weighted sum is only of the order of
1/rho^2. An error in the weights p of a stage is then amplified by rho in log rho, and steps would
have to shrink as the norm grows. In the parameters themselves the same error affects only
components that the flow damps at once. So a step is made in the coordinates (w, s),

    w = params exp(-s),   dw/dtau = |w| sum_i p_i grad q_i(w/|w|) - g w,   ds/dtau = g,

with `g = L sum_i p_i q_i` at the start of the step, held fixed. It starts at `w = u`, `s = log rho`
and ends at `u = w/|w|`, `log rho = s + log |w|`. Where the direction rests, w rests too, however
fast the norm grows, so that steps may be as long there as in polar coordinates.

A method gives the same step in any coordinates that are linear functions of these. The ones used
are w and, with u that of the start, the number `s + <u, w> - 1`, which is log rho to first order.
Far out w moves by less than 1/kappa in a step, and only the last number by much; it does not enter
u at all. This matters, since the Jacobian has entries as large as kappa, whose rounding multiplies
how far a coordinate moves: where the growth of the norm was a coordinate along u, the direction was
off by 2e-8 at kappa = 1e12, in one in which the logits hardly differ.

If the linear systems of a step are solved inexactly, by `Krylov`, the step is made in polar
coordinates instead (`Polar`): the error of such a solution along w is an error of log rho, and
because of it steps that are to end on a target became too short for floating-point numbers.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from gflow.flow.field import Field, path_slope
from gflow.problem import Ascent
from gflow.stiff.rosenbrock import RosenbrockInterpolation

Path = Float[Array, " path"]
"""A point in the coordinates of the frame, P + 1 numbers; at the start `(u, log rho)`."""


class Frame(NamedTuple):
    """The frame of a step.

    Attributes:
        unit, log_norm: u and log rho where it starts.
        growth: g.
    """

    unit: Float[Array, " P"]
    log_norm: Float[Array, ""]
    growth: Float[Array, ""]

    def moved(self, change: Path) -> tuple[Array, Array]:
        """The changes of w and s that belong to a change of the coordinates."""
        return change[:-1], change[-1] - self.unit @ change[:-1]

    def point(self, path: Path) -> tuple[Array, Array]:
        """w, and by how much s has grown since the start of the step."""
        w = path[:-1]
        return w, path[-1] - self.log_norm - self.unit @ (w - self.unit)

    def polar(self, path: Path) -> Float[Array, " path"]:
        """`(u, log rho)` there."""
        w, shift = self.point(path)
        length = jnp.sqrt(w @ w)
        return jnp.append(w / length, self.log_norm + shift + jnp.log(length))

    def slope(self, field: Field, path: Path, ascent: Ascent) -> Path:
        """`d path / d tau`, with the ascent at the direction of w."""
        w, _ = self.point(path)
        turn = jnp.sqrt(w @ w) * field.layout.flatten(ascent.vector) - self.growth * w
        return self.along(turn, self.growth)

    def along(self, turn: Float[Array, " P"], growth: Any) -> Path:
        """The change of the coordinates that belongs to changes of w and s."""
        return jnp.append(turn, growth + self.unit @ turn)

    def error(self, error: Path, path: Path) -> Float[Array, " path"]:
        """An error of the coordinates at a point as one of `(u, log rho)`."""
        (w, _), (change, shift) = self.point(path), self.moved(error)
        length = jnp.sqrt(w @ w)
        unit, across = w / length, change / length
        radial = unit @ across
        return jnp.append(across - radial * unit, shift + radial)

    def growths(self, end: Path, k: Float[Array, "r path"]) -> Float[Array, " 2"]:
        """By how much log rho would change over a step at its rates at both ends, along its dense
        output with the rows k.
        """
        start = jnp.append(self.unit, self.log_norm)
        turns = (end - start) + jnp.stack([k[0], -jnp.sum(k, axis=0)])
        return jnp.stack([self.error(turns[0], start)[-1], self.error(turns[1], end)[-1]])


class Polar(NamedTuple):
    """Polar coordinates `(u, log rho)` in place of a frame, with the methods of one.

    Attributes:
        unit, log_norm: u and log rho where a step starts.
    """

    unit: Float[Array, " P"]
    log_norm: Float[Array, ""]

    def polar(self, path: Path) -> Float[Array, " path"]:
        """`(u, log rho)` with u normalised again."""
        u = path[:-1]
        return jnp.append(u / jnp.sqrt(u @ u), path[-1])

    def slope(self, field: Field, path: Path, ascent: Ascent) -> Path:
        """`d path / d tau`, with the ascent at the direction of u."""
        return path_slope(field, jnp.append(path, 0.0), ascent)

    def along(self, turn: Float[Array, " P"], growth: Any) -> Path:
        """The change of the slope for a change of `sum_i p_i grad q_i`; that of the rate of log rho
        follows from its part along u by Euler's identity.
        """
        radial = self.unit @ turn
        return jnp.append(turn - radial * self.unit, growth + radial)

    def error(self, error: Path, path: Path) -> Float[Array, " path"]:
        """An error there without its part along u, which changes nothing."""
        del path
        across = error[:-1] - (self.unit @ error[:-1]) * self.unit
        return jnp.append(across, error[-1])

    def growths(self, end: Path, k: Float[Array, "r path"]) -> Float[Array, " 2"]:
        """By how much log rho would change over a step, as of `Frame.growths`."""
        return (end[-1] - self.log_norm) + jnp.stack([k[0, -1], -jnp.sum(k[:, -1])])


def frame_at(field: Field, path: Path, ascent: Ascent) -> Frame:
    """The frame of a step from `path = (u, log rho)`, with the ascent there."""
    growth = field.problem.degree * jnp.vdot(ascent.weights, ascent.margins)
    return Frame(path[:-1], path[-1], growth)


class FramedInterpolation(RosenbrockInterpolation):
    """The dense output of a step, as a state `(u, log rho, log(T + t))`.

    Attributes:
        framed: whether the step was made in a frame.
    """

    framed: Any

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> Array:
        if t1 is not None:
            return self.evaluate(t1) - self.evaluate(t0)
        state = super().evaluate(t0, left=left)
        start = self.y0[:-2], self.y0[-2]
        framed = Frame(*start, jnp.zeros(())).polar(state[:-1])
        path = jnp.where(self.framed, framed, Polar(*start).polar(state[:-1]))
        return jnp.append(path, state[-1])
