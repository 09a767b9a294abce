"""What a caller sees of the stages of a search that solve linear systems, and how they end in time.

Such a stage (Newton's method, leading the temperature or the smoothing to 0, eigenvalues) is one
long loop deep inside the search, and takes minutes in large networks. The search opens a watch
before it; the loops call `looked` before each system, and `in_time` within long ones.
"""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from gflow.deadline import Deadline
from gflow.progress import Report, reporter


class SecondsSpent(Exception):
    """The deadline passed between two systems; the search turns it into its result."""


@dataclass(frozen=True)
class _Watch:
    """What is called between two systems.

    Attributes:
        deadline: of the call.
        progress: as the caller gave it.
        status: what a report says beside the systems.
        within: closes the progress line, which the first report opens.
        systems: counts those that have been solved.
    """

    deadline: Deadline
    progress: bool | Report
    status: Mapping[str, Any]
    within: contextlib.ExitStack
    systems: Iterator[int] = field(default_factory=itertools.count)

    @cached_property
    def tell(self) -> Report:
        """Shows a report."""
        return self.within.enter_context(reporter(self.progress, "newton"))


_WATCH: ContextVar[_Watch | None] = ContextVar("gflow_watch", default=None)


@contextlib.contextmanager
def watched(
    deadline: Deadline, progress: bool | Report, *, log_kappa: float, margin: float
) -> Iterator[None]:
    """A stage of systems: between them progress is shown and the deadline looked at.

    Args:
        progress: as for `find_limit`.
        log_kappa, margin: of the flow where it stopped, for the reports.
    """
    status = {"stage": "newton", "log_kappa": log_kappa, "log_loss": math.nan, "margin": margin}
    with contextlib.ExitStack() as within:
        before = _WATCH.set(_Watch(deadline, progress, status, within))
        try:
            yield
        finally:
            _WATCH.reset(before)


def looked(error: float) -> None:
    """To be called before a system is solved. Does nothing where no search is watched.

    Args:
        error: of the equations now.

    Raises:
        SecondsSpent: the deadline has passed.
        KeyboardInterrupt: one came that Python dropped (`gflow._interrupts`).
    """
    watch = _WATCH.get()
    if watch is not None:
        steps = next(watch.systems)
        watch.tell({**watch.status, "steps": steps, "stationarity": float(error)})
        in_time()


def in_time() -> None:
    """To be called within a long system.

    Raises:
        SecondsSpent, KeyboardInterrupt: as `looked`.
    """
    watch = _WATCH.get()
    if watch is not None and watch.deadline.passed():
        raise SecondsSpent
