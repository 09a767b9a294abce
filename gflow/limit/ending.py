"""The end of a search: a `Limit` of its last state, certified."""

import math

import jax
import numpy as np

from gflow._typing import Params
from gflow.kkt.certificate import Certificate
from gflow.kkt.certifying import certify
from gflow.kkt.margin_next_to import margin_next_to
from gflow.limit.approach import params_at
from gflow.limit.earned import earned, unrefuted
from gflow.limit.result import Limit
from gflow.limit.search import Search, arrived_close
from gflow.limit.state import State


def limit_of(
    search: Search, state: State, smoothing: float, certificate: Certificate | None = None
) -> Limit:
    """Everything that was found.

    Args:
        search: with the problem that was asked about.
        smoothing: to which kinks were rounded last; 0 without any.
        certificate: of `certified_params`, where it has been computed.
    """
    assert state.result is not None and state.flow.trajectory is not None
    point = None if state.found is None else state.found.point
    direction = jax.tree.map(np.asarray, search.layout.unflatten(state.direction))
    certificate = _certificate(search, state) if certificate is None else certificate
    margin, sampled = certificate.normalized_margin, False
    if point is not None and point.has_switches:
        margin, sampled = margin_next_to(search.problem, direction, point.coefficients)
    residual = math.inf if point is None else point.residual
    result = unrefuted(state.result, search.problem)
    return Limit(
        problem=search.problem,
        direction=direction,
        margin=margin,
        certificate=certificate,
        trajectory=state.flow.trajectory,
        result=earned(result, certificate, residual, search.tolerance, state.verdict),
        verdict=state.verdict,
        no_maximum="" if state.found is None else state.found.no_maximum,
        curvature=None if state.found is None else state.found.curvature,
        stages=state.stages,
        heading=state.heading,
        polished=None if search.has_kinks and (smoothing > 0 or state.kinks is not None) else point,
        kinks=state.kinks,
        smoothing=smoothing if state.kinks is None else state.kinks.smoothing,
        held_margin=certificate.held_margin,
        sides_sampled=sampled,
        basin=_basin(search, state),
        cap_logits=state.cap.logits,
        log_kappa_cap=state.cap.log_kappa if state.cap.known else math.nan,
        handover_stationarity=state.handover.stationarity,
        newton_displacement=state.handover.displacement,
        itinerary=state.visits,
    )


def certified_params(search: Search, state: State) -> Params:
    """The parameters that are certified: the direction at the kappa of the cap, or at kappa = 1
    where there was no cap.
    """
    return params_at(search, state.cap.log_kappa if state.cap.known else 0.0, state.direction)


def _certificate(search: Search, state: State) -> Certificate:
    params = certified_params(search, state)
    if state.found is None or not state.found.point.has_switches:
        return certify(search.problem, params)
    return certify(search.problem, params, coefficients=state.found.point.coefficients)


def _basin(search: Search, state: State) -> str:
    """Whether the point found is the limit of this flow; see `gflow.limit.basin`."""
    sure = state.found is not None and state.left is None and arrived_close(search, state)
    sure = sure and not state.by_floor
    return "confirmed" if sure else "undecided"
