"""How a saddle is left: in which direction, at which log kappa, and whether the flow leaves it."""

import math
from dataclasses import replace

import numpy as np

from gflow.flow.until import Until
from gflow.limit.approach import HALTING, circles, run_flow
from gflow.limit.itinerary import departure, growth_per_log_kappa
from gflow.limit.result import margin_at
from gflow.limit.search import Search
from gflow.limit.state import State

# Stands for an offset of 0, so that its logarithm is finite.
_TINY = 1e-300


def pushed_off(search: Search, state: State, length: float) -> State:
    """The state with the flow taken up beside the saddle that was found, on its way out.

    Near a saddle the flow is linear: its offset along each unstable direction grows independently,
    at the rate of that direction (`gflow.limit.itinerary`). So the offsets with which the flow
    arrived determine the direction in which it leaves, and log kappa at which it is `length` away.

    Args:
        length: the distance from the saddle at which the flow is taken up.
    """
    assert state.found is not None
    degree, settings = search.problem.degree, search.settings.saddles
    vectors, rates = state.found.unstable
    gap = state.flow.vector - state.direction
    offset = np.linalg.lstsq(vectors, gap, rcond=None)[0]
    largest, tolerance = np.abs(offset).max(), search.flow_options["tolerance"]
    size = np.maximum(np.abs(offset), _TINY)
    arrival = state.flow.log_kappa
    leaves = departure(arrival, offset, rates, length, degree)
    growth = np.exp((leaves - arrival) / degree * rates)
    push = vectors @ (np.copysign(size, offset) * growth)
    pushed = state.direction + push * (length / np.linalg.norm(push))
    pushed /= np.linalg.norm(pushed)
    visit = replace(
        state.visits[-1],
        departure=leaves,
        growth=growth_per_log_kappa(float(rates.max()), degree),
    )
    state = replace(
        state,
        flow=replace(state.flow, vector=pushed, log_kappa=leaves),
        visits=(*state.visits[:-1], visit),
        found=None,
        left=state.found,
        failures=0,
        by_rounding=state.by_rounding or bool(largest < settings.rounding * np.linalg.norm(gap)),
        by_error=state.by_error or bool(largest < settings.told_apart * tolerance),
    )
    values = {"num_steps": 0, "stationarity": math.nan, "margin": search.margin(pushed)}
    return state.moved("escape", pushed, seconds=0.0, **values)


def times_left(search: Search, state: State) -> int:
    """How often the saddle that was found has been left before."""
    flat = search.layout.flatten
    earlier = [flat(visit.direction) for visit in state.visits if math.isfinite(visit.departure)]
    gaps = [np.linalg.norm(state.direction - np.asarray(saddle)) for saddle in earlier]
    return sum(bool(gap < search.settings.saddles.same) for gap in gaps)


def colder_on_return(search: Search, state: State) -> State:
    """The state with a colder cap, if the saddle that was found has been left before.

    That the capped flow came back to it suggests that the true flow passes by: the cap is too warm.
    """
    settings, cap = search.settings, state.cap
    coldest = cap.logits >= settings.saddles.most_colder * cap.first_logits
    if coldest or not times_left(search, state):
        return state
    return replace(state, cap=cap.colder(settings.flow.colder))


def circling_beside(search: Search, state: State) -> State:
    """The end of the search, if the flow leaves the saddle in spirals and then circles about it;
    else the state as it is.
    """
    assert state.found is not None and state.found.curvature is not None
    if search.has_kinks or not state.found.curvature.spirals:
        return state
    settings = search.settings
    margin = margin_at(state.found.point.theta, search.problem.degree)
    log_kappa = math.log(settings.circling.logits / margin)
    vectors, _ = state.found.unstable
    beside = state.direction + settings.circling.push * vectors[:, 0]
    until = Until(
        stationarity=settings.flow.latest_handover,
        log_kappa=log_kappa + settings.flow.farthest,
        accuracy=settings.flow.handover_accuracy,
    )
    aside = replace(
        state,
        flow=replace(state.flow, vector=beside / np.linalg.norm(beside)),
        cap=state.cap.reached_at(log_kappa, margin),
        left=None,  # no saddle was left, so that the run has all of its steps (`num_steps_of`)
    )
    shorter = replace(search, max_steps=min(search.max_steps, settings.circling.most_steps))
    run = run_flow(shorter, aside, until, log_kappa, capped=True)
    # Of this run only the stage is kept; the flow of the search stays where it was.
    state = state.noting(replace(run.end.stages[-1], log_kappa=state.flow.log_kappa))
    if run.trajectory.result_name in HALTING:
        return state.ended(run.trajectory.result, final=True)
    return circles(search, state, run.trajectory)
