"""A run of the flow: segment by segment, until one ends it."""

from collections.abc import Callable
from typing import Any

import diffrax
import jax
import numpy as np

from gflow.deadline import Deadline
from gflow.flow.chattering import POINTS, num_chattering
from gflow.flow.outcome import hopeless, not_finite_ahead, outcome_at, unseparated_result
from gflow.flow.place import Path, Place, next_place
from gflow.flow.segment import Block, advance
from gflow.flow.starting import control_of
from gflow.flow.until import NEVER, Until
from gflow.record import Record, Row, row_capacity
from gflow.results import RESULTS
from gflow.switches import has_kinks


class Run:
    """The state of one run on the host.

    Attributes:
        path: what is followed, and how closely.
        until: the targets.
        record: of the points so far.
        now: where the last segment began; or ended, once the next one is about to begin.
        place: the latest such place before the steps towards the target: from here the run can be
            taken up, to another target.
        cursor: where the integration stands, which may be on the target.
        num_steps: steps tried so far, rejected ones included.
    """

    def __init__(self, path: Path, until: Until, place: Place, record: Record):
        self.path, self.until, self.record = path, until, record
        self.place = self.now = place
        self.cursor, self.num_steps = place.cursor, place.num_steps
        self.capacity = row_capacity(path.field.layout.size)

    def go(
        self, max_steps: int, deadline: Deadline, report: Callable[[dict[str, Any]], None]
    ) -> RESULTS:
        """Runs segments until one ends the run, and says how it ended.

        Args:
            max_steps: steps tried at most, those before this run began included.
        """
        degree = self.path.field.problem.degree
        try:
            while True:
                result = self._segment(max_steps)
                report(self.record.status(self.num_steps, degree))
                if result is not None:
                    return result
                self._arrive()
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
            place.solver,
            control_of(place.solver, self.path.tolerances, budget, self.until),
            place.cursor,
            np.int64(self.record.stride),
            capacity=self.capacity,
        )
        return self._absorb(jax.block_until_ready(block), max_steps)

    def _arrive(self) -> None:
        """Takes the end of a segment as the place where the next one begins."""
        fading = self._may_fade()
        self.now = next_place(self.path, self.now, self.cursor, self.num_steps, fading=fading)
        self.place = self.place if self.now.landing else self.now

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
        arrived = outcome_at(self.until, self.path.field, last)
        return self._stopped_short(block, last, max_steps) if arrived is None else arrived

    def _stopped_short(self, block: Block, last: Row, max_steps: int) -> RESULTS | None:
        field = self.path.field
        stuck = diffrax.RESULTS.dt_min_reached, diffrax.RESULTS.event_occurred
        # What only the solver took for an arrival is none.
        if any(bool(block.result == result) for result in stuck):
            ahead = not_finite_ahead(field, self.cursor.state)
            return RESULTS.not_finite if ahead else RESULTS.step_underflow
        spent = self.num_steps >= max_steps
        if hopeless(self.until, field.problem, self.record, spent=spent):
            margins = last.measures.margin, last.measures.clean_margin
            return unseparated_result(field.problem, *margins)
        return RESULTS.step_budget_spent if spent else None

    def _may_fade(self) -> bool:
        """Whether the norm shrinks, perhaps to nothing, which must be seen before it underflows."""
        first, last = self.record.first(), self.record.last()
        return bool(last.measures.margin <= 0 and last.state[-2] < first.state[-2])

    def behind(self, clock: float) -> bool:
        """Whether the record has not come past this clock, nor to it."""
        return not len(self.record) or bool(self.record.last().clock < clock)

    def num_chattering(self) -> int:
        """How many examples' kinks the next steps would cross to and fro."""
        field, solver = self.path.field, self.now.solver
        if not has_kinks(field.problem) or not np.all(np.isfinite(self.record.last().state)):
            return 0
        # One by one, since saved points may skip every second crossing.
        control = control_of(solver, self.path.tolerances, POINTS, NEVER)
        _, block = advance(field, solver, control, self.cursor, np.int64(1), capacity=self.capacity)
        points = np.asarray(block.rows.state)[: int(block.num_rows), :-2]
        return num_chattering(field.problem, field.layout, points)
