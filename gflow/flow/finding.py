"""`find_limit`: the direction in which the flow ends, with a certificate."""

from collections.abc import Callable
from typing import Any

from gflow._numerics import is_integer, is_real
from gflow._typing import Params
from gflow.flow.kinked import KinkedSearch
from gflow.flow.limit import Limit, LimitFailed
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.search import Search
from gflow.problem import Problem
from gflow.switches import has_kinks
from gflow.trajectory import Trajectory
from gflow.validation import check_start

# Of the flow, whose errors Newton's method removes.
_TOLERANCE, _LOGIT_TOLERANCE = 1e-2, 0.1


def find_limit(
    problem: Problem,
    start: Params | Trajectory | Limit,
    *,
    tolerance: float = 1e-8,
    kappa_cap: float = 1e3,
    smoothing: float = 0.02,
    escape: bool = True,
    max_rounds: int = 16,
    max_steps: int = 5000,
    solver: Rosenbrock | None = None,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Limit:
    """The limit of `params / |params|` along the flow from `start`.

    Args:
        problem: what is minimised.
        start: parameters; or a trajectory, whose end is the start, or a limit, whose direction is.
        tolerance: of the relative stationarity `|u - sum_i lambda_i grad q_i(u)|` at the limit.
        kappa_cap: temperature cap of the flow to begin with; Newton's method then removes what it
            did to the limit, which is O(1/kappa_cap). Where the active margins cannot be told from
            the others at this temperature, it is raised by factors of 10.
        smoothing: mu, the relative width to which kinks (plain ReLUs, signs that an attack follows)
            are rounded while the flow is followed. It is then led to 0: the limit is that of the
            problem with its kinks, exactly. Without kinks it has no meaning.
        escape: whether to leave saddles, as the flow does in the end. False stops at the first.
        max_rounds: saddles to leave at most.
        max_steps: steps of each run of the flow at most; with kinks to round no more than 1500.
        solver: the `Rosenbrock` method of the flow.
        progress: as for `integrate`.
        throw: raise `LimitFailed` unless a point was reached that nothing leaves; a saddle at which
            `escape=False` stopped counts as reached. False returns the limit with the reason in
            `.result`.

    Raises:
        TypeError: `solver` is no `Rosenbrock`.
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options.
        LimitFailed: with `throw=True`, no such point was reached.

    With frozen perturbations of a nonlinear network the limit is a stable rest point of adversarial
    training and near a maximum of the adversarial margin, but not one: see `Limit.verdict`.

    Source: Lyu & Li 2020 and Lyu & Zhu 2022: limits of the direction are KKT points.
    """
    check_options(tolerance, kappa_cap, smoothing, max_rounds, max_steps, solver)
    if isinstance(start, Limit):
        start = start.direction
    params = check_start(problem, start.params if isinstance(start, Trajectory) else start)
    options = {
        "solver": Rosenbrock() if solver is None else solver,
        "tolerance": _TOLERANCE,
        "atol_logit": _LOGIT_TOLERANCE,
        "max_steps": max_steps,
        "progress": progress,
        "throw": False,
    }
    settings = {"tolerance": tolerance, "kappa_cap": kappa_cap, "options": options}
    search = (
        KinkedSearch(problem, params, smoothing, **settings)
        if has_kinks(problem)
        else Search(problem, params, **settings)
    )
    result = search.run(escape, max_rounds)
    limit = search.limit(result)
    stopped = not escape and limit.result_name == "saddle"
    if throw and not (limit.successful or stopped):
        raise LimitFailed(limit)
    return limit


def check_options(
    tolerance: Any, kappa_cap: Any, smoothing: Any, max_rounds: Any, max_steps: Any, solver: Any
) -> None:
    """Refuses, by the name of the option, what cannot be meant; see `find_limit`."""
    if solver is not None and not isinstance(solver, Rosenbrock):
        raise TypeError(
            f"`find_limit(solver={solver!r})`: the capped flow is stiff, and only a "
            "`gflow.Rosenbrock` follows it to where it rests."
        )
    if not is_real(tolerance) or not 0 < tolerance < 1:
        raise ValueError(f"`find_limit(tolerance={tolerance!r})` must lie between 0 and 1.")
    if not is_real(kappa_cap) or not 10 <= kappa_cap <= 1e12:
        raise ValueError(f"`find_limit(kappa_cap={kappa_cap!r})` must lie between 10 and 1e12.")
    if not is_real(smoothing) or not 1e-3 <= smoothing <= 1:
        raise ValueError(f"`find_limit(smoothing={smoothing!r})` must lie between 1e-3 and 1.")
    for name, value in (("max_rounds", max_rounds), ("max_steps", max_steps)):
        if not is_integer(value) or value < 1:
            raise ValueError(f"`find_limit({name}={value!r})` must be an integer of at least 1.")
