"""`find_limits`: the limits of many flows, those of one structure side by side."""

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from typing import Any

from jax.sharding import Mesh

from gflow._interrupts import interruptible
from gflow._layout import Layout
from gflow._signatures import named
from gflow._typing import Params
from gflow.batch.arguments import check_runs, listed
from gflow.batch.stacked import structure_of
from gflow.batch.together import RunBeside, together
from gflow.deadline import Deadline
from gflow.kkt.switches import has_kinks
from gflow.limit import Limit, LimitFailed, LimitSettings, find_limit
from gflow.limit.options import check_options, check_size, flow_options
from gflow.limit.search import Search
from gflow.limit.search_settings import DEFAULT
from gflow.limit.starting import started
from gflow.limit.state import Start
from gflow.problem import Problem
from gflow.progress import reporter

# A run that starts at a log kappa beyond this is followed by itself.
_FARTHEST_START = 600.0
# The Hessian of more parameters is not formed side by side.
_MOST_PARAMETERS = 500


@named()
@interruptible
def find_limits(
    problems: Sequence[Problem],
    starts: Sequence[Params],
    *,
    tolerance: float = 1e-8,
    cap_logits: float = 1e3,
    flow_tolerance: float = 1e-5,
    smoothing: float = 0.02,
    escape: bool = True,
    max_rounds: int = 16,
    max_steps: int = 5000,
    max_seconds: float | None = None,
    settings: LimitSettings = DEFAULT,
    chunk: int | None = None,
    mesh: Mesh | None = None,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = False,
) -> list[Limit]:
    """The limits of `params / |params|` along many flows, in the order of the problems.

    They are those of `gflow.find_limit(problem, start, ...)`. Where a limit is strict and its basin
    confirmed the direction is the same to the tolerance; a flow that passes a saddle closely may
    end elsewhere, as with any change of the solver. Runs that differ in arrays alone (data, labels,
    radius, smoothing, start) are followed by one compiled program, side by side, and those that
    have arrived leave it. Their KKT points are found, and certified, by further such programs. What
    that does not decide goes on as in `find_limit`, run by run: a saddle that is to be left, and a
    KKT point that Newton's method misses. Problems with kinks, and of more than 500 parameters, are
    handed to `find_limit` altogether.

    Args:
        problems: what is minimised, of any structure.
        starts: parameters, one for each problem, of any norm but 0.
        tolerance, cap_logits, flow_tolerance, smoothing, escape, max_rounds, max_steps, settings:
            as of `find_limit`.
        max_seconds: of the whole call. Runs that are not done by then have the result
            `seconds_spent`; looked at between segments.
        chunk: runs in one call of a program; None for 16 on CPU, where more are no faster a run,
            and 256 on other devices, or fewer where their matrices would take more than 1 GB.
        mesh: a mesh of devices of this process over whose first axis the runs are spread; `chunk`
            is then rounded up to a multiple of its length. Over a second axis, if there is one, the
            examples of each run are spread, and sums over them become collectives: for data that
            one device has no room for, since the linear systems of the steps, no larger than the
            number of examples, are solved by every device. None for one device.
        progress: True for a progress line; or a function of a dict with the steps made, and the
            runs that have arrived and that are under way.
        throw: raise `LimitFailed` for the first run that does not end in a point that nothing
            leaves, once all are done. False returns all limits, each with its own `.result`.

    An interrupt from the keyboard ends all runs that have not arrived as `interrupted`, and
    returns; it is raised where nothing has been computed yet that could be returned.
    `Limit.trajectory` has the start and the end of the true flow only, without physical time.

    Raises:
        TypeError, ValueError: the numbers of problems and starts differ; examples cannot be spread
            evenly; see `find_limit`.
        LimitFailed: with `throw=True`.
    """
    # Arguments that the searches hold under the same names.
    same: dict[str, Any] = {"tolerance": tolerance, "cap_logits": cap_logits, "settings": settings}
    same |= {"smoothing": smoothing, "max_rounds": max_rounds, "max_steps": max_steps}
    check_options(**same, flow_tolerance=flow_tolerance)
    problems, starts = listed("problems", problems), listed("starts", starts)
    check_runs(problems, starts, chunk, mesh, progress)
    same |= {"escape": escape, "deadline": Deadline.after(max_seconds, "find_limits")}
    every = _searches(problems, starts, flow_options(flow_tolerance, settings), same)
    with reporter(progress, "limits") as report:
        found = _all(every, partial(together, chunk=chunk, mesh=mesh, report=report))
    failed = next((limit for limit in found if not limit.successful), None)
    if throw and failed is not None:
        raise LimitFailed(failed)
    return found


def _searches(
    problems: list[Problem], starts: list[Params], flow: dict[str, Any], options: dict[str, Any]
) -> list[RunBeside]:
    """All runs, as checked."""
    layouts: dict[Hashable, Layout] = {}
    kinks: dict[Hashable, bool] = {}
    runs = []
    for row, (problem, params) in enumerate(zip(problems, starts, strict=True)):
        layout, start = _checked(row, problem, params)
        structure = structure_of(problem, layout)
        if structure not in layouts:
            settings, call = options["settings"], "find_limits(problems, starts)"
            check_size(problem, layout.size, settings, call)
            layouts[structure], kinks[structure] = layout, has_kinks(problem)
        search = Search(
            problem=problem,
            layout=layouts[structure],
            has_kinks=kinks[structure],
            flow_options=flow,
            cap_log_kappa=-math.inf,
            **options,
        )
        runs.append(RunBeside(search, start, params, structure))
    return runs


def _checked(row: int, problem: Problem, params: Params) -> tuple[Layout, Start]:
    """The layout and the start of a run, which is named where they are refused."""
    try:
        return started(problem, params)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"`find_limits(problems, starts)`, run {row}: {error}") from error


def _is_small(run: RunBeside) -> bool:
    """Whether a run may be beside others."""
    small = run.search.layout.size <= _MOST_PARAMETERS
    return small and not run.search.has_kinks and run.start.log_kappa < _FARTHEST_START


def _groups(runs: list[RunBeside], rows: Iterable[int]) -> list[list[int]]:
    """These rows, those of one structure together."""
    groups: dict[Hashable, list[int]] = {}
    for row in rows:
        groups.setdefault(runs[row].structure, []).append(row)
    return list(groups.values())


def _all(runs: list[RunBeside], beside: Callable[..., list[Limit | None]]) -> list[Limit]:
    """The limits of all runs: of those that may be beside each other, then of the others.

    After an interrupt no other run begins, and those without a limit end where they started.

    Args:
        beside: the limits of runs of one structure; `together`.

    Raises:
        KeyboardInterrupt: there is nothing yet that could be returned.
    """
    limits: dict[int, Limit] = {}
    try:
        for rows in _groups(runs, (row for row, run in enumerate(runs) if _is_small(run))):
            found = beside([runs[row] for row in rows])
            limits |= {row: one for row, one in zip(rows, found, strict=True) if one is not None}
            _end_if_interrupted(found)
        for row in sorted(set(range(len(runs))) - set(limits)):
            limits[row] = _alone(runs[row])
            _end_if_interrupted([limits[row]])
    except KeyboardInterrupt:
        if not limits:
            raise
    for rows in _groups(runs, sorted(set(range(len(runs))) - set(limits))):
        found = beside([runs[row] for row in rows], stopped=True)
        limits |= {row: one for row, one in zip(rows, found, strict=True) if one is not None}
    return [limits[row] for row in range(len(runs))]


def _end_if_interrupted(limits: Iterable[Limit | None]) -> None:
    """Goes on with an interrupt that a search has heard, and taken for its own end; see
    `together`.
    """
    if any(limit is None or limit.result_name == "interrupted" for limit in limits):
        raise KeyboardInterrupt


def _alone(run: RunBeside) -> Limit:
    """The limit of one run, by itself."""
    search, flow = run.search, run.search.flow_options
    return find_limit(
        search.problem,
        run.params,
        tolerance=search.tolerance,
        cap_logits=search.cap_logits,
        flow_tolerance=flow["tolerance"],
        smoothing=search.smoothing,
        escape=search.escape,
        max_rounds=search.max_rounds,
        max_steps=search.max_steps,
        max_seconds=search.deadline.left(),
        settings=search.settings,
        throw=False,
    )
