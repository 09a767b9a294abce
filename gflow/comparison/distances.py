"""Distances of runs of descent from the flow, read at equal time, loss and norm."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gflow._checks import is_integer
from gflow._interrupts import interruptible
from gflow._signatures import named
from gflow._typing import Params
from gflow.comparison.result import CORRECTED, EQUAL, FLOW, Comparison
from gflow.descent import backward_error_flow
from gflow.measures import direction_distance, normalized_margin
from gflow.trajectory import Trajectory

# Relative: a run whose steps take times as equal as that makes constant ones.
_CONSTANT = 1e-9


@named()
@interruptible
def compare(
    flow: Trajectory,
    *runs: Trajectory,
    labels: Sequence[str] | None = None,
    step_sizes: Sequence[float] | None = None,
    backward_error: bool = False,
    num_points: int = 8,
) -> Comparison:
    """Distances of runs of descent from the flow, at equal time, equal loss and equal norm.

    Each pair is read at `num_points` values, evenly spread in log(1 + t), log Loss and log kappa
    over what both pass; what they do not pass both has no rows. The margins are those of the
    problem of each.

    Args:
        flow: the flow, from `gflow.integrate`, without a cap for equal times.
        runs: from `gflow.descend`, with parameters of the same shapes.
        labels: a name for each run; runs of one name make one line of the figure. By default the
            objective of the run.
        step_sizes: a number for each run, by which it is sorted in the figure. By default the mean
            time of a step; on the log-loss, of a step times the loss.
        backward_error: whether each run is compared with the backward-error flow of its own step
            size too; see `gflow.backward_error_flow`. Only for plain gradient descent with constant
            steps, the size of which `step_sizes` or the record tells, and as far as it goes: where
            h times the sharpness is not small, it ends.
        num_points: values of each quantity.

    Raises:
        TypeError: `flow` or a run is no trajectory.
        ValueError: the first is a run of descent; there is no run; `labels` or `step_sizes` are not
            as many as runs; parameters of other shapes; `backward_error` for a run that is not
            plain gradient descent.
    """
    _check(flow, runs, labels, step_sizes, num_points)
    rows: list[dict[str, Any]] = []
    for number, run in enumerate(runs):
        size = float(step_size_of(run) if step_sizes is None else step_sizes[number])
        label = _label(run) if labels is None else labels[number]
        head = {"run": number, "label": label, "step_size": size}
        references = {FLOW: flow}
        if backward_error:
            exact = None if step_sizes is None else size
            references[CORRECTED] = _corrected(run, exact)
        for name, reference in references.items():
            for equal in EQUAL:
                for row in _rows(reference, run, equal, num_points):
                    rows.append({**head, "reference": name, "equal": equal, **row})
    return Comparison(tuple(rows))


def _rows(reference: Trajectory, run: Trajectory, equal: str, num_points: int) -> Any:
    """Both read at common values."""
    column = EQUAL[equal]
    for value in _common(reference.columns[column], run.columns[column], num_points):
        left, right = (_read(one, equal, float(value)) for one in (reference, run))
        base, point = reference.layout.flatten(left), run.layout.flatten(right)
        yield {
            "value": float(value),
            "params_distance": float(jnp.linalg.norm(point - base) / jnp.linalg.norm(base)),
            "direction_distance": float(direction_distance(left, right)),
            "margin": float(normalized_margin(run.require_problem(), right)),
            "reference_margin": float(normalized_margin(reference.require_problem(), left)),
        }


def _read(run: Trajectory, equal: str, value: float) -> Params:
    match equal:
        case "time":
            point = run.at(time=np.expm1(value))
        case "loss":
            point = run.at(log_loss=value)
        case _:
            point = run.at(log_kappa=value)
    return jax.tree.map(jnp.asarray, point)


def _common(left: np.ndarray, right: np.ndarray, num_points: int) -> np.ndarray:
    """Values that both columns pass on their way from their starts to their ends."""
    ends = [(column[0], column[-1]) for column in (left, right)]
    if not np.all(np.isfinite(ends)):
        return np.zeros(0)
    sign = np.sign(ends[0][1] - ends[0][0])
    first = max(sign * start for start, _ in ends)
    # Of a column that passes values more than once, the farthest that it has come.
    last = min(np.max(sign * column) for column in (left, right))
    if not last > first:
        return np.zeros(0)
    return sign * np.linspace(first, last, num_points + 1)[1:]


def step_size_of(run: Trajectory) -> float:
    """The mean time of a step; on the log-loss, the mean of a step's time times the loss."""
    steps = np.diff(run.num_steps_at)
    if not len(steps):
        return float("nan")
    if run.settings.get("objective") != "log_loss":
        return float(np.expm1(run.log1p_time[-1]) / steps.sum())
    # In logarithms, since time and the inverse of the loss leave the range of numbers.
    log_times = run.log1p_time[1:] + np.log(-np.expm1(-np.diff(run.log1p_time)))
    return float(np.sum(np.exp(log_times + run.log_loss[:-1])) / steps.sum())


def _corrected(run: Trajectory, step_size: float | None) -> Trajectory:
    """The backward-error flow of a run of plain gradient descent."""
    objective = run.settings.get("objective", "loss")
    if run.settings.get("batch_size") is not None:
        raise ValueError("`compare(backward_error=True)`: a run on mini-batches has no such flow.")
    if step_size is None:
        times, steps = np.expm1(run.log1p_time), run.num_steps_at
        step_size = step_size_of(run)
        even = np.allclose(times, step_size * steps, rtol=_CONSTANT, atol=0.0)
        if objective == "log_loss" or not even:
            raise ValueError(
                "`compare(backward_error=True)`: the steps of a run are not known, or not constant "
                "in time, as those of plain gradient descent are. On the log-loss name them by "
                "`step_sizes`; other optimizers have no such flow."
            )
    return backward_error_flow(
        run.require_problem(),
        run.params_at_index(0),
        step_size=step_size,
        num_steps=int(run.num_steps_at[-1]),
        objective=objective,
        throw=False,
    )


def _label(run: Trajectory) -> str:
    return "descent / loss" if run.settings.get("objective") == "log_loss" else "descent"


def _check(flow: Any, runs: Sequence[Any], labels: Any, step_sizes: Any, num_points: Any) -> None:
    for one in (flow, *runs):
        if not isinstance(one, Trajectory):
            raise TypeError(f"`compare(flow, *runs)`: {one!r} is no trajectory.")
    if flow.kind == "descent":
        raise ValueError(
            "`compare(flow, *runs)`: the first is a run of descent. The flow comes first, from "
            "`gflow.integrate`, and the runs that are compared with it follow."
        )
    if not runs:
        raise ValueError("`compare(flow, *runs)`: give at least one run beside the flow.")
    for name, given in (("labels", labels), ("step_sizes", step_sizes)):
        if given is not None and len(given) != len(runs):
            raise ValueError(
                f"`compare({name}=...)`: {len(given)} for {len(runs)} runs; give one for each."
            )
    if not is_integer(num_points) or num_points < 1:
        raise ValueError(f"`compare(num_points={num_points!r})` must be at least 1.")
    for run in runs:
        if run.layout.shapes != flow.layout.shapes:
            raise ValueError("`compare(flow, *runs)`: a run has parameters of other shapes.")
