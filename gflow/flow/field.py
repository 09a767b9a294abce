"""The flow on the sphere, in logarithms.

With `p_i = softmax_i(log -l'(q_i))` and the clock `d tau = (sum_i -l'(q_i)) rho^(L-2) dt`, the
gradient flow `d params/dt = -grad Loss(params)` becomes, for `params = rho u` and `|u| = 1`,

    d u          / d tau = (I - u u^T) sum_i p_i grad q_i(u)
    d log rho    / d tau = L sum_i p_i q_i(u)
    d log(T + t) / d tau = exp(-log(sum_i -l'(q_i)) - (L - 2) log rho - log(T + t)).

It is the same path on another clock, and nothing in it under- or overflows. The *time scale* T is 1
for most starts. For a start far out, where the loss is exp(-700), say, nothing happens before a
time of exp(700), and with T = 1 log(T + t) would rise by 700 in the first step: there T is about
the time of a first step.

The weights p depend on `kappa = rho^L`. With a *cap* kappa_c they are those of
`min(kappa, kappa_c)`. Beyond the cap the motion along the set of equal active margins is that of
the true flow up to O(1/kappa_c), but the stiffness, which is proportional to kappa, no longer
grows, and kappa may leave the range of floating-point numbers. Physical time has no meaning there
and stands still.

The state is one flat vector `(u, log rho, log(T + t))`: a solver's arithmetic then compiles to one
kernel an operation rather than one for each leaf of the parameters.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from gflow._layout import Layout
from gflow._typing import Params, Scalar
from gflow.measures import MAX_LOG_KAPPA, PointMeasures, measure_ascent
from gflow.problem import Ascent, Problem

State = Float[Array, " state"] | Float[np.ndarray, " state"]
"""`(u, log rho, log(T + t))`, P + 2 numbers."""


class StepError(NamedTuple):
    """An error estimate of a step, in the state and as the loss sees it.

    Attributes:
        state: of `(u, log rho, log(T + t))`.
        logit: of kappa q, see `Field.logit_size`.
    """

    state: State
    logit: Float[Array, ""]


class Field(eqx.Module):
    """The right-hand side for one problem, and what is measured of a state.

    Attributes:
        log_cap: logarithm of the cap kappa_c; infinite without one.
        log_time_scale: log T, see the head of this file.
    """

    problem: Problem
    layout: Layout
    log_cap: Any = eqx.field(default_factory=lambda: np.asarray(np.inf))
    log_time_scale: Any = eqx.field(default_factory=lambda: np.asarray(0.0))

    def measures(self, state: State) -> PointMeasures:
        """What is recorded of a point; its stationarity is that of the capped flow."""
        measures = self.measured(state, self.ascent(state))
        return measures._replace(clean_margin=jnp.min(self.clean_margins(state)))

    def measured(self, state: State, ascent: Ascent) -> PointMeasures:
        """The same from an ascent that has been evaluated already, with 0 for the clean margin."""
        # With one flat vector in place of one array for every layer the program is smaller.
        ascent = ascent._replace(vector=self.layout.flatten(ascent.vector))
        place, none = (unit_direction(state), self.log_kappa(state)), jnp.zeros_like(state[-2])
        return measure_ascent(self.problem, *place, ascent, none)

    def clean_margins(self, state: State) -> Float[Array, "n ..."]:
        """Margins without perturbation at the unit direction of `state`."""
        return self.problem.clean_margins(self.layout.unflatten(unit_direction(state)))

    def log_kappa(self, state: State) -> Float[Array, ""]:
        """`log kappa = L log rho`."""
        return self.problem.degree * state[-2]

    def log1p_time(self, state: State) -> Float[Array, ""]:
        """`log(1 + t)` of a state."""
        log_time = jnp.asarray(state[-1])
        part = -jnp.expm1(jnp.minimum(self.log_time_scale - log_time, 0.0))
        log_t = log_time + jnp.log(jnp.where(part > 0, part, 1.0))
        log1p_time = jnp.where(part > 0, jnp.logaddexp(0.0, log_t), 0.0)
        return jnp.where(self.log_time_scale == 0, log_time, log1p_time)

    def log_time(self, log1p_time: Scalar) -> Float[Array, ""]:
        """`log(T + t)`, from `log(1 + t) >= 0`."""
        log1p_time = jnp.asarray(log1p_time)
        log_t = log1p_time + jnp.log(-jnp.expm1(-log1p_time))
        log_time = jnp.logaddexp(self.log_time_scale, log_t)
        return jnp.where(self.log_time_scale == 0, log1p_time, log_time)

    def capped(self, state: State) -> Float[Array, ""]:
        """`log min(kappa, kappa_c)`."""
        return jnp.minimum(self.log_kappa(state), self.log_cap)

    @property
    def ceiling(self) -> Any:
        """The log kappa from which on the weights p cannot be computed; infinite with a cap."""
        xp = np if isinstance(self.log_cap, np.ndarray | float) else jnp
        return xp.where(xp.isfinite(self.log_cap), np.inf, MAX_LOG_KAPPA)

    def ascent(self, state: State, assumed: Array | None = None) -> Ascent:
        """Margins and the ascent direction at the unit direction of `state`.

        With margins `assumed`, the weights p are those of these, in the shape of the margins.
        """
        params = self.layout.unflatten(unit_direction(state))
        return self.problem.ascent(params, self.capped(state), assumed)

    def ascent_and_pull(
        self, state: State, seen: Callable[[Array], Array] = lambda margins: margins
    ) -> tuple[Ascent, Callable[[Array], tuple[Params]]]:
        """The same, with the function that maps weights w to `(sum_i w_i grad q_i,)` there; the
        weights p are those of `seen(margins)`.
        """
        params = self.layout.unflatten(unit_direction(state))
        return self.problem.ascent_and_pull(params, self.capped(state), seen)

    def margins(self, state: State) -> Float[Array, "n ..."]:
        """Margins at the unit direction of `state`."""
        return self.problem.margins(self.layout.unflatten(unit_direction(state)))

    def log_weight(self, state: State, margins: Float[Array, "n ..."]) -> Float[Array, ""]:
        """`log sum_i -l'(q_i)` for these margins of the unit direction."""
        return logsumexp(self.problem.log_weights(margins, self.capped(state)))

    def log_time_rate(self, state: State, log_weight: Scalar) -> Float[Array, ""]:
        """`log dt/dtau = -log(sum_i -l'(q_i)) - (L - 2) log rho`; minus infinity beyond the cap.

        `log_weight` is the logarithm of the sum.
        """
        rate = -log_weight - (self.problem.degree - 2) * state[-2]
        return jnp.where(self.log_kappa(state) <= self.log_cap, rate, -jnp.inf)

    def change_of_margins(self, state: State, change: Float[Array, " P"]) -> Float[Array, "n ..."]:
        """`<dq_i/du, du>`, by derivatives through delta whatever the gradient mode, since these are
        the changes of the margins themselves.
        """

        def margins(direction: Array) -> Array:
            return self.problem.margins(self.layout.unflatten(direction))

        return jax.jvp(margins, (unit_direction(state),), (change,))[1]

    def logit_size(
        self, state: State, margins: Float[Array, "n ..."], change: Float[Array, "n ..."]
    ) -> Float[Array, ""]:
        """`sqrt(sum_i p_i (kappa dq_i)^2)`: the size of a change of the logits, weighted by p.

        The weights p are those of `margins`, with kappa that of `state`.
        """
        weights = self.weights(state, margins)
        return jnp.sqrt(jnp.sum(weights * (jnp.exp(self.capped(state)) * change) ** 2))

    def weights(self, state: State, margins: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
        """The weights p of these margins of the unit direction."""
        return jax.nn.softmax(self.problem.log_weights(margins, self.capped(state)), axis=None)


@jax.jit
def unit_direction(state: State) -> Float[Array, " P"]:
    """The direction, normalised again to remove rounding. |u| is near 1: its square is safe."""
    direction = jnp.asarray(state[:-2])
    return direction / jnp.sqrt(direction @ direction)


def vector_field(clock: Scalar, state: State, field: Field) -> State:
    """`d state / d tau`. It does not depend on `clock`."""
    ascent = field.ascent(state)
    rate = jnp.exp(field.log_time_rate(state, ascent.log_weight) - state[-1])
    return jnp.append(path_slope(field, state, ascent), rate)


def path_slope(field: Field, state: State, ascent: Ascent) -> Float[Array, " path"]:
    """`d (u, log rho) / d tau`, P + 1 numbers; time does not act back on it.

    `(I - u u^T) sum_i p_i grad q_i(u)`, then `L sum_i p_i q_i(u)`.
    """
    direction, vector = unit_direction(state), field.layout.flatten(ascent.vector)
    growth = field.problem.degree * jnp.vdot(ascent.weights, ascent.margins)
    return jnp.append(vector - (direction @ vector) * direction, growth)


def error_sizes(error: State) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`|du|_2`, and `max(|d log rho|, |d log(T+t)|)`: relative errors of the parameters, across
    and along them, and of T + t.
    """
    return jnp.sqrt(error[:-2] @ error[:-2]), jnp.max(jnp.abs(error[-2:]))


def error_norm(error: State) -> Float[Array, ""]:
    """The larger of the two sizes of an error."""
    return jnp.maximum(*error_sizes(error))
