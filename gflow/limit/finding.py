"""`find_limit`: the direction in which the flow ends, with a certificate."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import numpy as np

from gflow._interrupts import interruptible
from gflow._signatures import named
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.kkt.switches import has_kinks
from gflow.limit.basin import same_point
from gflow.limit.journal import FileJournal
from gflow.limit.kinked import search_at_kinks
from gflow.limit.options import check_options, check_size, flow_options, log_kappa_of
from gflow.limit.result import Limit, LimitFailed
from gflow.limit.search import Search, run
from gflow.limit.search_settings import DEFAULT, LimitSettings
from gflow.limit.slopes import limit_or_more
from gflow.limit.smooth import Smooth
from gflow.limit.starting import start_of, started
from gflow.limit.state import Start, begun
from gflow.limit.stored import get, put_all
from gflow.problem import Problem
from gflow.progress import check_progress
from gflow.saving import Saving, saving_to
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.trajectory import Trajectory


@named()
@interruptible
def find_limit(
    problem: Problem,
    start: Params | Trajectory | Limit,
    *,
    tolerance: float = 1e-8,
    cap_logits: float = 1e3,
    flow_tolerance: float = 1e-5,
    smoothing: float = 0.02,
    escape: bool = True,
    reproduce: bool = False,
    max_rounds: int = 16,
    max_steps: int = 5000,
    max_seconds: float | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    solver: Rosenbrock | None = None,
    kappa_cap: float | None = None,
    settings: LimitSettings = DEFAULT,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Limit:
    """The limit of `params / |params|` along the flow from `start`.

    Args:
        problem: what is minimised.
        start: parameters, of any norm; or a trajectory, from whose end the search goes on (if it is
            one of the flow of the same problem, which is without kinks, its record, steps and time
            are continued); or a limit. A limit of the same problem is returned as it is if it was
            successful, and the search goes on from it if not. From a limit of another problem its
            direction is taken as the start, at the kappa of its own cap.
        tolerance: of the relative stationarity `|u - sum_i lambda_i grad q_i(u)|` at the limit, at
            least 1e-15.
        cap_logits: the true flow is followed until its smallest margin `kappa min_i q_i(u)` is this
            large, over all margins, with either loss. The kappa that it has there, or the one at
            the start if that is larger, is the cap of its temperature from then on; Newton's method
            removes what the cap does to the limit, which is O(1/cap_logits). Where the active
            margins cannot be told from the others at this temperature, it is raised by factors
            of 10.
        flow_tolerance: `tolerance` of `integrate` for the flow. It does not limit the accuracy of
            the point, which Newton's method finds, but decides which of several the flow reaches.
        smoothing: mu, the relative width to which kinks (plain ReLUs, signs that an attack follows)
            are rounded while the flow is followed. It is then led to 0: the limit is that of the
            problem with its kinks, exactly. Without kinks it has no meaning.
        escape: whether to leave saddles, as the flow does in the end. False stops at the first.
        reproduce: search twice more, with a tighter flow tolerance and a later handover, and with a
            colder cap (at kinks, with less smoothing too): `Limit.basin` is "reproduced" where all
            end in the same point, and `Limit.differing` holds those that do not.
        max_rounds: KKT points to visit at most; a saddle that is the last of them is not left.
        max_steps: steps of each run of the flow at most; with kinks no more than
            `settings.kinks.most_steps`, 1500.
            A search that spent them goes on with `find_limit(problem, limit)`.
        max_seconds: after so many seconds the search ends, as `seconds_spent`; it can be continued
            from the limit returned. Checked between the segments of the flow and between linear
            systems; a call that goes on from `checkpoint` finishes at least one of its stages.
        checkpoint: a file, `.npz`, in which the search is kept while it goes on: the results of its
            finished steps, and the flow between two segments. The same call goes on from there, bit
            for bit but for the seconds, or returns the limit with which the search ended. As in
            `gflow.integrate`.
        checkpoint_seconds: between two times that it is written, as in `gflow.integrate`.
        solver: the `Rosenbrock` method of the flow.
        kappa_cap: deprecated. A number for kappa itself, which carries the units of the data:
            the temperature is capped no sooner than here. `cap_logits` replaces it.
        settings: all other constants, for experts; see `LimitSettings`.
        progress: as for `integrate`. Between linear systems too: the line is then called "newton";
            a function gets a dict with the same keys, in which "stage" is "newton" instead of
            "flow", "steps" counts the systems of this stage, "stationarity" is the error of its
            equations and "log_loss" is NaN.
        throw: raise `LimitFailed` unless a point was reached that nothing leaves; a saddle at which
            `escape=False` stopped counts as reached. False returns the limit with the reason in
            `.result`. An interrupt from the keyboard always returns, once there is anything to
            return.

    Raises:
        TypeError: `solver` is no `Rosenbrock`, or `settings` no `LimitSettings`.
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options.
        ValueError, RuntimeError, OSError: `checkpoint`, see `gflow.integrate`.
        LimitFailed: with `throw=True`, no such point was reached.

    With frozen perturbations of a nonlinear network the limit is a stable rest point of adversarial
    training and near a maximum of the adversarial margin, but not one: see `Limit.verdict`.

    Source: Lyu & Li 2020 and Lyu & Zhu 2022: limits of the direction are KKT points.
    """
    check_options(
        tolerance=tolerance,
        cap_logits=cap_logits,
        flow_tolerance=flow_tolerance,
        smoothing=smoothing,
        max_rounds=max_rounds,
        max_steps=max_steps,
        solver=solver,
        kappa_cap=kappa_cap,
        settings=settings,
    )
    check_progress(progress, "find_limit")
    deadline = Deadline.after(max_seconds, "find_limit")
    layout, place = started(problem, start)
    if isinstance(start, Limit) and start.successful and eqx.tree_equal(start.problem, problem):
        return start
    check_size(problem, layout.size, settings, "find_limit(problem, start)")
    search = Search(
        problem=problem,
        layout=layout,
        has_kinks=has_kinks(problem),
        flow_options=flow_options(flow_tolerance, settings, solver=solver, progress=progress),
        max_steps=max_steps,
        tolerance=tolerance,
        smoothing=smoothing,
        cap_logits=cap_logits,
        cap_log_kappa=log_kappa_of(kappa_cap),
        escape=escape,
        max_rounds=max_rounds,
        deadline=deadline,
        settings=settings,
    )
    arguments = partial(_arguments_of, search, start, reproduce)
    with saving_to(checkpoint, checkpoint_seconds, "find_limit", arguments) as saving:
        limit = _kept(search, place, saving, reproduce=reproduce)
    return _reached(limit, escape=escape) if throw else limit


def _reached(limit: Limit, *, escape: bool) -> Limit:
    """The limit, if its search ended as it was asked to.

    Raises:
        LimitFailed: it did not. An interrupt from the keyboard is no failure.
    """
    stopped = not escape and limit.result_name == "saddle"
    if not (limit.successful or stopped or limit.result_name == "interrupted"):
        raise LimitFailed(limit)
    return limit


def _arguments_of(search: Search, start: Any, reproduce: bool) -> Mapping[str, Any]:
    """What decides a search: equal for calls that make the same one.

    Raises:
        TypeError: parameters that a file cannot hold.
    """
    options = {
        name: value
        for name, value in vars(search).items()
        if name not in ("layout", "flow_options", "deadline", "journal")
    }
    given = search.flow_options
    flow = {"solver": given["solver"], "flow_tolerance": given["tolerance"]}
    return {**options, "start": start_of(start), **flow, "reproduce": reproduce}


def _kept(search: Search, place: Start, saving: Saving, *, reproduce: bool) -> Limit:
    """The limit, from the beginning of the search or from where it was kept."""
    if type(saving) is Saving:
        return _found(search, place, reproduce=reproduce)
    journal = FileJournal(saving, put_all, partial(get, problem=search.problem))
    search = replace(search, journal=journal)
    limit = journal.step(partial(_found, search, place, reproduce=reproduce))
    journal.end()
    return replace(limit, problem=search.problem)


def _found(search: Search, place: Start, *, reproduce: bool) -> Limit:
    """The limit; with `reproduce`, compared with the limits of the other searches."""
    limit = search.journal.step(partial(_searched, search, place))
    return _reproduced(limit, search, place) if reproduce and limit.successful else limit


def _searched(search: Search, place: Start) -> Limit:
    """The limit of one search, successful or not."""
    handover_at = search.settings.flow.handover
    state = begun(place, search.cap_logits, search.cap_log_kappa, handover_at)
    if search.has_kinks:
        return limit_or_more(search, *search_at_kinks(search, state))
    return limit_or_more(search, run(Smooth(search), state), 0.0)


def _reproduced(limit: Limit, search: Search, place: Start) -> Limit:
    """The limit, with its basin decided by comparison with the limits of the other searches."""
    settings = search.settings.basin
    others = [search.journal.step(partial(_searched, each, place)) for each in _variants(search)]
    found = [np.asarray(search.layout.flatten(each.direction)) for each in (limit, *others)]
    differing = tuple(
        other
        for other, direction in zip(others, found[1:], strict=True)
        if not other.successful
        or not same_point((limit.margin, other.margin), (found[0], direction), settings)
    )
    return replace(limit, basin="undecided" if differing else "reproduced", differing=differing)


def _variants(search: Search) -> list[Search]:
    """The other searches of `reproduce=True`, which end in the same point if that is the limit of
    the flow.
    """
    basin, flow, options = search.settings.basin, search.settings.flow, search.flow_options
    tighter = max(basin.tighter * options["tolerance"], basin.least_tolerance)
    later = replace(search.settings, flow=replace(flow, handover=basin.later * flow.handover))
    variants = [
        replace(search, flow_options={**options, "tolerance": tighter}, settings=later),
        replace(search, cap_logits=basin.colder * search.cap_logits),
    ]
    if search.has_kinks:
        variants.append(replace(search, smoothing=basin.smoother * search.smoothing))
    return variants
