"""`integrate`: the flow from a start to a target, segment by segment."""

import time
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import numpy as np

from gflow._layout import Layout
from gflow._typing import Params
from gflow.flow.chattering import POINTS, num_at_jumps, num_chattering
from gflow.flow.chattering import Watch as ChatteringWatch
from gflow.flow.control import FlowController
from gflow.flow.field import Field
from gflow.flow.options import check_options, checked_cap, checked_solver
from gflow.flow.outcome import (
    hopeless,
    not_finite_ahead,
    outcome_at,
    targets_met,
    unseparated_result,
)
from gflow.flow.passage import Passage
from gflow.flow.rosenbrock import Rosenbrock
from gflow.flow.segment import Block, Cursor, advance, begin
from gflow.flow.starting import Tolerances, control_of, solver_name, start_cursor
from gflow.flow.stiffness import Watch, stiff_solver
from gflow.flow.until import NEVER, Until
from gflow.problem import Problem
from gflow.progress import check_progress, reporter
from gflow.record import Record, Row, row_capacity
from gflow.results import RESULTS
from gflow.switches import has_kinks
from gflow.trajectory import RunFailed, Trajectory
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
    rtol_direction: float | None = None,
    atol_logit: float = 0.1,
    kappa_cap: float | None = None,
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
        solver: None begins with `diffrax.Tsit5()`, whose steps shrink like 1/kappa, and goes on
            with `gflow.Rosenbrock()` where stiffness has made that the cheaper one (see
            `gflow.flow.stiffness`). Or any diffrax ODE solver with an error estimate, to be used
            throughout; only a `Rosenbrock` has its error controlled in the logits.
        tolerance: local error per step of log |params| and of log(1 + t), that is, relative error
            of |params| and of 1 + t; and of the direction, unless that has a bound of its own.
        rtol_direction: local error per step of the direction, `|du|_2`; None for `tolerance`.
            Of the directions that the flow does not damp, expect an error of 0.04 to 1.2 times this
            at the end (deep linear networks, 1e-4 to 1e-8, `benchmarks/work_precision.py`); of
            those that it does, far less.
        atol_logit: local error per step in the logits,
            `sqrt(sum_i p_i (kappa <grad q_i, du>)^2)`, where the solver is a `Rosenbrock`: an error
            of the direction is one of kappa times that in what the loss sees. It keeps the error of
            what the flow damps to `atol_logit / kappa`, so that far out a loose `rtol_direction`
            will do. Above about 0.1 the linearisation of the weights p no longer holds, and steps
            are wasted.
        kappa_cap: kappa_c; the weights p of the flow are those of min(kappa, kappa_c). Beyond it
            the direction follows the flow up to O(1/kappa_c), kappa may leave the range of
            floating-point numbers, and `log1p_time` is NaN. None for the true flow.
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
    check_options(until, tolerance, rtol_direction, save, max_steps)
    check_progress(progress, "integrate")
    max_steps, save = int(max_steps), None if save is None else int(save)
    solver, log_cap = checked_solver(solver, tolerance), checked_cap(kappa_cap, atol_logit, until)
    params = check_start(problem, params)
    field = Field(problem, Layout.of(params), log_cap)
    across = tolerance if rtol_direction is None else rtol_direction
    tolerances = Tolerances(tolerance, across, atol_logit)
    run = _Run(field, params, until, solver, tolerances, save)
    seconds = time.perf_counter()
    with reporter(progress, "flow") as report:
        result = run.go(max_steps, report)
    trajectory = run.trajectory(result, time.perf_counter() - seconds, max_steps)
    if throw and trajectory.result_name not in ("successful", "interrupted"):
        raise RunFailed(trajectory)
    return trajectory


def _is_finite(row: Row) -> bool:
    return bool(np.all(np.isfinite(row.state)))


class _Run:
    """The state of one run on the host."""

    def __init__(self, field, params, until, solver, tolerances, save):
        self.until, self.tolerances = until, tolerances
        self.watch = Watch(field) if solver is None else None
        self.solver = diffrax.Tsit5() if solver is None else solver
        self.stiff_from: int | None = None
        self.save = save
        self.field = field
        self.record = Record(save)
        self.capacity = row_capacity(self.field.layout.size)
        self.num_steps = 0
        self.passage = Passage(field)
        self.cursor: Cursor = start_cursor(self.field, self.solver, self.control(1), params)
        self.sliding = ChatteringWatch(field, tolerances.tolerance, self.cursor.state)
        self.num_sliding: int | None = None

    def control(self, budget: int) -> FlowController:
        """The step-size control of the present solver."""
        return control_of(self.stepper, self.tolerances, budget, self.until)

    @property
    def stepper(self) -> diffrax.AbstractSolver:
        """The solver, or the one in its place near 0."""
        return self.solver if self.passage.solver is None else self.passage.solver

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
                if self.chatters(block):
                    return RESULTS.chattering  # pyright: ignore[reportReturnType]
                self.switch_if_stiff(block)
                budget = int(np.clip(_SECONDS / seconds, _FIRST_STEPS, self.capacity))
                if self._may_fade() or self.passage.solver is not None:
                    budget = _FIRST_STEPS
        except KeyboardInterrupt:
            if not self.num_steps:  # nothing was computed that could be returned
                raise
            return RESULTS.interrupted

    def segment(self, budget: int) -> Block:
        """One compiled segment of at most `budget` steps."""
        stride = np.int64(self.record.stride)
        self.cursor, block = advance(
            self.field,
            self.stepper,
            self.control(budget),
            self.cursor,
            stride,
            capacity=self.capacity,
        )
        return jax.block_until_ready(block)

    def switch_if_stiff(self, block: Block) -> None:
        """Goes on with a Rosenbrock method, once and for all, where that is now the cheaper one."""
        near_zero = self.passage.solver is not None
        if self.watch is None or near_zero or not self.watch.stiff(self.cursor, block):
            return
        self.watch, self.solver = None, stiff_solver(self.tolerances[0])
        self.stiff_from = int(self.cursor.num_accepted)
        self.restart(self.cursor.control.step)

    def restart(self, step: Any) -> None:
        """Goes on from where the run stands with the present solver, whose first step this is."""
        self.cursor = begin(
            self.field,
            self.stepper,
            self.control(1),
            self.cursor.clock,
            self.cursor.state,
            step,
            self.cursor.num_accepted,
        )

    def absorb(self, block: Block, max_steps: int) -> RESULTS | None:
        """Records a segment; the outcome if it was the last one."""
        first = self.num_steps == 0
        self.num_steps += int(block.num_steps)
        last = self.record.extend(block.rows, int(block.num_rows))
        at_start = outcome_at(self.until, self.field, self.record.first()) if first else None
        if at_start is not None:
            self.record.only_first()
            self.num_steps = 0
            return at_start
        if not _is_finite(last):
            self.record.drop_nonfinite()
            return RESULTS.not_finite
        arrived = outcome_at(self.until, self.field, last)
        return self._stopped_short(block, last, max_steps) if arrived is None else arrived

    def _stopped_short(self, block: Block, last: Row, max_steps: int) -> RESULTS | None:
        stuck = diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.event_occurred
        # What only the solver took for an arrival is none.
        stuck = any(bool(block.result == result) for result in stuck)
        if self.passage.changes(last, stuck=stuck) and self.num_steps < max_steps:
            return self.restart(self.passage.step)
        if stuck:
            ahead = not_finite_ahead(self.field, self.cursor.state)
            return RESULTS.not_finite if ahead else RESULTS.step_underflow
        spent = self.num_steps >= max_steps
        # What chatters has not stalled by itself.
        told = spent and self.num_chattering() == 0
        if hopeless(self.until, self.field.problem, self.record, spent=told):
            return unseparated_result(
                self.field.problem, last.measures.margin, last.measures.clean_margin
            )
        return RESULTS.step_budget_spent if spent else None

    def _may_fade(self) -> bool:
        """Whether the norm shrinks, perhaps to nothing, which must be seen before it underflows."""
        first, last = self.record.first(), self.record.last()
        return bool(last.measures.margin <= 0 and last.state[-2] < first.state[-2])

    def chatters(self, block: Block) -> bool:
        """Whether the run slides along kinks, and has done so for long."""
        if self.passage.solver is not None:
            return False
        steps = int(block.num_steps)
        return self.sliding.chatters(self.cursor, steps, self._explicit(), self.next_states)

    def _explicit(self) -> bool:
        return not isinstance(self.solver, Rosenbrock)

    def next_states(self) -> np.ndarray:
        """The next points, one by one, since saved ones may skip every second crossing."""
        control = control_of(self.stepper, self.tolerances, POINTS, NEVER)
        _, block = advance(
            self.field, self.stepper, control, self.cursor, np.int64(1), capacity=self.capacity
        )
        return np.asarray(block.rows.state)[: int(block.num_rows)]

    def num_chattering(self) -> int:
        """How many examples' kinks the next steps would cross to and fro, or cling to."""
        if self.num_sliding is None:
            self.num_sliding = self._num_chattering()
        return self.num_sliding

    def _num_chattering(self) -> int:
        problem, named = self.field.problem, has_kinks(self.field.problem)
        if not (named or self.sliding.sliding) or not _is_finite(self.record.last()):
            return 0
        states = self.next_states()
        count = num_chattering(problem, self.field.layout, states[:, :-2]) if named else 0
        if count or not self.sliding.sliding:
            return count
        return num_at_jumps(self.field, states, self.tolerances.tolerance, self._explicit())

    def trajectory(self, result: RESULTS, seconds: float, max_steps: int) -> Trajectory:
        """Everything recorded, as a trajectory."""
        columns, vectors = self.record.columns(self.field.problem.degree)
        beyond = columns["log_kappa"] > self.field.log_cap
        columns = {**columns, "log1p_time": np.where(beyond, np.nan, columns["log1p_time"])}
        num_accepted = int(columns["num_steps_at"][-1])
        chattering = self.num_chattering()
        if chattering and bool(result == RESULTS.step_budget_spent):
            result = RESULTS.chattering  # pyright: ignore[reportAssignmentType]
        met = targets_met(self.until, self.field, self.record.last())
        stats = {
            "num_steps": self.num_steps,
            "num_accepted_steps": num_accepted,
            "num_rejected_steps": self.num_steps - num_accepted,
            "stopped_by": met[0] if bool(result == RESULTS.successful) else None,
            "stiff_from": self.stiff_from,
            "through_zero": self.passage.spans,
            "num_chattering": chattering,
            "seconds": seconds,
        }
        settings = {
            "until": self.until.as_dict(),
            "solver": solver_name(self.solver),
            **{name: float(value) for name, value in self.tolerances._asdict().items()},
            "kappa_cap": None
            if np.isinf(self.field.log_cap)
            else float(np.exp(self.field.log_cap)),
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
