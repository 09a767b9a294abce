"""A stabilised explicit solver for diffrax: for networks too large for any linear algebra.

Its stages cost one evaluation of the field each, and the interval of the negative real axis on
which it is stable grows like the square of their number, where that of ordinary explicit methods
grows like the number: the flow's stiff eigenvalues are real and negative, or nearly so.
"""

from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from gflow._numerics import is_integer


class Coefficients(eqx.Module):
    """Of one number of stages s; row j belongs to stage j + 2.

    `Y_j = Y_0 + mu_j (Y_{j-1} - Y_0) + nu_j (Y_{j-2} - Y_0) + h rates_j F_{j-1} + h first_j F_0`.
    """

    first_rate: float = eqx.field(static=True)
    first_node: float = eqx.field(static=True)
    mu: np.ndarray
    nu: np.ndarray
    rates: np.ndarray
    first: np.ndarray
    nodes: np.ndarray


def chebyshev(num_stages: int, damping: float) -> Coefficients:
    """The coefficients of RKC2. Source: Sommeijer, Shampine & Verwer 1997, equations (2.1-2.9)."""
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
    b[:2] = b[2]
    node = np.zeros(num_stages + 1)
    node[2:] = w1 * bend[2:] / slope[2:]
    node[1] = node[2] / slope[2]
    a = 1 - b * value
    rates = 2 * w1 * b[2:] / b[1:-1]
    return Coefficients(
        float(b[1] * w1),
        float(node[1]),
        mu=2 * w0 * b[2:] / b[1:-1],
        nu=-b[2:] / b[:-2],
        rates=rates,
        first=-a[1:-1] * rates,
        nodes=node[1:-1],
    )


class RungeKuttaChebyshev(diffrax.AbstractAdaptiveSolver):
    """RKC2, of order 2, for a state that is one flat vector.

    It is stable for `h lambda` in `[-0.65 s^2, 0]`, s = `num_stages`, and in a narrow strip around
    it. A step costs s evaluations of the field; memory is that of six states, whatever s. Steps
    beyond the interval show in the error estimate, and are shortened.

    Args:
        num_stages: s >= 2.
        damping: epsilon > 0; a larger one widens the strip, which nearly real eigenvalues need, as
            of frozen perturbations, and shortens the interval by a factor `1 - 2 epsilon / 15`.

    Raises:
        ValueError: fewer than two stages, or no damping.

    Source: Sommeijer, Shampine & Verwer 1997, "RKC: an explicit solver for parabolic PDEs", J.
    Comput. Appl. Math. 88.
    """

    num_stages: int = eqx.field(static=True)
    damping: float = eqx.field(static=True)

    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = diffrax.ThirdOrderHermitePolynomialInterpolation

    def __init__(self, num_stages: int = 12, *, damping: float = 2 / 13):
        if not is_integer(num_stages) or num_stages < 2:
            raise ValueError(
                f"`RungeKuttaChebyshev({num_stages!r})`: an integer of at least 2 is needed."
            )
        if not 0 < damping < 7:
            raise ValueError(f"`RungeKuttaChebyshev(damping={damping!r})` must lie in (0, 7).")
        self.num_stages, self.damping = int(num_stages), float(damping)

    def order(self, terms: Any) -> int:
        return 2

    def error_order(self, terms: Any) -> int:
        return 3

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> Float[Array, " P"]:
        """The field at the start; every step hands on that at its end."""
        return terms.vf(t0, y0, args)

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        return terms.vf(t0, y0, args)

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Array, Array, dict[str, Array], Any, diffrax.RESULTS]:
        del made_jump
        h, k0 = t1 - t0, solver_state
        with_stages = chebyshev(self.num_stages, self.damping)
        mu, nu, rates, first, nodes = map(
            jnp.asarray,
            (
                with_stages.mu,
                with_stages.nu,
                with_stages.rates,
                with_stages.first,
                with_stages.nodes,
            ),
        )

        # Offsets from y0 rather than points: they are small, and keep their digits.
        def stage(j: Array, offsets: tuple[Array, Array]) -> tuple[Array, Array]:
            before, last = offsets
            value = terms.vf(t0 + nodes[j] * h, y0 + last, args)
            return last, mu[j] * last + nu[j] * before + h * (rates[j] * value + first[j] * k0)

        start = (jnp.zeros_like(y0), h * with_stages.first_rate * k0)
        _, offset = lax.fori_loop(0, self.num_stages - 1, stage, start)
        y1 = y0 + offset
        k1 = terms.vf(t1, y1, args)
        error = 0.4 * h * (k0 + k1) - 0.8 * offset
        return y1, error, {"y0": y0, "y1": y1, "k0": k0, "k1": k1}, k1, _SUCCESS


_SUCCESS = diffrax.RESULTS.successful
