"""Off a saddle: which way the flow leaves it, when, and whether it leaves it at all."""

import math
import time
from dataclasses import replace

import numpy as np

from gflow.flow.driver import integrate
from gflow.flow.until import Until
from gflow.limit.approach import circles, params_at
from gflow.limit.itinerary import departure, growth_per_log_kappa
from gflow.limit.result import Stage, margin_at
from gflow.limit.search import Search
from gflow.limit.state import State

# Stands for an offset of 0, whose logarithm is asked for.
_TINY = 1e-300


def left(search: Search, state: State, length: float) -> State:
    """The flow is taken up off the saddle that was found, where it would leave itself.

    Near a saddle the flow is linear: its offset along each unstable direction grows by itself, at
    the direction's own rate (`gflow.limit.itinerary`). So the offset with which the flow arrived
    says in which proportions they have grown when the flow is `length` away.

    Args:
        length: how far away it is taken up.
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


def colder_on_return(search: Search, state: State) -> State:
    """The state with a colder cap, where the saddle that was found has been left before.

    The capped flow then came back where the true one passes.
    """
    settings, cap = search.settings, state.cap
    flat = search.layout.flatten
    earlier = [flat(visit.direction) for visit in state.visits if math.isfinite(visit.departure)]
    gaps = [np.linalg.norm(state.direction - np.asarray(saddle)) for saddle in earlier]
    returned = min(gaps, default=math.inf) < settings.saddles.same
    if not returned or cap.logits >= settings.saddles.most_colder * cap.first_logits:
        return state
    return replace(state, cap=cap.colder(settings.flow.colder))


def circling_beside(search: Search, state: State) -> State:
    """The end, where the flow leaves the saddle in spirals, and goes on to circle about it."""
    assert state.found is not None and state.found.curvature is not None
    if search.has_kinks or not state.found.curvature.spirals:
        return state
    begin, settings = time.perf_counter(), search.settings
    margin = margin_at(state.found.point.theta, search.problem.degree)
    log_kappa = math.log(settings.circling.logits / margin)
    vectors, _ = state.found.unstable
    beside = state.direction + settings.circling.push * vectors[:, 0]
    run = integrate(
        search.problem,
        params_at(search, log_kappa, beside / np.linalg.norm(beside)),
        until=Until(
            stationarity=settings.flow.latest_handover,
            log_kappa=log_kappa + settings.flow.farthest,
            accuracy=settings.flow.handover_accuracy,
        ),
        kappa_cap=math.exp(log_kappa),
        max_steps=min(search.max_steps, settings.circling.most_steps),
        max_seconds=search.deadline.left(),
        **search.flow_options,
    )
    stage = Stage(
        kind="flow",
        num_steps=int(run.stats["num_steps"]),
        moved=float(np.linalg.norm(np.asarray(run.vectors[-1]) - state.direction)),
        stationarity=float(run.stationarity[-1]),
        margin=float(run.margin[-1]),
        seconds=time.perf_counter() - begin,
        log_kappa=state.flow.log_kappa,
    )
    return circles(search, state.noting(stage), run)
