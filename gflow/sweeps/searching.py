"""The runs of a sweep, chunk by chunk: read where they are kept, and searched otherwise."""

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from gflow._archive import Damaged
from gflow._description import encode
from gflow._fingerprint import checksum_of
from gflow._typing import Params
from gflow.batch import find_limits
from gflow.deadline import Deadline
from gflow.kkt.point import KKTPoint
from gflow.limit import Limit
from gflow.problem import Problem
from gflow.sweeps import folder as files
from gflow.sweeps.run import NOT_BEGUN, REFUSED, Run, not_begun
from gflow.sweeps.telling import Count, Tell
from gflow.trajectory import Trajectory
from gflow.validation import check_start

Make = Callable[..., tuple[Problem, Any]]

# Matrices of a KKT point that are larger than this are not kept with the limit.
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class Job:
    """A sweep that is being done: what is asked for, with the options of `find_limits`, until when,
    where it is kept, who is told.
    """

    make: Make
    plan: files.Plan
    search: Mapping[str, Any]
    deadline: Deadline
    folder: Path | None
    tell: Tell


def all_runs(job: Job, numbers: Iterable[int]) -> dict[int, list[Run]]:
    """The chunks of these numbers: read where they were finished before, and searched otherwise."""
    runs: dict[int, list[Run]] = {}
    count, stopped = Count(), False
    for number in numbers:
        found = kept(job, number)
        before = found is not None
        if found is None and stopped:
            found = [not_begun(row) for row in job.plan.rows_of(number)]
        elif found is None:
            found = _searched(job, number, count)
            stopped = any(run.outcome == "interrupted" for run in found)
            if job.folder is not None and files.finished(found):
                files.write_chunk(job.folder, job.plan, number, found)
        runs[number] = found
        count = count.plus(sum(run.arrived for run in found), _begun(found), kept=before)
        job.tell(count)
    return runs


def _begun(runs: Sequence[Run]) -> int:
    return sum(run.outcome != NOT_BEGUN for run in runs)


def kept(job: Job, number: int) -> list[Run] | None:
    """The runs of a chunk that was finished before, or None.

    Raises:
        ValueError: `make` returns another problem, or start, than the one whose limit is kept.
    """
    if job.folder is None:
        return None
    try:
        runs = files.read_chunk(job.folder, job.plan, number, lambda row: job.make(**row)[0])
    except (FileNotFoundError, Damaged):
        return None
    if not files.finished(runs):
        return None
    for run in [run for run in runs if run.made][:1]:
        check_same(job.make, job.folder, run.settings, run.made)
    return runs


class Changed(ValueError):
    """`make` returns another problem or start than the one whose limit is kept.

    Attributes:
        row: the settings for which it does.
    """

    def __init__(self, folder: Path, row: Mapping[str, Any]):
        super().__init__(
            f"`gflow.sweep(make, ..., folder={str(folder)!r})`: for {dict(row)} `make` returns "
            "another problem or start than the one whose limit is kept there. It must be a pure "
            "function of its row; after changing it choose another folder."
        )
        self.row = row


def check_same(make: Make, folder: Path, row: Mapping[str, Any], checksum: str) -> None:
    """Raises `Changed` unless `make` still returns what it returned for this run."""
    if _made(make, row).checksum != checksum:
        raise Changed(folder, row)


class _Failure(NamedTuple):
    """An exception as a sentence, and where it was raised."""

    sentence: str
    trace: str

    @classmethod
    def of(cls, error: Exception) -> "_Failure":
        return cls(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))


@dataclass(frozen=True)
class _Made:
    """What `make` returned for a row; or why it did not, and then no problem."""

    problem: Problem | None = None
    start: Params | Trajectory | Limit | None = None
    checksum: str = ""
    refusal: "_Failure | None" = None


def _made(make: Make, row: Mapping[str, Any]) -> _Made:
    """Whatever `make` does: an exception is the outcome of its run."""
    try:
        made = make(**row)
        problem, start = _pair(made)
        parameters = start.direction if isinstance(start, Trajectory | Limit) else start
        check_start(problem, parameters)
        return _Made(problem, start, _checksum(problem, start))
    except Exception as error:
        return _Made(refusal=_Failure.of(error))


def _pair(made: Any) -> tuple[Problem, Any]:
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Problem)):
        raise TypeError(f"`make` returned {made!r}, expected a pair: a `gflow.Problem`, its start.")
    return made


def _checksum(problem: Problem, start: Any) -> str:
    """Of everything in them that a limit depends on."""
    arrays: dict[str, Any] = {}
    header = encode(problem, arrays)
    if isinstance(start, Trajectory):
        start = start.vectors[-1], start.log_norm[-1]
    elif isinstance(start, Limit):
        start = start.direction, start.log_kappa_cap
    leaves = map(np.asarray, jax.tree.leaves(start))
    arrays |= {f"start{number}": leaf for number, leaf in enumerate(leaves)}
    return checksum_of(header, arrays)


def _searched(job: Job, number: int, before: Count) -> list[Run]:
    """The runs of a chunk: all at once, and one by one where that raises an exception; runs that
    have not begun where no time is left.
    """
    rows = job.plan.rows_of(number)
    try:
        if job.deadline.passed():
            return [not_begun(row) for row in rows]
        made = [_made(job.make, row) for row in rows]
        limits = _limits_of(job, [each for each in made if each.problem is not None], before)
    except KeyboardInterrupt:
        return [replace(not_begun(row), outcome="interrupted") for row in rows]
    found = iter(limits)
    return [_run(row, each, found) for row, each in zip(rows, made, strict=True)]


def _limits_of(job: Job, made: Sequence[_Made], before: Count) -> list[Limit | _Failure]:
    """The limits; in place of one whose search raised an exception, that."""
    try:
        return list(_found(job, made, before))
    except Exception as error:
        if len(made) == 1:
            return [_Failure.of(error)]
    return [limit for each in made for limit in _limits_of(job, [each], before)]


def _found(job: Job, made: Sequence[_Made], before: Count) -> list[Limit]:
    problems = [each.problem for each in made if each.problem is not None]
    if not problems:
        return []

    def hear(status: Mapping[str, Any]) -> None:
        job.tell(replace(before, steps=int(status.get("steps", 0))))

    return find_limits(
        problems,
        [each.start for each in made],
        max_seconds=job.deadline.left(),
        progress=hear,
        throw=False,
        **job.search,
    )


def _run(row: Mapping[str, Any], made: _Made, limits: Iterator[Limit | _Failure]) -> Run:
    found = next(limits) if made.refusal is None else made.refusal
    if isinstance(found, _Failure):
        return Run(row, None, REFUSED, found.sentence, made.checksum, found.trace)
    return Run(row, _lean(found), found.result_name, found.message, made.checksum)


def _lean(limit: Limit) -> Limit:
    """The limit without matrices of its KKT point that are large: a sweep has many."""
    return replace(limit, polished=_smaller(limit.polished), kinks=_smaller(limit.kinks))


def _smaller(point: KKTPoint | None) -> KKTPoint | None:
    if point is None or point.system is None:
        return point
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(point.system))
    return replace(point, system=None) if size > _MOST_BYTES else point
