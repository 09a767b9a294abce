"""Going on from where a trajectory ended.

With the options of the trajectory the run goes on from its checkpoint: steps that were made only to
land on its target are discarded, and the joined run is, bit for bit, the one without the stop. With
other tolerances or another solver, or from a file without a checkpoint, it goes on from the last
point. That point is taken from the logarithms in the trajectory. Its parameters would not do: they
do not hold the time, and far out they overflow.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import diffrax
import numpy as np

from gflow._checks import Default
from gflow.checkpoint import Checkpoint
from gflow.flow.chattering import ChatterMemory
from gflow.flow.field import Field
from gflow.flow.options import checked_cap, checked_solver
from gflow.flow.outcome import targets_met
from gflow.flow.passage import PassageMemory
from gflow.flow.place import Path, Place, describe, first_budget, read
from gflow.flow.run import Run
from gflow.flow.same_problem import last_row
from gflow.flow.segment import begin
from gflow.flow.solvers import first_solver, fitted, solver_named, stiff_solver
from gflow.flow.starting import Tolerances, control_of, first_length
from gflow.flow.stiffness import StiffnessWatch
from gflow.flow.until import NEVER, Until
from gflow.problem import Problem
from gflow.record import Record, picked, rows_of
from gflow.trajectory import Trajectory

# The settings of a run that, with the problem, decide how it goes on.
PATH_SETTINGS = ("solver", "tolerance", "rtol_direction", "atol_logit", "kappa_cap")


class PathOptions(NamedTuple):
    """The options of a call of `integrate` that decide the path, as they were given."""

    solver: diffrax.AbstractSolver | None
    tolerance: float
    rtol_direction: float | None
    atol_logit: float
    kappa_cap: float | None


class Continued(NamedTuple):
    """A run that goes on from a trajectory.

    Attributes:
        run: the new run.
        earlier: the options of earlier parts of the joined run that were made with other options.
    """

    run: Run
    earlier: list[dict[str, Any]]


def already_met(problem: Problem, trajectory: Trajectory, log_cap: Any, until: Until) -> list[str]:
    """The targets that the last point of a trajectory meets."""
    field = Field(problem, trajectory.layout, log_cap)
    return targets_met(until, field, last_row(trajectory))


def cap_going_on(trajectory: Trajectory, options: PathOptions, until: Until) -> np.ndarray:
    """`log kappa_c`: that which is given, or else that of the trajectory.

    Another cap may be given as long as kappa has not reached either of the two, since up to there
    the flows are the same.

    Raises:
        ValueError: another cap was given, and kappa has passed the smaller of the two.
    """
    facts = {} if trajectory.checkpoint is None else trajectory.checkpoint.facts
    cap = trajectory.settings["kappa_cap"]
    # The checkpoint holds log kappa_c exactly; computed from kappa_c it would differ by rounding.
    own = facts.get("log_cap", None if cap is None else np.log(cap))
    own = np.asarray(np.inf if own is None else own)
    if options.kappa_cap is None:
        if not np.isfinite(own):
            checked_cap(None, options.atol_logit, until)
        return own
    asked = checked_cap(options.kappa_cap, options.atol_logit, until)
    if asked != own and np.max(trajectory.log_kappa) > min(asked, own):
        raise ValueError(
            f"`integrate(problem, trajectory, kappa_cap={options.kappa_cap!r})`: the trajectory "
            f"has followed the flow with kappa_cap={cap!r} beyond where the two are the same. "
            "Leave `kappa_cap` out to go on with its own."
        )
    return asked


def continued(
    problem: Problem,
    trajectory: Trajectory,
    options: PathOptions,
    log_cap: np.ndarray,
    until: Until,
    save: int | None,
) -> Continued:
    """The run that goes on from a trajectory, about to make its first segment."""
    tolerances = _tolerances(trajectory, options)
    scale = np.asarray(trajectory.settings.get("log_time_scale", 0.0))
    path = Path(Field(problem, trajectory.layout, log_cap, scale), tolerances)
    solver = _solver(trajectory, options, tolerances)
    earlier = list(trajectory.settings.get("earlier", []))
    checkpoint = trajectory.checkpoint
    if checkpoint is not None and _same_options(trajectory, checkpoint, solver, tolerances):
        known = _own_solver(checkpoint, tolerances) if solver is None else solver
        place = read(path, known, checkpoint)
        if place is not None:
            record = _cut_record(trajectory, checkpoint, save)
            return Continued(Run(path, until, place, record), earlier)
    place, record = _at_last_point(path, solver, trajectory), _whole_record(trajectory, save)
    return Continued(Run(path, until, place, record), [*earlier, _part(trajectory)])


def _tolerances(trajectory: Trajectory, options: PathOptions) -> Tolerances:
    """The tolerances that are given, or else those of the trajectory."""
    settings = trajectory.settings
    tolerance, across = options.tolerance, options.rtol_direction
    if isinstance(tolerance, Default):
        tolerance = settings["tolerance"]
        # Files of earlier versions have one tolerance for all.
        across = settings.get("rtol_direction", tolerance) if across is None else across
    across = tolerance if across is None else across
    logit = options.atol_logit
    logit = settings["atol_logit"] if isinstance(logit, Default) else logit
    return Tolerances(float(tolerance), float(across), float(logit))


def _is_automatic(trajectory: Trajectory) -> bool:
    """Whether gflow chose the solver of the trajectory."""
    if trajectory.checkpoint is not None:
        return bool(trajectory.checkpoint.facts["automatic"])
    return trajectory.stats["stiff_from"] is not None or trajectory.settings["solver"] == "Tsit5"


def _solver(
    trajectory: Trajectory, options: PathOptions, tolerances: Tolerances
) -> diffrax.AbstractSolver | None:
    """The solver that is given, or else that of the trajectory; None where gflow chooses it."""
    if options.solver is not None:
        return checked_solver(options.solver, tolerances.tolerance)
    if _is_automatic(trajectory):
        return None
    checkpoint, name = trajectory.checkpoint, trajectory.settings["solver"]
    own = None if checkpoint is None else checkpoint.solver
    if own is None:
        own = solver_named(name, tolerances.tolerance)
        known = own is not None and (
            checkpoint is None or describe(own) == checkpoint.facts["solver"]
        )
        if not known:
            raise ValueError(
                f"`integrate(problem, trajectory)`: its file names the solver `{name}` but cannot "
                "hold its options. Give the solver of the run again: "
                "`integrate(problem, trajectory, ..., solver=...)`."
            )
    return checked_solver(own, tolerances.tolerance)


def _same_options(
    trajectory: Trajectory,
    checkpoint: Checkpoint,
    solver: diffrax.AbstractSolver | None,
    tolerances: Tolerances,
) -> bool:
    """Whether solver and tolerances are those of the trajectory."""
    settings = trajectory.settings
    if any(float(settings[name]) != value for name, value in tolerances._asdict().items()):
        return False
    facts = checkpoint.facts
    if solver is None or facts["automatic"]:
        return solver is None and facts["automatic"]
    return describe(solver) == _described(checkpoint, tolerances.tolerance)


def _described(checkpoint: Checkpoint, tolerance: float) -> str:
    """The solver of a checkpoint in words.

    A solver that was restored is described anew, since an earlier version may have described the
    same options in other words. If the file could not hold the solver, the stored text is used.
    """
    own = checkpoint.solver
    return checkpoint.facts["solver"] if own is None else describe(fitted(own, tolerance))


def _own_solver(checkpoint: Checkpoint, tolerances: Tolerances) -> diffrax.AbstractSolver:
    """The solver that gflow had chosen for the run."""
    switched = checkpoint.facts["watch"] is None
    return stiff_solver(tolerances.tolerance) if switched else first_solver()


def _cut_record(trajectory: Trajectory, checkpoint: Checkpoint, save: int | None) -> Record:
    """The record up to the checkpoint, whose own point the next segment hands in."""
    made, stride = checkpoint.facts["num_accepted"], checkpoint.facts["stride"]
    rows = rows_of(trajectory.columns, trajectory.vectors)
    rows = picked(rows, rows.num_accepted < made)
    stride = 1 if save is None else stride
    return Record(save, rows, stride, checkpoint.log_losses.tolist())


def _whole_record(trajectory: Trajectory, save: int | None) -> Record:
    """The record of a trajectory up to its last point, from which the integration begins anew."""
    rows = rows_of(trajectory.columns, trajectory.vectors)
    stride = int(np.gcd.reduce(trajectory.num_steps_at[:-1])) if len(trajectory) > 2 else 1
    stride = 1 if save is None else stride
    if rows.num_accepted[-1] % stride == 0:
        rows = picked(rows, slice(0, -1))  # the next segment records the last point again
    return Record(save, rows, stride, trajectory.log_loss.tolist())


def _at_last_point(
    path: Path, solver: diffrax.AbstractSolver | None, trajectory: Trajectory
) -> Place:
    """The place at the last point of a trajectory, without a checkpoint."""
    last = last_row(trajectory)
    num_steps = int(trajectory.stats["num_steps"])
    watch = stiff_from = None
    if solver is None:
        stiff_from = trajectory.stats["stiff_from"]
        watch = StiffnessWatch(num_steps) if stiff_from is None else None
        tolerance = path.tolerances.tolerance
        solver = first_solver() if stiff_from is None else stiff_solver(tolerance)
    control = control_of(solver, path.tolerances, 1, NEVER)
    # The very last steps may have been shortened to land on a target.
    step = float(np.max(trajectory.step[-4:]))
    if not 0 < step < np.inf or len(trajectory) < 2:
        # The strength is the speed `|sum_i p_i grad q_i|`.
        speed = float(last.measures.strength)
        step = first_length(solver, control) / (speed if speed > 0 else 1.0)
    log_time = path.field.log_time(last.state[-1])
    cursor = begin(
        path.field,
        solver,
        control,
        np.float64(last.clock),
        np.append(last.state[:-1], log_time),
        np.float64(step),
        np.int64(last.num_accepted),
    )
    budget = first_budget(path.field, solver)
    chatter = ChatterMemory(np.asarray(cursor.state), float(last.clock))
    passage = PassageMemory(spans=trajectory.stats.get("through_zero", []))
    counts = stiff_from, num_steps, len(trajectory) - 1, budget
    return Place(cursor, solver, watch, chatter, *counts, passage)


def _part(trajectory: Trajectory) -> dict[str, Any]:
    """The options of the trajectory's last part, as settings of a run that went on with others."""
    settings: Mapping[str, Any] = trajectory.settings
    options = {name: settings[name] for name in PATH_SETTINGS if name in settings}
    end = int(trajectory.num_steps_at[-1])
    return {"num_steps_at": end, "stiff_from": trajectory.stats["stiff_from"], **options}
