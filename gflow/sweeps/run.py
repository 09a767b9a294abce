"""One run of a sweep: its settings, what was found, and the numbers that a table tells of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gflow.limit import Limit
from gflow.sweeps.table import COLUMNS, cell

REFUSED = "refused"
"""The outcome of a run whose problem could not be made, or was refused; `message` says why."""

NOT_BEGUN = "not_begun"
"""The outcome of a run that the sweep did not come to."""

NOT_BEGUN_MESSAGE = (
    "This run was not begun, or not kept: the sweep was interrupted, or its seconds were spent. "
    "`gflow.sweep(..., folder=...)` goes on."
)
UNFINISHED = (NOT_BEGUN, "interrupted", "seconds_spent")
"""Outcomes of runs that a sweep with the same folder does again."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a sweep.

    Attributes:
        settings: its row.
        limit: what was found; None where no search was made.
        outcome: the name of the limit's result in `gflow.RESULTS`; or "refused", where `make` or
            the search raised an exception, or "not_begun".
        message: the outcome as a sentence.
        made: a checksum of the problem and the start that `make` returned; empty without any.
        traceback: of the exception of a run that is "refused", as Python prints it.
    """

    settings: Mapping[str, Any]
    limit: Limit | None = field(repr=False)
    outcome: str
    message: str = field(repr=False)
    made: str = field(repr=False, default="")
    traceback: str = field(repr=False, default="")

    @property
    def arrived(self) -> bool:
        """Whether the flow's limit was found: `limit.successful`."""
        return self.limit is not None and self.limit.successful

    def row(self) -> dict[str, Any]:
        """The settings as cells, and the numbers of `COLUMNS`.

        Of a run that did not arrive no number is told that could be taken for a result.
        """
        shown = {name: cell(value) for name, value in self.settings.items()}
        told = dict.fromkeys(COLUMNS) | {"outcome": self.outcome, "arrived": self.arrived}
        told |= _effort(self.limit) if self.limit is not None else {}
        told |= _numbers(self.limit) if self.limit is not None and self.arrived else {}
        return shown | told | {"message": self.message}


def not_begun(settings: Mapping[str, Any], why: str = NOT_BEGUN_MESSAGE) -> Run:
    """A run that the sweep did not come to."""
    return Run(settings, None, NOT_BEGUN, why)


def _effort(limit: Limit) -> dict[str, Any]:
    return {
        "steps": limit.num_flow_steps,
        "seconds": float(sum(stage.seconds for stage in limit.stages)),
    }


def _numbers(limit: Limit) -> dict[str, Any]:
    at = limit.certificate
    return {
        "margin": float(limit.margin),
        "held_margin": float(limit.held_margin),
        "clean_margin": float(at.clean_margin),
        "strong_margin": float(at.strong_margin),
        "verdict": limit.verdict,
        "basin": limit.basin,
        "stationarity": float(at.stationarity),
        "total_stationarity": float(at.total_stationarity),
        "num_support": int(at.num_support),
        "saddles_met": limit.saddles_met,
    }
