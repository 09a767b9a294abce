"""A run of the flow: segment by segment, until one ends it."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import numpy as np

from gflow.deadline import Deadline
from gflow.flow.chattering import POINTS, ChatterWatch, num_at_jumps, num_chattering
from gflow.flow.outcome import hopeless, not_finite_ahead, outcome_at, unseparated_result
from gflow.flow.passage import Passage
from gflow.flow.place import Path, Place, landing, next_place
from gflow.flow.segment import Block, advance, begin
from gflow.flow.starting import control_of
from gflow.flow.until import NEVER, Until
from gflow.kkt.switches import has_kinks
from gflow.record import Record, Row, row_capacity
from gflow.results import RESULTS, code_of
from gflow.stiff.traits import traits_of

# Results of a segment that ended before its steps were spent: steps too short to change anything,
# or a target reached.
_BY_ITSELF = {
    code_of(result) for result in (diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.event_occurred)
}


class Run:
    """The state of one run on the host.

    Attributes:
        path: what is followed, and how closely.
        until: the targets.
        record: of the points so far.
        now: the place at which the present segment begins.
        place: the last such place before steps were shortened to land on the target. From here the
            run can be resumed, also towards another target.
        cursor: where the integration stands, which may be on the target.
        num_steps: steps tried so far, rejected ones included.
    """

    def __init__(self, path: Path, until: Until, place: Place, record: Record):
        self.path, self.until, self.record = path, until, record
        self.place = self.now = place
        self.cursor, self.num_steps = place.cursor, place.num_steps
        self.capacity = row_capacity(path.field.layout.size)
        tolerance = path.tolerances.tolerance
        self.passage = Passage.recalled(path.field, place.passage)
        self.chatter_watch = ChatterWatch.recalled(path.field, tolerance, place.chatter)
        self._landing = False
        self._num_chattering: int | None = None

    def go(
        self,
        max_steps: int,
        deadline: Deadline,
        report: Callable[[dict[str, Any]], None],
        keep: Callable[[], None],
    ) -> RESULTS:
        """Runs segments until one ends the run, and says how it ended.

        Args:
            max_steps: steps tried at most, those before this run began included.
            keep: called between two segments.
        """
        degree = self.path.field.problem.degree
        try:
            while True:
                before = self.num_steps
                result = self._segment(max_steps)
                report(self.record.status(self.num_steps, degree))
                if result is not None:
                    return result
                if self._chatters(self.num_steps - before):
                    return RESULTS.chattering  # pyright: ignore[reportReturnType]
                self._arrive()
                keep()
                if deadline.passed():
                    return RESULTS.seconds_spent
        except KeyboardInterrupt:
            if not self.num_steps:  # nothing was computed that could be returned
                raise
            return RESULTS.interrupted

    def _segment(self, max_steps: int) -> RESULTS | None:
        """One compiled segment; the outcome if it was the last one."""
        place = self.now
        budget = min(place.budget, max_steps - place.num_steps)
        self.cursor, block = advance(
            self.path.field,
            self.stepper,
            control_of(self.stepper, self.path.tolerances, budget, self.until),
            place.cursor,
            np.int64(self.record.stride),
            capacity=self.capacity,
        )
        self._landing |= landing(self.cursor)
        return self._absorb(jax.block_until_ready(block), max_steps)

    def _arrive(self) -> None:
        """Takes the end of a segment as the place where the next one begins."""
        passage = self.passage.memory()
        before = self.now._replace(passage=passage, chatter=self.chatter_watch.memory())
        short = self._may_fade() or passage.solver is not None
        self.now = next_place(self.path, before, self.cursor, self.num_steps, fading=short)
        self.place = self.place if self._landing else self.now

    @property
    def stepper(self) -> diffrax.AbstractSolver:
        """The solver, or the one in its place near 0."""
        return self.now.solver if self.passage.solver is None else self.passage.solver

    def _absorb(self, block: Block, max_steps: int) -> RESULTS | None:
        """Records a segment; the outcome if it was the last one."""
        first = self.num_steps == 0
        self.num_steps += int(block.num_steps)
        last = self.record.extend(block.rows, int(block.num_rows))
        at_start = outcome_at(self.until, self.path.field, self.record.first()) if first else None
        if at_start is not None:
            self.record.only_first()
            self.num_steps = 0
            return at_start
        if not np.all(np.isfinite(last.state)):
            self.record.drop_nonfinite()
            return RESULTS.not_finite
        # A target counts as met to the larger tolerance only if the solver ended the segment by
        # itself. If its steps were spent, the run may still be coming closer.
        landed = code_of(block.result) in _BY_ITSELF
        arrived = outcome_at(self.until, self.path.field, last, landed=landed)
        return self._stopped_short(block, last, max_steps) if arrived is None else arrived

    def _stopped_short(self, block: Block, last: Row, max_steps: int) -> RESULTS | None:
        """The outcome of a segment that met no target; None if the run goes on."""
        field = self.path.field
        # The segment ended by itself but met no target: the steps are too short, or the solver took
        # the point for one on the target.
        stuck = code_of(block.result) in _BY_ITSELF
        if self.passage.changes(last, stuck=stuck) and self.num_steps < max_steps:
            return self._restart(self.passage.step)
        if stuck:
            ahead = not_finite_ahead(field, self.cursor.state)
            return RESULTS.not_finite if ahead else RESULTS.step_underflow
        spent = self.num_steps >= max_steps
        # That the loss no longer falls tells nothing if the run chatters, which is then the reason.
        told = spent and self.num_chattering() == 0
        if hopeless(self.until, field.problem, self.record, spent=told):
            margins = last.measures.margin, last.measures.clean_margin
            return unseparated_result(field.problem, *margins)
        return RESULTS.step_budget_spent if spent else None

    def _may_fade(self) -> bool:
        """Whether the norm shrinks, perhaps to 0. Segments are short then, so that this is noticed
        before it underflows.
        """
        first, last = self.record.first(), self.record.last()
        return bool(last.measures.margin <= 0 and last.state[-2] < first.state[-2])

    def ends_before(self, clock: float) -> bool:
        """Whether the record ends before this clock."""
        return not len(self.record) or bool(self.record.last().clock < clock)

    def _restart(self, step: Any) -> None:
        """Goes on from where the run stands with the present solver, whose first step this is."""
        cursor, control = self.cursor, control_of(self.stepper, self.path.tolerances, 1, self.until)
        place = cursor.clock, cursor.state, step, cursor.num_accepted
        self.cursor = begin(self.path.field, self.stepper, control, *place)

    def _chatters(self, num_steps: int) -> bool:
        """Whether the run slides along kinks, and has done so for long."""
        if self.passage.solver is not None:
            return False
        given = self.cursor, num_steps, self._explicit(), self._next_states
        return self.chatter_watch.chatters(*given)

    def _explicit(self) -> bool:
        return not traits_of(self.now.solver).implicit

    def _next_states(self) -> np.ndarray:
        """The points of the next steps. The saved points would not do, since they may all lie on
        one side of a kink that is crossed to and fro.
        """
        control = control_of(self.stepper, self.path.tolerances, POINTS, NEVER)
        _, block = advance(
            self.path.field,
            self.stepper,
            control,
            self.cursor,
            np.int64(1),
            capacity=self.capacity,
        )
        return np.asarray(block.rows.state)[: int(block.num_rows)]

    def num_chattering(self) -> int:
        """The number of examples with a kink that the next steps would cross to and fro, or stay
        close to.
        """
        if self._num_chattering is None:
            self._num_chattering = self._counted()
        return self._num_chattering

    def _counted(self) -> int:
        """`num_chattering`: by the switches where kinks have names, else by jumps of gradients."""
        field, named = self.path.field, has_kinks(self.path.field.problem)
        finite = np.all(np.isfinite(self.record.last().state))
        if not (named or self.chatter_watch.found_sliding) or not finite:
            return 0
        states = self._next_states()
        count = num_chattering(field.problem, field.layout, states[:, :-2]) if named else 0
        if count or not self.chatter_watch.found_sliding:
            return count
        return num_at_jumps(field, states, self.path.tolerances.tolerance, self._explicit())
