"""A run of the flow as the file of its checkpoint holds it; see `gflow.saving`."""

from typing import Any

from gflow._checks import Default
from gflow._description import encode_structure
from gflow._typing import Params
from gflow.flow.continuing import PathOptions
from gflow.flow.reading import read_between
from gflow.flow.until import Until
from gflow.problem import Problem
from gflow.results import STOPPED
from gflow.saving import Content
from gflow.stored import parts, restored
from gflow.trajectory import Trajectory


def arguments_of(
    problem: Problem,
    start: Params | Trajectory,
    until: Until,
    options: PathOptions,
    save: int | None,
    max_steps: int,
) -> dict[str, Any]:
    """What decides a run: equal for calls that make the same one.

    Raises:
        TypeError: parameters that a file cannot hold.
    """
    named = options._asdict()
    if isinstance(start, Trajectory):
        # An option that is not given is that of the trajectory, and not its default.
        own = {name: None for name, value in named.items() if isinstance(value, Default)}
        named, start = named | own, identity_of(start)
    else:
        encode_structure(start)
    targets = {**until.as_dict(), "accuracy": float(until.accuracy)}
    stops = {"until": targets, "save": save, "max_steps": max_steps}
    return {"problem": problem, "params": start, **stops, **named}


def identity_of(trajectory: Trajectory) -> tuple[Any, ...]:
    """All of a trajectory but the seconds that it took, and its problem."""
    kept = trajectory.checkpoint
    place = None if kept is None else (kept.leaves, kept.log_losses, dict(kept.facts))
    columns, settings = dict(trajectory.columns), dict(trajectory.settings)
    return trajectory.kind, columns, trajectory.vectors, settings, place


def content_of(trajectory: Trajectory) -> Content:
    """A trajectory as a file holds it, from which its run can be taken up.

    Raises:
        ValueError: the state of its solver cannot be written.
    """
    finished = trajectory.result_name not in STOPPED
    if trajectory.checkpoint is None and not finished:
        raise ValueError(
            "`integrate(checkpoint=...)`: the state of the solver holds what cannot be written to "
            "files, such as keys of random numbers. Leave `checkpoint` out."
        )
    return Content(*parts(trajectory), finished)


def kept_trajectory(problem: Problem, content: Content) -> Trajectory:
    """The inverse of `content_of`, of a run of this problem."""
    fields = restored(content.header, dict(content.arrays), problem)
    return Trajectory(**fields._asdict(), reader=read_between)
