"""`find_limit`: the direction in which the flow ends, with a certificate."""

import dataclasses
import math
import warnings
from collections.abc import Callable
from typing import Any

import equinox as eqx
import numpy as np

from gflow._layout import Layout
from gflow._numerics import is_integer, is_real
from gflow._signatures import named
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.kkt.switches import has_kinks
from gflow.limit.basin import same_point
from gflow.limit.kinked import KinkedSearch
from gflow.limit.result import Limit, LimitFailed
from gflow.limit.search import CLOSE, Cap, Search, Start
from gflow.problem import Problem
from gflow.results import RESULTS
from gflow.stiff.rosenbrock import Rosenbrock
from gflow.trajectory import Trajectory
from gflow.validation import check_start

# Of the flow, in the logits.
_LOGIT_TOLERANCE = 0.1
# What `reproduce=True` changes: by which factors.
_TIGHTER, _LATER, _COLDER, _SMOOTHER = 1e-2, 1e-2, 10.0, 0.5


@named()
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
    solver: Rosenbrock | None = None,
    kappa_cap: float | None = None,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Limit:
    """The limit of `params / |params|` along the flow from `start`.

    Args:
        problem: what is minimised.
        start: parameters; or a trajectory, from whose end the search goes on (of the flow of the
            same problem, its record, steps and time are joined); or a limit: that of the same
            problem is returned as it is if it was successful, and gone on from if not; of another
            problem its direction is the start, at the kappa of its own cap.
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
        max_rounds: saddles to leave at most.
        max_steps: steps of each run of the flow at most; with kinks to round no more than 1500.
        max_seconds: after so many seconds the search ends, as `seconds_spent`; it can be gone on
            with. Looked at between the segments of the flow and between stages.
        solver: the `Rosenbrock` method of the flow.
        kappa_cap: deprecated. A number for kappa itself, which carries the units of the data:
            the temperature is capped no sooner than here. `cap_logits` replaces it.
        progress: as for `integrate`.
        throw: raise `LimitFailed` unless a point was reached that nothing leaves; a saddle at which
            `escape=False` stopped counts as reached. False returns the limit with the reason in
            `.result`. An interrupt from the keyboard always returns, once there is anything to
            return.

    Raises:
        TypeError: `solver` is no `Rosenbrock`.
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options.
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
    )
    deadline = Deadline.after(max_seconds, "find_limit")
    params, place = _started(problem, start)
    if isinstance(start, Limit) and start.successful and eqx.tree_equal(start.problem, problem):
        return start
    options = {
        "solver": Rosenbrock() if solver is None else solver,
        "tolerance": flow_tolerance,
        "atol_logit": _LOGIT_TOLERANCE,
        "max_steps": max_steps,
        "progress": progress,
        "throw": False,
    }
    settings = {
        "cap": Cap(cap_logits, _log_cap(kappa_cap)),
        "tolerance": tolerance,
        "handover": CLOSE,
        "smoothing": smoothing,
        "options": options,
        "deadline": deadline,
    }
    rounds = {"escape": escape, "max_rounds": max_rounds}
    limit = _searched(problem, Layout.of(params), place, settings, rounds)
    if reproduce and limit.successful:
        limit = _reproduced(limit, Layout.of(params), place, settings, rounds)
    stopped = not escape and limit.result_name == "saddle"
    if throw and not (limit.successful or stopped or limit.result_name == "interrupted"):
        raise LimitFailed(limit)
    return limit


def _searched(
    problem: Problem,
    layout: Layout,
    place: Start,
    settings: dict[str, Any],
    rounds: dict[str, Any],
) -> Limit:
    """One search; an interrupt ends it with what there is."""
    smoothing, settings = settings["smoothing"], {**settings}
    del settings["smoothing"]
    search = (
        KinkedSearch(problem, layout, place, smoothing, **settings)
        if has_kinks(problem)
        else Search(problem, layout, place, **settings)
    )
    try:
        result = search.run(**rounds)
    except KeyboardInterrupt:
        if search.first is None:  # nothing was computed that could be returned
            raise
        result = RESULTS.interrupted
    return search.limit(result)  # pyright: ignore[reportArgumentType]


def _reproduced(
    limit: Limit,
    layout: Layout,
    place: Start,
    settings: dict[str, Any],
    rounds: dict[str, Any],
) -> Limit:
    """The limit with what other searches say of its basin."""
    options = settings["options"]
    tighter = max(_TIGHTER * options["tolerance"], 1e-12)
    cap = settings["cap"]
    variants = [
        {"options": {**options, "tolerance": tighter}, "handover": _LATER * settings["handover"]},
        {"cap": cap._replace(logits=_COLDER * cap.logits)},
    ]
    if limit.kinks is not None:
        variants.append({"smoothing": _SMOOTHER * settings["smoothing"]})
    others = [
        _searched(limit.problem, layout, place, {**settings, **variant}, rounds)
        for variant in variants
    ]
    differing = tuple(other for other in others if not _same(limit, other, layout))
    basin = "undecided" if differing else "reproduced"
    return dataclasses.replace(limit, basin=basin, differing=differing)


def _same(limit: Limit, other: Limit, layout: Layout) -> bool:
    here, there = (np.asarray(layout.flatten(each.direction)) for each in (limit, other))
    return other.successful and same_point((limit.margin, other.margin), (here, there))


def _log_cap(kappa_cap: float | None) -> float:
    if kappa_cap is None:
        return -math.inf
    warnings.warn(
        "`find_limit(kappa_cap=...)` is deprecated: kappa carries the units of the data, the "
        "radius and the depth. `cap_logits`, the smallest margin kappa min_i q_i(u), has no units.",
        DeprecationWarning,
        stacklevel=3,
    )
    return math.log(kappa_cap)


def _started(problem: Problem, start: Params | Trajectory | Limit) -> tuple[Params, Start]:
    """The start's parameters, as checked, and where it stands: at any norm, however large."""
    if isinstance(start, Trajectory):
        params = check_start(problem, start.direction)
        return params, _after(problem, start)
    params = check_start(problem, start.direction if isinstance(start, Limit) else start)
    vector, log_norm = _polar(np.asarray(Layout.of(params).flatten(params)))
    if not isinstance(start, Limit):
        return params, Start(vector, problem.degree * log_norm)
    same = eqx.tree_equal(start.problem, problem)
    if not math.isfinite(start.log_kappa_cap):  # it never came to the cap
        place = _after(problem, start.trajectory)
    else:
        place = Start(vector, start.log_kappa_cap, start.trajectory if same else None)
    return params, place._replace(stages=start.stages if same else ())


def _after(problem: Problem, flow: Trajectory) -> Start:
    """The end of a trajectory; one of the true flow of this problem is to be gone on with."""
    true_flow = flow.kind == "flow" and flow.settings.get("kappa_cap") is None
    joined = true_flow and flow.problem is not None and eqx.tree_equal(flow.problem, problem)
    vector, log_kappa = np.asarray(flow.vectors[-1]), float(flow.log_kappa[-1])
    return Start(vector, log_kappa, flow if joined else None, goes_on=bool(joined))


def _polar(vector: np.ndarray) -> tuple[np.ndarray, float]:
    """The direction and the logarithm of the norm, whose square may leave the range of numbers."""
    largest = np.abs(vector).max()
    length = np.linalg.norm(vector / largest)
    return vector / largest / length, math.log(largest) + math.log(length)


def check_options(
    *,
    tolerance: Any = 1e-8,
    cap_logits: Any = 1e3,
    flow_tolerance: Any = 1e-5,
    smoothing: Any = 0.02,
    max_rounds: Any = 1,
    max_steps: Any = 1,
    solver: Any = None,
    kappa_cap: Any = None,
) -> None:
    """Refuses, by the name of the option, what cannot be meant; see `find_limit`."""
    if solver is not None and not isinstance(solver, Rosenbrock):
        raise TypeError(
            f"`find_limit(solver={solver!r})`: the capped flow is stiff, and only a "
            "`gflow.Rosenbrock` follows it to where it rests."
        )
    _check_range("tolerance", tolerance, 1e-15, 0.1, "below 1e-15 rounding decides alone")
    _check_range("cap_logits", cap_logits, 10, 1e10, "margins of fewer logits tell nothing yet")
    _check_range("flow_tolerance", flow_tolerance, 1e-12, 0.1, "as `integrate(tolerance=...)`")
    _check_range("smoothing", smoothing, 1e-3, 1, "it is a relative width")
    if kappa_cap is not None:
        _check_range("kappa_cap", kappa_cap, 10, 1e12, "it is a number for kappa; see `cap_logits`")
    for name, value in (("max_rounds", max_rounds), ("max_steps", max_steps)):
        if not is_integer(value) or value < 1:
            raise ValueError(f"`find_limit({name}={value!r})` must be an integer of at least 1.")


def _check_range(name: str, value: Any, low: float, high: float, why: str) -> None:
    if not is_real(value) or not low <= value <= high:
        raise ValueError(
            f"`find_limit({name}={value!r})` must lie between {low:g} and {high:g}: {why}."
        )
