"""Many flows side by side: what they are to reach, and where each stands.

The state is `(u, log rho)`: physical time is not followed. A run has two legs: the true flow, until
its smallest margin is so many logits, which sets the cap of its temperature, and the capped flow,
until it is nearly stationary.
"""

from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from gflow.flow.landing import Bracket

ACTIVE, ARRIVED, FAR, SPENT, STUCK, NOT_FINITE = range(6)
"""How a run stands: under way; at the stationarity of the handover; as far as it is followed; its
steps are spent; its steps change nothing; no further step is finite."""


class Goals(NamedTuple):
    """What the runs are to reach, and how closely they are followed: the same for all.

    Attributes:
        log_logits: logarithm of the smallest margin at which the temperature is capped.
        cap_accuracy: how closely it is met.
        most_logits: of the coldest cap.
        handover: the stationarity at which a run ends.
        handover_accuracy: how closely it is met, relative.
        farthest: log kappa beyond the cap at which a run ends.
        tolerance: local error per step of the direction and of log rho.
        logit_tolerance: and of the logits.
        most_steps: of each leg.
    """

    log_logits: Any
    cap_accuracy: Any
    most_logits: Any
    handover: Any
    handover_accuracy: Any
    farthest: Any
    tolerance: Any
    logit_tolerance: Any
    most_steps: Any


class Point(NamedTuple):
    """What is computed of a state.

    Attributes:
        margins: q, in their own shape.
        slope: `d (u, log rho) / d tau`.
        stationarity: the sine of the angle between u and `sum_i p_i grad q_i`.
    """

    margins: Float[Array, "n ..."]
    slope: Float[Array, " path"]
    stationarity: Float[Array, ""]


class Lane(NamedTuple):
    """Where a run stands.

    Attributes:
        clock: tau, summed over the accepted steps.
        path: `(u, log rho)`.
        log_cap: log kappa_c; infinite on the first leg.
        step: the next one, on the clock of `gflow.flow.field`.
        error: of the last accepted step, in units of what is allowed.
        longest: the longest accepted step of this leg.
        bracket: of the target.
        point: what is computed of the path.
        num_steps: tried on this leg.
        cap_clock, at_cap: clock and path where the temperature was capped;
        num_to_cap: steps tried until then.
        status: how it stands.
    """

    clock: Float[Array, ""]
    path: Float[Array, " path"]
    log_cap: Float[Array, ""]
    step: Float[Array, ""]
    error: Float[Array, ""]
    longest: Float[Array, ""]
    bracket: Bracket
    point: Point
    num_steps: Int[Array, ""]
    cap_clock: Float[Array, ""]
    at_cap: Float[Array, " path"]
    num_to_cap: Int[Array, ""]
    status: Int[Array, ""]
