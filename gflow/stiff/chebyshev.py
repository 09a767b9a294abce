"""A stabilised explicit solver for diffrax, for networks too large for linear algebra.

Each stage costs one evaluation of the field. The interval of the negative real axis on which the
method is stable grows like the square of the number of stages; that of ordinary explicit methods
grows like the number. This suits the flow, whose stiff eigenvalues are real and negative, or nearly
so. The few largest of them can be treated implicitly.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._checks import is_integer, is_real
from gflow._description import storable
from gflow._signatures import named
from gflow.stiff.subspace import ImplicitPart, Subspace, implicit_part, random_subspace, renewed
from gflow.stiff.traits import FlatSolver, Gains, Traits

# The error estimate is large for steps a little beyond the interval of stability, and small for
# steps a little inside. `reach` and `recover` keep steps from going beyond it often: without these
# bounds 28 % of the steps were rejected on MNIST.
_GAINS = Gains(this=0.6, last=0.2, shrink=0.6, grow=2.0, reach=0.8, recover=1.01)


class Coefficients(eqx.Module):
    """The coefficients for s stages; row j belongs to stage j + 2.

    `Y_j = Y_0 + mu_j (Y_{j-1} - Y_0) + nu_j (Y_{j-2} - Y_0) + h rates_j F_{j-1} + h first_j F_0`.
    """

    first_rate: float = eqx.field(static=True)
    mu: np.ndarray
    nu: np.ndarray
    rates: np.ndarray
    first: np.ndarray
    nodes: np.ndarray


def chebyshev(num_stages: int, damping: float) -> Coefficients:
    """The coefficients of RKC2. Source: Sommeijer, Shampine & Verwer 1997, equations (2.1-2.9).

    Except that `b_1 = 1/w_0`, as in Verwer & Sommeijer 2004: then the implicit part has the same
    factor `first_rate` h in every stage.
    """
    w0 = 1 + damping / num_stages**2
    value, slope, bend = np.zeros((3, num_stages + 1))
    value[:2], slope[1] = (1.0, w0), 1.0
    for j in range(2, num_stages + 1):  # Chebyshev polynomials and two derivatives, at w0
        value[j] = 2 * w0 * value[j - 1] - value[j - 2]
        slope[j] = 2 * value[j - 1] + 2 * w0 * slope[j - 1] - slope[j - 2]
        bend[j] = 4 * slope[j - 1] + 2 * w0 * bend[j - 1] - bend[j - 2]
    w1 = slope[-1] / bend[-1]
    b = np.ones(num_stages + 1)
    b[2:] = bend[2:] / slope[2:] ** 2
    b[:2] = b[2], 1 / w0
    node = np.zeros(num_stages + 1)
    node[2:] = w1 * bend[2:] / slope[2:]
    node[1] = b[1] * w1
    a = 1 - b * value
    rates = 2 * w1 * b[2:] / b[1:-1]
    return Coefficients(
        float(b[1] * w1),
        mu=2 * w0 * b[2:] / b[1:-1],
        nu=-b[2:] / b[:-2],
        rates=rates,
        first=-a[1:-1] * rates,
        nodes=node[1:-1],
    )


@storable("RungeKuttaChebyshev")
class RungeKuttaChebyshev(FlatSolver):
    """RKC2, of order 2, for a state that is one flat vector; or its implicit-explicit variant.

    It is stable for `h lambda` in `[-0.65 s^2, 0]`, s = `num_stages`, and in a narrow strip around
    it. A step costs s evaluations of the field; memory is that of six states, whatever s. Steps
    beyond the interval show in the error estimate, and are shortened.

    With `num_implicit` directions k > 0 the field is split into `B (y - y0)` and the rest, B the
    Jacobian restricted to the k directions in which it is largest (`gflow.stiff.subspace`), and B
    is treated implicitly at every stage: then lambda is the largest of the other eigenvalues. Two
    more evaluations a step follow the directions, and memory grows by that of 4 k states. In these
    directions the order is 1, with an error constant that falls like 1/s^2.

    Args:
        num_stages: s >= 2.
        num_implicit: k >= 0.
        damping: epsilon > 0; a larger one widens the strip, which nearly real eigenvalues need, as
            of frozen perturbations, and shortens the interval by a factor `1 - 2 epsilon / 15`.

    Raises:
        ValueError: fewer than two stages, no damping, or more directions than unknowns.

    Source: Sommeijer, Shampine & Verwer 1997, "RKC: an explicit solver for parabolic PDEs", J.
    Comput. Appl. Math. 88; Verwer & Sommeijer 2004, "An implicit-explicit Runge-Kutta-Chebyshev
    scheme for diffusion-reaction equations", SIAM J. Sci. Comput. 25.
    """

    num_stages: int = eqx.field(static=True)
    num_implicit: int = eqx.field(static=True)
    damping: float = eqx.field(static=True)

    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation

    @named()
    def __init__(self, num_stages: int = 12, *, num_implicit: int = 0, damping: float = 2 / 13):
        counts = ("", num_stages, 2), ("num_implicit=", num_implicit, 0)
        for name, value, least in counts:
            if not is_integer(value) or value < least:
                raise ValueError(
                    f"`RungeKuttaChebyshev({name}{value!r})`: an integer of at least {least} is "
                    "needed."
                )
        if not (is_real(damping) and 0 < damping < 7):
            raise ValueError(f"`RungeKuttaChebyshev(damping={damping!r})` must lie in (0, 7).")
        self.num_stages, self.num_implicit = int(num_stages), int(num_implicit)
        self.damping = float(damping)

    def traits(self, size: int) -> Traits:
        return Traits(type(self).__name__, cost=self.num_stages, gains=_GAINS, first_step=1.0)

    def order(self, terms: Any) -> int:
        return 1 if self.num_implicit else 2

    def error_order(self, terms: Any) -> int:
        return 2 if self.num_implicit else 3

    def init(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any
    ) -> tuple[Float[Array, " P"], Subspace]:
        """The field at the start, and directions; every step hands on those at its end."""
        if self.num_implicit > y0.size:
            raise ValueError(
                f"`RungeKuttaChebyshev(num_implicit={self.num_implicit})`: there are only "
                f"{y0.size} unknowns."
            )
        return terms.vf(t0, y0, args), random_subspace(self.num_implicit, y0)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Array], Any, diffrax.RESULTS]:
        del made_jump

        def field(t: Any, y: Array) -> Array:
            return terms.vf(t, y, args)

        h, (k0, subspace) = t1 - t0, solver_state
        by = chebyshev(self.num_stages, self.damping)
        subspace = renewed(subspace, lambda y: field(t0, y), y0, k0)
        part = implicit_part(subspace, h * by.first_rate)
        offset = _offset(by, field, t0, h, y0, k0, part)
        y1 = y0 + offset
        k1 = field(t1, y1)
        error = 0.4 * h * (k0 + k1) - 0.8 * offset
        # The implicit part damps some of this estimate, which is not an error of the step.
        error, _ = part.solve(error, jnp.zeros(self.num_implicit))
        # diffrax's interpolation takes slopes multiplied by the step.
        dense = {"y0": y0, "y1": y1, "k0": h * k0, "k1": h * k1}
        return y1, error, dense, (k1, subspace), _SUCCESS


_SUCCESS = diffrax.RESULTS.successful


def _offset(
    by: Coefficients,
    field: Callable[[Any, Array], Array],
    t0: Any,
    h: Any,
    y0: Array,
    k0: Array,
    part: ImplicitPart,
) -> Array:
    """`y1 - y0`. Offsets Y from y0 rather than points: they are small, and keep their digits.

    To the right-hand side of a stage the implicit part adds, m being `first_rate`,
    `m h B Y_j - rates_j h B Y_{j-1} - nu_j m h B Y_{j-2}`. Source: Verwer & Sommeijer 2004,
    equation (2.4), for a split that is linear about y0.
    """
    rows = by.mu, by.nu, by.rates, by.first, by.nodes
    mu, nu, rates, first, nodes = map(jnp.asarray, rows)

    def stage(j: Array, offsets: tuple[Array, ...]) -> tuple[Array, ...]:
        before, along_before, last, along_last = offsets
        value = field(t0 + nodes[j] * h, y0 + last)
        right = mu[j] * last + nu[j] * before + h * (rates[j] * value + first[j] * k0)
        along = -h * rates[j] * along_last - nu[j] * part.scale * along_before
        return last, along_last, *part.solve(right, along)

    nothing = jnp.zeros(len(part.within))
    start = jnp.zeros_like(y0), nothing, *part.solve(h * by.first_rate * k0, nothing)
    return lax.fori_loop(0, len(by.mu), stage, start)[2]
