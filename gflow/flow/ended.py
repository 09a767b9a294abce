"""The trajectory that a run leaves."""

import dataclasses
from typing import Any

import diffrax
import numpy as np

from gflow.flow.outcome import targets_met
from gflow.flow.place import Path, written
from gflow.flow.reading import read_between
from gflow.flow.run import Run
from gflow.flow.until import Until
from gflow.results import RESULTS, STOPPED, name_of
from gflow.stiff.traits import traits_of
from gflow.trajectory import Trajectory


def trajectory_of(
    run: Run, result: RESULTS, seconds: float, max_steps: int, earlier: list[dict[str, Any]]
) -> Trajectory:
    """The trajectory of all that was recorded, with the options and counts of the run.

    Args:
        seconds: of the run, including those before it was resumed.
        max_steps: of the last call.
        earlier: options of earlier parts of the run that were made with other options.
    """
    field = run.path.field
    columns, vectors = run.record.columns(field.problem.degree)
    beyond = columns["log_kappa"] > field.log_cap
    columns = {**columns, "log1p_time": np.where(beyond, np.nan, columns["log1p_time"])}
    # Counting the chattering examples takes further steps: not after an interrupt or a time limit.
    in_haste = name_of(result) in STOPPED
    chattering = None if in_haste else run.num_chattering()
    if chattering and name_of(result) == "step_budget_spent":
        result = RESULTS.chattering  # pyright: ignore[reportAssignmentType]
    met = targets_met(run.until, field, run.record.last(), landed=True)
    stats = {
        **stats_of(run.num_steps, int(columns["num_steps_at"][-1]), seconds),
        "stopped_by": met[0] if name_of(result) == "successful" else None,
        "stiff_from": run.now.stiff_from,
        "through_zero": run.passage.spans,
        "num_chattering": chattering,
    }
    settings = settings_of(run.path, run.until, run.now.solver, run.record.limit, max_steps)
    return Trajectory(
        kind="flow",
        reader=read_between,
        columns=columns,
        vectors=vectors,
        layout=field.layout,
        problem=field.problem,
        result=result,
        stats=stats,
        settings=settings | ({"earlier": earlier} if earlier else {}),
        checkpoint=written(run.path, run.place, run.record),
    )


def stats_of(num_steps: int, num_accepted: int, seconds: float) -> dict[str, Any]:
    """`Trajectory.stats` of a flow of which nothing else is known.

    Args:
        num_steps: steps tried, rejected ones included.
    """
    return {
        "num_steps": num_steps,
        "num_accepted_steps": num_accepted,
        "num_rejected_steps": num_steps - num_accepted,
        "stopped_by": None,
        "stiff_from": None,
        "through_zero": [],
        "num_chattering": None,
        "seconds": seconds,
    }


def settings_of(
    path: Path, until: Until, solver: diffrax.AbstractSolver, save: int | None, max_steps: int
) -> dict[str, Any]:
    """`Trajectory.settings` of a flow: its options as plain values."""
    field = path.field
    return {
        "until": until.as_dict(),
        "solver": traits_of(solver).name,
        **{name: float(value) for name, value in path.tolerances._asdict().items()},
        "kappa_cap": None if np.isinf(field.log_cap) else float(np.exp(field.log_cap)),
        "save": save,
        "max_steps": max_steps,
        "gradient": field.problem.gradient_mode,
        "log_time_scale": float(field.log_time_scale),
    }


def reached_before(trajectory: Trajectory, until: Until, stopped_by: str) -> Trajectory:
    """A trajectory whose last point meets the targets that it was to go on to."""
    if trajectory.successful and trajectory.settings["until"] == until.as_dict():
        return trajectory
    return dataclasses.replace(
        trajectory,
        result=RESULTS.successful,
        stats={**trajectory.stats, "stopped_by": stopped_by},
        settings={**trajectory.settings, "until": until.as_dict()},
    )


def stopped_before(trajectory: Trajectory, until: Until, result: RESULTS) -> Trajectory:
    """The trajectory of a run that was resumed, and stopped again before it had come past the end
    of what was recorded already.
    """
    return dataclasses.replace(
        trajectory,
        result=result,
        stats={**trajectory.stats, "stopped_by": None},
        settings={**trajectory.settings, "until": until.as_dict()},
    )
