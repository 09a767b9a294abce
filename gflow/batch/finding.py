"""`find_limits`: the limits of many flows, those of one structure side by side."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from gflow._checks import is_integer, is_list
from gflow._interrupts import interruptible
from gflow._layout import Layout
from gflow._signatures import named
from gflow._typing import Params
from gflow.batch.certificates import certificates
from gflow.batch.flow import followed
from gflow.batch.judging import judged_beside
from gflow.batch.lanes import ACTIVE, ARRIVED, FAR, Goals, Lane
from gflow.batch.points import points
from gflow.batch.stacked import Runs, default_width, stacked, structure_of
from gflow.batch.states import states
from gflow.deadline import Deadline
from gflow.kkt.switches import has_kinks
from gflow.limit import Limit, LimitFailed, LimitSettings, find_limit
from gflow.limit.ending import certified_params
from gflow.limit.options import check_options, check_size, flow_options
from gflow.limit.search import Search, run
from gflow.limit.search_settings import DEFAULT
from gflow.limit.slopes import limit_or_more
from gflow.limit.smooth import Smooth
from gflow.limit.starting import polar, started
from gflow.limit.state import Start, State, begun
from gflow.problem import Problem
from gflow.progress import check_progress, reporter
from gflow.validation import check_values

# A run that starts at a log kappa beyond this is followed by itself.
_FARTHEST_START = 600.0
# The Hessian of more parameters is not formed side by side.
_MOST_PARAMETERS = 500
# What the matrices of runs side by side may take.
_BYTES = 2**30


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

    An interrupt from the keyboard ends runs that are under way as `interrupted`, and returns.
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
    problems, starts = _listed("problems", problems), _listed("starts", starts)
    _check(problems, starts, chunk, mesh, progress)
    same |= {"escape": escape, "deadline": Deadline.after(max_seconds, "find_limits")}
    every = _searches(problems, starts, flow_options(flow_tolerance, settings), same)
    limits = _side_by_side(every, chunk, mesh, progress)
    found = [limits[row] if row in limits else _alone(each) for row, each in enumerate(every)]
    failed = next((limit for limit in found if not limit.successful), None)
    if throw and failed is not None:
        raise LimitFailed(failed)
    return found


def _listed(name: str, values: Any) -> list[Any]:
    if not is_list(values):
        kind = type(values).__name__
        raise TypeError(f"`find_limits({name}=...)`: a {kind} is no list; give one for each run.")
    return list(values)


def _check(problems: list[Any], starts: list[Any], chunk: Any, mesh: Any, progress: Any) -> None:
    """Refuses, by the name of the argument, what cannot be meant."""
    if len(problems) != len(starts):
        raise ValueError(
            f"`find_limits(problems, starts)`: {len(problems)} problems and {len(starts)} starts; "
            "give one start for each problem."
        )
    for index, problem in enumerate(problems):
        if not isinstance(problem, Problem):
            raise TypeError(
                f"`find_limits(problems, ...)`: problems[{index}] is a {type(problem).__name__}, "
                "expected a `gflow.Problem`."
            )
    check_layout(chunk, mesh, "find_limits", "chunk")
    if mesh is not None:
        _check_mesh(mesh, problems)
    check_progress(progress, "find_limits")


def check_layout(chunk: Any, mesh: Any, call: str, name: str) -> None:
    """Refuses what says how runs are searched side by side; `name` is what `call` calls `chunk`."""
    if chunk is not None and (not is_integer(chunk) or chunk < 1):
        raise ValueError(f"`{call}({name}={chunk!r})` must be None or a positive integer.")
    if mesh is not None and not isinstance(mesh, Mesh):
        raise TypeError(f"`{call}(mesh={mesh!r})` must be None or a `jax.sharding.Mesh`.")


def _check_mesh(mesh: Any, problems: list[Problem]) -> None:
    """Refuses axes without a meaning, devices of other processes, and examples left over."""
    if not 1 <= len(mesh.axis_names) <= 2:
        raise ValueError(
            f"`find_limits(mesh=...)` has {len(mesh.axis_names)} axes; give one, for the runs, or "
            "two, the second one for the examples."
        )
    if any(each.process_index != jax.process_index() for each in mesh.devices.flat):
        raise ValueError(
            "`find_limits(mesh=...)` holds devices of other processes: give one of "
            "`jax.local_devices()`. `gflow.sweep(distributed=True)` spreads runs over processes."
        )
    shared = mesh.shape[mesh.axis_names[1]] if len(mesh.axis_names) == 2 else 1
    for index, problem in enumerate(problems):
        if len(problem.dataset) % shared:
            raise ValueError(
                f"`find_limits(mesh=...)`: the {len(problem.dataset)} examples of "
                f"problems[{index}] cannot be spread evenly over {shared} devices."
            )


class _Run(NamedTuple):
    """One run: its search, where it starts, and what others must share to be beside it."""

    search: Search
    start: Start
    params: Params
    structure: Hashable

    @property
    def path(self) -> np.ndarray:
        """`(u, log rho)` of the start."""
        return np.append(self.start.vector, self.start.log_kappa / self.search.problem.degree)


def _searches(
    problems: list[Problem], starts: list[Params], flow: dict[str, Any], options: dict[str, Any]
) -> list[_Run]:
    """All runs, as checked: of each structure the first one throughout, all by their values."""
    layouts: dict[Hashable, Layout] = {}
    kinks: dict[Hashable, bool] = {}
    runs = []
    for problem, params in zip(problems, starts, strict=True):
        structure = structure_of(problem, params)
        if structure not in layouts:
            layouts[structure], start = started(problem, params)
            check_size(
                layouts[structure].size, options["settings"], "find_limits(problems, starts)"
            )
            kinks[structure] = has_kinks(problem)
        else:
            check_values(params)
            vector, log_norm = polar(layouts[structure].flatten_on_host(params).astype(float))
            start = Start(vector, problem.degree * log_norm)
        search = Search(
            problem=problem,
            layout=layouts[structure],
            has_kinks=kinks[structure],
            flow_options=flow,
            cap_log_kappa=-math.inf,
            **options,
        )
        runs.append(_Run(search, start, params, structure))
    return runs


def _groups(runs: list[_Run]) -> list[list[int]]:
    """The runs that may be beside each other, by their rows."""
    groups: dict[Hashable, list[int]] = {}
    for row, (search, start, _, structure) in enumerate(runs):
        small = search.layout.size <= _MOST_PARAMETERS
        if small and not search.has_kinks and start.log_kappa < _FARTHEST_START:
            groups.setdefault(structure, []).append(row)
    return list(groups.values())


def _side_by_side(
    runs: list[_Run], chunk: int | None, mesh: Mesh | None, progress: Any
) -> dict[int, Limit]:
    """The limits of the runs that may be beside each other, by their rows."""
    limits: dict[int, Limit] = {}
    with reporter(progress, "limits") as report:
        for rows in _groups(runs):
            group = [runs[row] for row in rows]
            limits |= dict(zip(rows, _together(group, chunk, mesh, report), strict=True))
    return limits


def _alone(run: _Run) -> Limit:
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


def _together(
    group: list[_Run],
    chunk: int | None,
    mesh: Mesh | None,
    report: Callable[[dict[str, Any]], None],
) -> list[Limit]:
    """The limits of runs of one structure."""
    searches = [each.search for each in group]
    first, settings = searches[0], searches[0].settings
    width = _width(first, len(group), chunk, mesh)
    runs = Runs(stacked([each.problem for each in searches]), first.layout, width, mesh)
    paths = np.stack([each.path for each in group])

    def show(lanes: Lane) -> None:
        arrived, going = lanes.status == ARRIVED, lanes.status == ACTIVE
        steps = int(np.sum(lanes.num_steps + lanes.num_to_cap))
        report({"steps": steps, "arrived": int(arrived.sum()), "under way": int(going.sum())})

    lanes, why = followed(runs, _goals(first), paths, first.deadline, show)
    begun_ = states(runs, searches, paths, lanes, why)
    ready = np.flatnonzero(np.isin(lanes.status, (ARRIVED, FAR)))
    ready = np.array([row for row in ready if begun_[row] is not None], int)
    found = {} if why else points(runs, lanes, ready, first.tolerance, settings.refine)
    for row, point in found.items():
        state = begun_[row]
        assert state is not None
        begun_[row] = Smooth(searches[row]).arrived_at(point, state, 0.0)
    refiners = judged_beside(runs, searches, begun_)
    ended = []
    for refiner, each, state in zip(refiners, group, begun_, strict=True):
        if state is None:
            logits, handover = first.cap_logits, settings.flow.handover
            state = begun(each.start, logits, first.cap_log_kappa, handover)
            ended.append(run(refiner, state))
        else:
            ended.append(run(refiner, state, approached=True))
    return _limits(runs, searches, ended)


def _limits(runs: Runs, searches: list[Search], ended: list[State]) -> list[Limit]:
    """The limits of the last states, certified together."""
    problems = [search.problem for search in searches]
    params = [certified_params(*each) for each in zip(searches, ended, strict=True)]
    certified = certificates(runs, problems, params)
    every = zip(searches, ended, certified, strict=True)
    return [limit_or_more(search, state, 0.0, certificate) for search, state, certificate in every]


def _goals(search: Search) -> Goals:
    """What all runs are to reach."""
    flow = search.settings.flow
    return Goals(
        log_logits=np.log(search.cap_logits),
        cap_accuracy=np.float64(flow.cap_accuracy),
        most_logits=np.float64(flow.most_logits),
        handover=np.float64(flow.handover),
        handover_accuracy=np.float64(flow.handover_accuracy),
        farthest=np.float64(flow.farthest),
        tolerance=np.float64(search.flow_options["tolerance"]),
        logit_tolerance=np.float64(flow.logit_tolerance),
        most_steps=np.int64(search.max_steps),
    )


def _width(search: Search, count: int, chunk: int | None, mesh: Mesh | None) -> int:
    """Runs in one call of a program."""
    size, data = search.layout.size, search.problem.dataset
    margins = len(data.x) * max(data.num_outputs - 1, 1)
    bytes_of_run = 8 * (size**2 + 12 * margins * size + data.x.size)
    width = max(1, min(default_width(), _BYTES // bytes_of_run)) if chunk is None else int(chunk)
    if mesh is None:
        return width
    devices = mesh.shape[mesh.axis_names[0]]
    return devices * math.ceil(min(width * devices, count) / devices)
