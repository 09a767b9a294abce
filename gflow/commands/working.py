"""One run of a job: its flow, its limit, and the files that it leaves."""

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from gflow import configuration as tables
from gflow.configuration import Configuration

Report = Callable[[dict[str, Any]], None]

UNFINISHED = ("interrupted", "seconds_spent")
"""Outcomes of runs that `--resume` goes on with."""


class Order(NamedTuple):
    """A run that is to be done.

    Attributes:
        index: its number, from 0.
        case: a `gflow.commands.building.Case`.
        folder: of the job.
        seconds: its share of the job's; None for no limit.
        resumed: whether it goes on from what an earlier run of the job has saved.
    """

    index: int
    case: Any
    folder: Path
    seconds: float | None = None
    resumed: bool = False

    @property
    def trajectory(self) -> str:
        """The file of the flow, relative to the folder."""
        return f"trajectories/{self.index + 1:02d}.npz"

    @property
    def descent(self) -> str:
        """The file of the training by steps beside it."""
        return f"descents/{self.index + 1:02d}.npz"

    @property
    def end(self) -> str:
        """The file of its `gflow.report.end.End`."""
        return f"ends/{self.index + 1:02d}.npz"


def carry_out(configuration: Configuration, order: Order, report: Report) -> Any:
    """Follows the flow, seeks its limit, trains by steps where that is asked for, and saves each.

    It returns the run's `Record`.

    The flow is on the disk before the limit is sought, and the end only once it is: a run without
    its end goes on from there. An interrupt is an outcome like any other.

    Raises:
        OSError: a file cannot be written.
    """
    from gflow.deadline import Deadline
    from gflow.report.end import end_of
    from gflow.report.record import record

    begun = time.perf_counter()
    deadline = Deadline.after(order.seconds, "carry_out")
    flow = follow(configuration, order.case, _saved_flow(order), deadline.left(), report)
    flow.save(order.folder / order.trajectory)
    limit = None
    sought = configuration.limit.enabled and not too_many_weights(order.case)
    if sought and flow.successful:
        limit = seek(configuration.limit, order.case, flow, deadline.left(), report)
    descent = None
    if configuration.descent.enabled and "interrupted" not in _outcomes(flow, limit):
        descent = step(configuration.descent, order.case, deadline.left(), report)
        descent.save(order.folder / order.descent)
    found = record(
        flow,
        network=order.case.network,
        perturbation=order.case.perturbation,
        seconds=time.perf_counter() - begun,
        limit=limit,
        descent=descent,
        file=order.trajectory,
        end=order.end,
    )
    if found.outcome != "interrupted":
        end_of(flow, limit, found).save(order.folder / order.end)
        if limit is not None and limit.successful:  # the same flow, to where the search took over
            limit.trajectory.save(order.folder / order.trajectory)
    return found


def too_many_weights(case: Any) -> bool:
    """Whether the network of a case is too large for `find_limit`: its flow is followed alone."""
    from gflow.kkt.within import judged_at_most

    size = num_weights(case)
    return size > judged_at_most(case.problem, size)


def num_weights(case: Any) -> int:
    """The number of weights of the network of a case."""
    from gflow._layout import Layout

    return Layout.of(case.params).size


def finished(order: Order) -> Any:
    """The `Record` of a run that an earlier run of the job has finished, or None; so where its
    trajectory, without which it has no figures and no margins, is gone or damaged.
    """
    from gflow.loading import load
    from gflow.report.end import load_end

    with contextlib.suppress(ValueError, OSError):
        found = load_end(order.folder / order.end).record
        load(order.folder / order.trajectory, problem=order.case.problem)
        expected = order.case.network, order.case.perturbation
        if (found.network, found.perturbation) == expected and found.outcome not in UNFINISHED:
            return found
    return None


def _saved_flow(order: Order) -> Any:
    """The flow that an earlier run of the job has saved, if it is one of this problem."""
    import equinox as eqx

    from gflow.loading import load

    if not order.resumed:
        return None
    try:
        flow = load(order.folder / order.trajectory)
    except (ValueError, OSError):  # none, or a damaged one: it begins again
        return None
    same = flow.problem is not None and eqx.tree_equal(flow.problem, order.case.problem)
    return flow if same else None


def follow(
    configuration: Configuration, case: Any, saved: Any, seconds: float | None, report: Report
) -> Any:
    """The flow to where the configuration tells it to stop, from `saved` on if that is a flow."""
    from gflow.flow import Until, integrate

    options = configuration.solver
    return integrate(
        case.problem,
        case.params if saved is None else saved,
        until=Until(**configuration.until.model_dump()),
        solver=_solver(options.name),
        max_seconds=_least(options.max_seconds, seconds),
        progress=lambda status: report({**status, "stage": "flow"}),
        throw=False,
        **options.model_dump(exclude={"name", "max_seconds"}),
    )


def _solver(name: str) -> Any:
    """The solver of a configuration's name: the class of gflow, or of diffrax, that is so called
    but for capitals and underscores; None where `integrate` is to choose.
    """
    import diffrax

    from gflow import stiff

    if name == "automatic":
        return None
    own = {public.lower(): getattr(stiff, public) for public in stiff.__all__}
    solver = own.get(name.replace("_", "")) or getattr(diffrax, name.capitalize())
    return solver()


def seek(
    options: tables.LimitTable, case: Any, flow: Any, seconds: float | None, report: Report
) -> Any:
    """The limit of the flow's direction."""
    from gflow.limit import find_limit

    return find_limit(
        case.problem,
        flow,
        max_seconds=_least(options.max_seconds, seconds),
        progress=lambda status: report(
            {**status, "stage": "limit", "systems": status["stage"] == "newton"}
        ),
        throw=False,
        **options.model_dump(exclude={"enabled", "max_seconds"}),
    )


def step(options: tables.DescentTable, case: Any, seconds: float | None, report: Report) -> Any:
    """Training by steps from the start of the run."""
    import optax

    from gflow.descent import descend

    return descend(
        case.problem,
        case.params,
        optax.sgd(options.step_size),
        max_seconds=seconds,
        progress=lambda status: report({**status, "stage": "descent"}),
        throw=False,
        **options.model_dump(exclude={"enabled", "step_size"}),
    )


def _outcomes(*runs: Any) -> list[str]:
    return [run.result_name for run in runs if run is not None]


def _least(one: float | None, other: float | None) -> float | None:
    given = [value for value in (one, other) if value is not None]
    return min(given, default=None)
