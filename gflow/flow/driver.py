"""`integrate`: the flow from a start to a target, segment by segment."""

import time
from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import numpy as np

from gflow._layout import Layout
from gflow._numerics import is_integer, is_real
from gflow._typing import Params
from gflow.flow.control import make_controller
from gflow.flow.field import Field, initial_state
from gflow.flow.outcome import hopeless, not_finite_ahead, targets_met, unseparated_result
from gflow.flow.segment import Block, Cursor, advance, begin
from gflow.flow.until import Until
from gflow.problem import Problem
from gflow.progress import check_progress, reporter
from gflow.record import Record, Row, row_capacity
from gflow.results import RESULTS
from gflow.trajectory import RunFailed, Trajectory, register_reader
from gflow.validation import check_start

# A segment should return this often, so that an interrupt or the progress line need not wait.
_SECONDS = 0.5
_FIRST_STEPS = 16


def integrate(
    problem: Problem,
    params: Params,
    *,
    until: Until,
    solver: diffrax.AbstractSolver | None = None,
    tolerance: float = 1e-8,
    save: int | None = 512,
    max_steps: int = 100_000,
    progress: bool | Callable[[dict[str, Any]], None] = False,
    throw: bool = True,
) -> Trajectory:
    """Integrates `dparams/dt = -grad(sum loss)` from `params` until a target is reached.

    The path is followed on the unit sphere with the norm, the time and the loss in logarithms
    (`gflow.flow.field`), so that none of them over- or underflows.

    Args:
        problem: what is minimised.
        params: the start, any pytree of arrays; not zero.
        until: what to reach. The last point lies on the target, as a step of the solver.
        solver: any diffrax ODE solver with an error estimate; `diffrax.Tsit5()` by default. Its
            steps shrink like 1/kappa once the flow is stiff. diffrax's implicit solvers can be
            chosen too; they rarely need fewer steps, since an error in the direction is one of
            kappa times that in the logits.
        tolerance: local error per step, of the direction (|du|_2), of log |params| and of
            log(1 + t): relative error per step of the parameters and of 1 + t.
        save: the number of points kept at most, evenly spread over the steps; None keeps every
            accepted step. `Trajectory.at` is as accurate as the run whatever is kept.
        max_steps: steps tried at most, rejected ones included.
        progress: True for a progress line; or a function that is called after every segment with a
            dict of what the line shows.
        throw: raise `RunFailed` where the target was not reached. False returns the trajectory,
            with the reason in `.result`. An interrupt from the keyboard always returns.

    Raises:
        TypeError, ValueError: see `gflow.validation.check_start`; unknown or impossible options.
        RunFailed: with `throw=True`, a run that did not reach its target.

    Source: Lyu & Li 2020 and Lyu & Zhu 2022 for the flow and its normalized margin.
    """
    _check_options(until, tolerance, save, max_steps)
    check_progress(progress, "integrate")
    max_steps, save = int(max_steps), None if save is None else int(save)
    solver = diffrax.Tsit5() if solver is None else _checked_solver(solver)
    params = check_start(problem, params)
    run = _Run(problem, params, until, solver, tolerance, save)
    seconds = time.perf_counter()
    with reporter(progress, "flow") as report:
        result = run.go(max_steps, report)
    trajectory = run.trajectory(result, time.perf_counter() - seconds, max_steps)
    if throw and trajectory.result_name not in ("successful", "interrupted"):
        raise RunFailed(trajectory)
    return trajectory


class _Run:
    """The state of one run on the host."""

    def __init__(self, problem, params, until, solver, tolerance, save):
        self.until, self.solver, self.tolerance = until, solver, tolerance
        self.save = save
        self.field = Field(problem, Layout.of(params))
        self.record = Record(save)
        self.capacity = row_capacity(self.field.layout.size)
        self.num_steps = 0
        self.cursor: Cursor = start_cursor(self.field, solver, tolerance, until, params)

    def go(self, max_steps: int, report: Callable[[dict[str, Any]], None]) -> RESULTS:
        """Runs segments until one ends the run, and says how it ended."""
        budget = _FIRST_STEPS
        try:
            while True:
                seconds = time.perf_counter()
                block = self.segment(min(budget, max_steps - self.num_steps))
                seconds = (time.perf_counter() - seconds) / max(int(block.num_steps), 1)
                result = self.absorb(block, max_steps)
                report(self.record.status(self.num_steps, self.field.problem.degree))
                if result is not None:
                    return result
                budget = int(np.clip(_SECONDS / seconds, _FIRST_STEPS, self.capacity))
                if self._may_fade():
                    budget = _FIRST_STEPS
        except KeyboardInterrupt:
            if not self.num_steps:  # nothing was computed that could be returned
                raise
            return RESULTS.interrupted

    def segment(self, budget: int) -> Block:
        """One compiled segment of at most `budget` steps."""
        controller = make_controller(np.float64(self.tolerance), np.int64(budget), self.until)
        stride = np.int64(self.record.stride)
        self.cursor, block = advance(
            self.field, self.solver, controller, self.cursor, stride, capacity=self.capacity
        )
        return jax.block_until_ready(block)

    def absorb(self, block: Block, max_steps: int) -> RESULTS | None:
        """Records a segment; the outcome if it was the last one."""
        first = self.num_steps == 0
        self.num_steps += int(block.num_steps)
        last = self.record.extend(block.rows, int(block.num_rows))
        if first and self._met(self.record.first()):
            self.record.only_first()
            self.num_steps = 0
            return RESULTS.successful  # pyright: ignore[reportReturnType]
        if not np.all(np.isfinite(last.state)):
            self.record.drop_nonfinite()
            return RESULTS.not_finite
        if bool(block.result == diffrax.RESULTS.event_occurred):
            met = self._met(last)
            if met == ["kappa_overflow"]:
                return RESULTS.kappa_overflow
            return RESULTS.successful  # pyright: ignore[reportReturnType]
        return self._stopped_short(block, last, max_steps)

    def _stopped_short(self, block: Block, last: Row, max_steps: int) -> RESULTS | None:
        if bool(block.result == diffrax.RESULTS.dt_min_reached):
            ahead = not_finite_ahead(self.field, self.cursor.state)
            return RESULTS.not_finite if ahead else RESULTS.step_underflow
        spent = self.num_steps >= max_steps
        if hopeless(self.until, self.field.problem, self.record, spent=spent):
            return unseparated_result(self.field.problem, last.measures)
        return RESULTS.step_budget_spent if spent else None

    def _may_fade(self) -> bool:
        """Whether the norm shrinks, perhaps to nothing, which must be seen before it underflows."""
        first, last = self.record.first(), self.record.last()
        return bool(last.measures.margin <= 0 and last.state[-2] < first.state[-2])

    def _met(self, row: Row) -> list[str]:
        log_kappa = self.field.problem.degree * row.state[-2]
        return targets_met(self.until, log_kappa, row.state[-1], row.measures)

    def trajectory(self, result: RESULTS, seconds: float, max_steps: int) -> Trajectory:
        """Everything recorded, as a trajectory."""
        columns, vectors = self.record.columns(self.field.problem.degree)
        num_accepted = int(columns["num_steps_at"][-1])
        met = self._met(self.record.last()) if bool(result == RESULTS.successful) else []
        stats = {
            "num_steps": self.num_steps,
            "num_accepted_steps": num_accepted,
            "num_rejected_steps": self.num_steps - num_accepted,
            "stopped_by": met[0] if met else None,
            "seconds": seconds,
        }
        settings = {
            "until": self.until.as_dict(),
            "solver": type(self.solver).__name__,
            "tolerance": float(self.tolerance),
            "save": self.save,
            "max_steps": max_steps,
            "gradient": self.field.problem.gradient_mode,
        }
        return Trajectory(
            kind="flow",
            columns=columns,
            vectors=vectors,
            layout=self.field.layout,
            problem=self.field.problem,
            result=result,
            stats=stats,
            settings=settings,
        )


def start_cursor(
    field: Field, solver: diffrax.AbstractSolver, tolerance: float, until: Until, params: Params
) -> Cursor:
    """A cursor at `params` at time 0, about to try a cautious first step."""
    # On the sphere the direction moves at most at speed |grad q|, which is of the size of |x|.
    speed = max(1.0, float(np.max(np.linalg.norm(field.problem.dataset.x, axis=1))))
    step = 0.01 * tolerance**0.2 / speed
    controller = make_controller(np.float64(tolerance), np.int64(1), until)
    return _begin_at_params(field, solver, controller, params, np.float64(step))


@eqx.filter_jit
def _begin_at_params(field, solver, controller, params, step) -> Cursor:
    state = initial_state(field.layout, params)
    return begin(field, solver, controller, np.float64(0), state, step, np.int64(0))


def read_between(trajectory: Trajectory, index: int, name: str, target: float) -> Params:
    """The parameters between two saved points, by integrating again from the first of them."""
    field = Field(trajectory.require_problem(), trajectory.layout)
    tolerance = np.float64(trajectory.settings["tolerance"])
    solver = _solver_named(trajectory.settings["solver"])
    until = Until(**{name: target})
    size = row_capacity(trajectory.layout.size)
    controller = make_controller(tolerance, np.int64(size), until)
    column = trajectory.columns
    tail = [column["log_norm"][index], column["log1p_time"][index]]
    state = np.concatenate([trajectory.vectors[index], tail])
    cursor = begin(
        field, solver, controller, column["clock"][index], state, column["step"][index], np.int64(0)
    )
    while True:
        cursor, block = advance(
            field, solver, controller, cursor, np.int64(size + 1), capacity=size
        )
        if bool(block.result == diffrax.RESULTS.event_occurred):
            return trajectory.layout.unflatten(
                np.exp(cursor.state[-2]) * np.asarray(cursor.state[:-2])
            )
        if bool(block.result == diffrax.RESULTS.dt_min_reached):
            raise ValueError(
                f"`trajectory.at({name}={target!r})`: the step size underflowed on the way from "
                "the saved point before; the flow has a kink there."
            )


register_reader("flow", read_between)


def _solver_named(name: str) -> diffrax.AbstractSolver:
    """The solver of a run that may have been loaded from a file; any other is as accurate."""
    kind = getattr(diffrax, name, diffrax.Tsit5)
    try:
        return kind()
    except TypeError:
        return diffrax.Tsit5()


def _checked_solver(solver: Any) -> diffrax.AbstractSolver:
    if isinstance(solver, type) and issubclass(solver, diffrax.AbstractSolver):
        raise TypeError(f"`solver={solver.__name__}` is a class; pass `{solver.__name__}()`.")
    if not isinstance(solver, diffrax.AbstractSolver):
        raise TypeError(f"`solver={solver!r}` is no diffrax solver, such as `diffrax.Tsit5()`.")
    if not isinstance(solver, diffrax.AbstractAdaptiveSolver):
        raise TypeError(
            f"`solver={type(solver).__name__}()` gives no error estimate, so its steps cannot be "
            "controlled. Use an adaptive solver, or `gflow.descend` for fixed steps."
        )
    return solver


def _check_options(until: Any, tolerance: Any, save: Any, max_steps: Any) -> None:
    if not isinstance(until, Until):
        raise TypeError(
            f"`until={until!r}` must be a `gflow.Until(...)`, such as `gflow.Until(log_loss=-10)`."
        )
    if not is_real(tolerance):
        raise TypeError(f"`integrate(tolerance={tolerance!r})` must be a number, such as 1e-8.")
    if not 1e-14 <= tolerance <= 0.1:
        raise ValueError(f"`integrate(tolerance={tolerance!r})` must lie between 1e-14 and 0.1.")
    if save is not None and (not is_integer(save) or save < 2):
        raise ValueError(f"`integrate(save={save!r})` must be None or an integer of at least 2.")
    if not is_integer(max_steps) or max_steps < 1:
        raise ValueError(f"`integrate(max_steps={max_steps!r})` must be an integer of at least 1.")
