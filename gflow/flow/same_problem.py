"""Whether a trajectory is one of the flow of this problem, so that the flow can go on from it."""

import dataclasses
from typing import Any

import equinox as eqx
import jax

from gflow._layout import Layout
from gflow._programs import compiled
from gflow.flow.field import Field
from gflow.measures import PointMeasures
from gflow.problem import Problem
from gflow.record import Row, picked, rows_of
from gflow.trajectory import Trajectory
from gflow.validation import check_start

# The margins recorded at the end of a trajectory, and those computed again for the same problem,
# differ by less than this, relative.
_SAME = 1e-6
# What messages say of the parts of a problem whose names are no words.
_WORDS = {
    "starts": "the random starts of the attack differ",
    "gradient_mode": "the gradient mode differs",
    "rivals": "the rivals that the attack is made against differ",
    "rival_smoothing": "the rounding of the choice among rivals differs",
    "attack_floor": "the size of a gradient at which the attack fades differs",
    "attacked_network": "the network whose gradients the attack follows differs",
}


def check_continuable(problem: Any, trajectory: Trajectory) -> None:
    """Raises unless the trajectory is one of the flow of this problem.

    Raises:
        TypeError: `problem` is no `Problem`.
        ValueError: a trajectory of `descend`, or of another problem.
    """
    if trajectory.kind != "flow":
        raise ValueError(
            "`integrate(problem, trajectory)`: this is a trajectory of `descend`, which is no flow "
            "to go on with. For the flow from where it ended: "
            "`integrate(problem, trajectory.params, ...)`."
        )
    params = check_start(problem, trajectory.direction)
    if Layout.of(params) != trajectory.layout:
        raise ValueError(_another("the parameters differ"))
    if trajectory.problem is None:
        _check_by_its_margins(problem, trajectory)
        return
    for name in (field.name for field in dataclasses.fields(problem)):
        if not _equal(getattr(problem, name), getattr(trajectory.problem, name)):
            raise ValueError(_another(_WORDS.get(name, f"the {name} differs")))


def _another(what: str) -> str:
    return (
        f"`integrate(problem, trajectory)`: the trajectory is that of another problem: {what}. "
        "Go on with `trajectory.problem`; or begin the flow of this problem where the "
        "trajectory ended, with `integrate(problem, trajectory.params, ...)`. (A network of an own "
        "function is the same only where the function is the same object.)"
    )


def _equal(left: Any, right: Any) -> bool:
    if jax.tree.structure(left) != jax.tree.structure(right):
        return False
    return bool(eqx.tree_equal(left, right))


def _check_by_its_margins(problem: Problem, trajectory: Trajectory) -> None:
    """Raises unless the problem gives the margins that are recorded; for a trajectory whose file
    could not hold its problem.
    """
    if trajectory.settings.get("gradient") not in (None, problem.gradient_mode):
        raise ValueError(_another(_WORDS["gradient_mode"]))
    field = Field(problem, trajectory.layout)
    last = last_row(trajectory)
    found = _measures(field, last.state)
    scale = float(last.measures.strength)
    for name in ("margin", "clean_margin", "smoothed_margin"):
        value, recorded = float(getattr(found, name)), float(getattr(last.measures, name))
        if not abs(value - recorded) <= _SAME * max(abs(recorded), _SAME * scale):
            numbers = f"{value:.6g}, not {recorded:.6g}"
            words = f"the {name.replace('_', ' ')}s at its last point ({numbers}) differ"
            raise ValueError(_another(words))


@compiled
def _measures(field: Field, state: Any) -> PointMeasures:
    return field.measures(state)


def last_row(trajectory: Trajectory) -> Row:
    """The last point of a trajectory."""
    ends = {name: column[-1:] for name, column in trajectory.columns.items()}
    return picked(rows_of(ends, trajectory.vectors[-1:]), 0)
