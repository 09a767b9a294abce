"""`integrate`: the flow from a start to a target, segment by segment."""

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import diffrax
import numpy as np

from gflow._checks import Default
from gflow._interrupts import interruptible
from gflow._layout import Layout
from gflow._signatures import named
from gflow._typing import Params
from gflow.deadline import Deadline
from gflow.flow.chattering import ChatterMemory
from gflow.flow.continuing import PathOptions, already_met, cap_going_on, continued
from gflow.flow.ended import reached_before, stopped_before, trajectory_of
from gflow.flow.field import Field
from gflow.flow.keeping import arguments_of, content_of, kept_trajectory
from gflow.flow.options import check_options, checked_cap, checked_solver
from gflow.flow.place import Path, Place, first_budget
from gflow.flow.run import Run
from gflow.flow.same_problem import check_continuable
from gflow.flow.solvers import first_solver
from gflow.flow.starting import Tolerances, control_of, start_cursor
from gflow.flow.stiffness import StiffnessWatch
from gflow.flow.until import Until
from gflow.problem import Problem
from gflow.progress import check_progress, reporter
from gflow.record import Record
from gflow.results import RESULTS
from gflow.saving import Saving, saving_to
from gflow.trajectory import RunFailed, Trajectory
from gflow.validation import check_start

# Points of a trajectory that are kept at most.
_SAVE = 512


@named(until="It says when to stop: `until=gflow.Until(log_loss=-10.0)`.")
@interruptible
def integrate(
    problem: Problem,
    params: Params | Trajectory,
    *,
    until: Until,
    solver: diffrax.AbstractSolver | None = None,
    tolerance: float = Default(1e-8),
    rtol_direction: float | None = None,
    atol_logit: float = Default(0.1),
    kappa_cap: float | None = None,
    save: int | None = _SAVE,
    max_steps: int = 100_000,
    max_seconds: float | None = None,
    checkpoint: str | os.PathLike | None = None,
    checkpoint_seconds: float = 60.0,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Trajectory:
    """Integrates `dparams/dt = -grad(sum loss)` from `params` until a target is reached.

    The path is followed on the unit sphere with the norm, the time and the loss in logarithms
    (`gflow.flow.field`), so that none of them over- or underflows.

    From a trajectory of the same problem the run goes on where that ended: the new trajectory holds
    its points too, and its time, steps and seconds count on. Options that are not given are then
    those of the trajectory. With these, whatever `until`, `save`, `max_steps` and `max_seconds`,
    the joined run equals, bit for bit, the one without the stop, on the same machine with the same
    versions. The steps that the trajectory made only to land on its target are not a part of that
    run, and are discarded; `.at` still reads points there. With other tolerances, with another
    solver, or from a file of an earlier version, the run goes on from the last point, with the
    accuracy of these options. Where the last point meets the target already, no step is made.

    Args:
        problem: what is minimised.
        params: the start, any pytree of arrays, not zero; or a trajectory of the flow of this
            problem, to go on with.
        until: what to reach. The last point lies on the target, as a step of the solver.
        solver: None begins with `diffrax.Tsit5()`, whose steps shrink like 1/kappa, and goes on
            with `gflow.Rosenbrock()` where stiffness has made that the cheaper one (see
            `gflow.flow.stiffness`). Or any diffrax ODE solver with an error estimate, to be used
            throughout; only a `Rosenbrock` has its error controlled in the logits. Going on, None
            is the choice of the trajectory.
        tolerance: local error per step of log |params| and of log(1 + t), that is, relative error
            of |params| and of 1 + t; and of the direction, unless that has a bound of its own.
        rtol_direction: local error per step of the direction, `|du|_2`; None for `tolerance`.
            Of the directions that the flow does not damp, expect an error of 0.04 to 1.2 times this
            at the end (deep linear networks, 1e-4 to 1e-8, `benchmarks/solvers.py`); of
            those that it does, far less.
        atol_logit: local error per step in the logits,
            `sqrt(sum_i p_i (kappa <grad q_i, du>)^2)`, where the solver is a `Rosenbrock`: an error
            of the direction is one of kappa times that in what the loss sees. It keeps the error of
            what the flow damps to `atol_logit / kappa`, so that far out a loose `rtol_direction`
            will do. Above about 0.1 the linearisation of the weights p no longer holds, and steps
            are wasted.
        kappa_cap: kappa_c; the weights p of the flow are those of min(kappa, kappa_c). Beyond it
            the direction follows the flow up to O(1/kappa_c), kappa may leave the range of
            floating-point numbers, and `log1p_time` is NaN. None for the true flow; going on, for
            that of the trajectory. Going on, another cap may be given if kappa has not reached
            either of the two.
        save: the number of points kept at most, evenly spread over the steps; None keeps every
            accepted step. `Trajectory.at` is as accurate as the run whatever is kept, and nothing
            else depends on it.
        max_steps: steps tried at most, rejected ones included; going on, steps beyond those of the
            trajectory.
        max_seconds: after so many seconds the run ends, as `seconds_spent`; it can be continued
            from the trajectory returned. Checked between segments of up to some 250 steps, about a
            second on one CPU core, the first of which includes compilation. None for no limit.
        checkpoint: a file, `.npz`, in which the run is kept while it goes on; None for none. Where
            it holds a run of the same problem, start and options, the call goes on from there, and
            ends, bit for bit, as if it had not been stopped; a run that came to its end is returned
            from the file. So after a kill the same call is made again. `max_seconds`, `progress`
            and `throw` may be others. Nothing that is computed depends on this.
        checkpoint_seconds: the file is written between segments, when so many seconds have passed
            since it was last, and at the end; 0 writes it after every segment.
        progress: True for a progress line; or a function that is called after every segment with a
            dict of what the line shows.
        throw: raise `RunFailed` where the target was not reached. False returns the trajectory,
            with the reason in `.result`. An interrupt from the keyboard always returns.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options.
        ValueError: a trajectory of `descend`, of another problem, or beyond another `kappa_cap`;
            one whose file could not hold the options of its solver, without a `solver`.
        ValueError: `checkpoint` belongs to another call, or is no such file, or the state of the
            solver cannot be written to files.
        RuntimeError: another run writes into `checkpoint`.
        OSError: `checkpoint` cannot be written.
        RunFailed: with `throw=True`, a run that did not reach its target.

    Source: Lyu & Li 2020 and Lyu & Zhu 2022 for the flow and its normalized margin.
    """
    check_options(until, tolerance, rtol_direction, save, max_steps)
    check_progress(progress, "integrate")
    call = _CallOptions(
        None if save is None else int(save),
        int(max_steps),
        Deadline.after(max_seconds, "integrate"),
        progress,
    )
    options = PathOptions(solver, tolerance, rtol_direction, atol_logit, kappa_cap)
    arguments = partial(arguments_of, problem, params, until, options, call.save, call.max_steps)
    with saving_to(checkpoint, checkpoint_seconds, "integrate", arguments) as saving:
        trajectory = _run(problem, params, until, options, call._replace(saving=saving))
    if throw and trajectory.result_name not in ("successful", "interrupted"):
        raise RunFailed(trajectory)
    return trajectory


def integrate_into(
    saving: Saving,
    problem: Problem,
    params: Params | Trajectory,
    *,
    until: Until,
    solver: diffrax.AbstractSolver | None = None,
    tolerance: float = 1e-8,
    atol_logit: float = 0.1,
    kappa_cap: float | None = None,
    max_steps: int = 100_000,
    max_seconds: float | None = None,
    progress: bool | Callable[[dict[str, Any]], None] = False,
) -> Trajectory:
    """`integrate` as a part of another call, which has checked the options and keeps the run; it
    never throws.
    """
    deadline = Deadline.after(max_seconds, "integrate")
    options = PathOptions(solver, tolerance, None, atol_logit, kappa_cap)
    call = _CallOptions(_SAVE, max_steps, deadline, progress, saving)
    return _run(problem, params, until, options, call)


class _CallOptions(NamedTuple):
    """The options of a call that do not decide the path."""

    save: int | None
    max_steps: int
    deadline: Deadline
    progress: bool | Callable[[dict[str, Any]], None]
    saving: Saving = Saving()


def _run(
    problem: Problem,
    params: Params | Trajectory,
    until: Until,
    options: PathOptions,
    call: _CallOptions,
) -> Trajectory:
    """The run of a call, from its beginning or from where it was kept."""
    content = call.saving.content
    if content is not None:
        with call.saving.reading():
            kept = kept_trajectory(problem, content)
        if content.finished:
            return kept
        return _from_kept(problem, params, kept, until, options, call)
    if isinstance(params, Trajectory):
        return _from_trajectory(problem, params, until, options, call)
    return _from_parameters(problem, params, until, options, call)


def _from_parameters(
    problem: Problem, params: Params, until: Until, options: PathOptions, call: _CallOptions
) -> Trajectory:
    """The trajectory of a run that begins at parameters."""
    log_cap = checked_cap(options.kappa_cap, options.atol_logit, until)
    chosen = checked_solver(options.solver, options.tolerance)
    params = check_start(problem, params)
    across = options.tolerance if options.rtol_direction is None else options.rtol_direction
    tolerances = Tolerances(options.tolerance, across, options.atol_logit)
    path = Path(Field(problem, Layout.of(params), log_cap), tolerances)
    solver = first_solver() if chosen is None else chosen
    cursor = start_cursor(path.field, solver, control_of(solver, tolerances, 1, until), params)
    # At t = 0 the last entry of the state, log(T + t), is the logarithm of the time scale T.
    path = path.scaled(np.asarray(cursor.state)[-1, ...])
    watch = StiffnessWatch() if chosen is None else None
    chatter, budget = ChatterMemory(np.asarray(cursor.state)), first_budget(path.field, solver)
    place = Place(cursor, solver, watch, chatter, budget=budget)
    run = Run(path, until, place, Record(call.save))
    return _followed(run, call, [])


def _from_trajectory(
    problem: Problem,
    start: Trajectory,
    until: Until,
    options: PathOptions,
    call: _CallOptions,
) -> Trajectory:
    """The trajectory of a run that goes on from another, joined with that."""
    check_continuable(problem, start)
    log_cap = cap_going_on(start, options, until)
    met = already_met(problem, start, log_cap, until)
    # `kappa_overflow` is the end of the numbers and nothing that was asked for: met alone, it is
    # left to the run, which ends with it as its outcome.
    if met and met != ["kappa_overflow"]:
        return reached_before(start, until, met[0])
    run, earlier = continued(problem, start, options, log_cap, until, call.save)
    return _followed(run, call, earlier, start, start)


def _from_kept(
    problem: Problem,
    start: Params | Trajectory,
    kept: Trajectory,
    until: Until,
    options: PathOptions,
    call: _CallOptions,
) -> Trajectory:
    """The trajectory of a call that was stopped, from where its file keeps it."""
    check_continuable(problem, kept)
    log_cap = cap_going_on(kept, options, until)
    run, earlier = continued(problem, kept, options, log_cap, until, call.save)
    return _followed(run, call, earlier, start if isinstance(start, Trajectory) else None, kept)


def _followed(
    run: Run,
    call: _CallOptions,
    earlier: list[dict[str, Any]],
    start: Trajectory | None = None,
    resumed: Trajectory | None = None,
) -> Trajectory:
    """The trajectory of a run, which is also kept in a file on its way (`_CallOptions.saving`).

    Args:
        earlier: options of earlier parts of the run that were made with other options.
        start: the trajectory that the call goes on with, if any.
        resumed: the trajectory from which the run is resumed, if it is: `start`, or what the file
            of the call keeps.
    """
    begin, so_far = time.perf_counter(), 0.0 if resumed is None else resumed.stats["seconds"]
    max_steps = call.max_steps + (0 if start is None else start.stats["num_steps"])

    def recorded_as(result: Any) -> Trajectory:
        seconds = so_far + time.perf_counter() - begin
        return trajectory_of(run, result, seconds, call.max_steps, earlier)

    def keep() -> None:
        call.saving.offer(lambda: content_of(recorded_as(RESULTS.interrupted)))

    with reporter(call.progress, "flow") as report:
        result = run.go(max_steps, call.deadline, report, keep)
    # The steps before a target that was landed on are made again. A run that is stopped during
    # these leaves what was recorded already.
    known = [each for each in (resumed, start) if each is not None]
    longer = [each for each in known if run.ends_before(each.clock[-1])]
    trajectory = stopped_before(longer[0], run.until, result) if longer else recorded_as(result)
    call.saving.offer(lambda: content_of(trajectory), now=True)
    return trajectory
