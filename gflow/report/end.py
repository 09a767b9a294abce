"""Where a run of a job ended, as a file: what its figures need beyond the trajectory."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gflow._archive import Damaged, read_archive, write_archive
from gflow.report.record import Record

_FORMAT = 1
_ARRAYS = ("stopped", "limit", "multipliers", "pushing", "perturbations")
# So many of the examples that push are shown.
_MOST_SHOWN = 8


@dataclass(frozen=True, eq=False)
class End:
    """The end of one run.

    Attributes:
        record: its numbers.
        stopped: the direction where the flow was told to stop. Shape (P,).
        limit: the direction of the limit; None where none was reached. Shape (P,).
        multipliers: lambda_i at the limit, or None. Shape (n,), for classes (n, k - 1).
        pushing: the examples of the largest multipliers, the largest first, or None. Shape (m,).
        perturbations: delta_i of these at the limit, or None. Shape (m, d).
    """

    record: Record
    stopped: np.ndarray
    limit: np.ndarray | None = None
    multipliers: np.ndarray | None = None
    pushing: np.ndarray | None = None
    perturbations: np.ndarray | None = None

    def save(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
            OSError: it cannot be written.
        """
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        given = {name: value for name, value in arrays.items() if value is not None}
        write_archive(path, {"format": _FORMAT, "record": asdict(self.record)}, given)


def end_of(trajectory: Any, limit: Any, record: Record) -> End:
    """The end of the run whose flow stopped as `trajectory`; `limit` None where none was sought."""
    stopped = np.asarray(trajectory.vectors[-1])
    if limit is None or not limit.successful:
        return End(record, stopped)
    vector = np.asarray(trajectory.layout.flatten(limit.direction))
    multipliers = np.asarray(limit.certificate.multipliers)
    pushes = multipliers.reshape(len(multipliers), -1).sum(axis=1)
    pushing = np.argsort(-pushes, kind="stable")[:_MOST_SHOWN]
    pushing = pushing[pushes[pushing] > 0]
    deltas = np.asarray(limit.problem.perturbations(limit.direction))[pushing]
    return End(record, stopped, vector, multipliers, pushing, deltas)


def load_end(path: Path) -> End:
    """The end that `End.save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is another file, or a damaged one.
    """
    header, arrays = read_archive(path)
    if header.get("format") != _FORMAT:
        raise Damaged(f"`{path}` is no end of a run that this version can read")
    try:
        record = Record(**header["record"])
        return End(record, **arrays)
    except (KeyError, TypeError) as error:
        raise Damaged(f"`{path}` is no end of a run: {error}") from error
