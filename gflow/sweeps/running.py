"""`gflow.sweep`: a table of settings, each a problem with its start, to their limits."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from gflow._archive import Damaged
from gflow._description import encode
from gflow._fingerprint import checksum_of, without_addresses
from gflow._numerics import check_x64, is_integer
from gflow._signatures import named
from gflow._typing import Params
from gflow.batch import find_limits
from gflow.deadline import Deadline
from gflow.kkt.point import KKTPoint
from gflow.limit import Limit
from gflow.limit.options import check_options
from gflow.problem import Problem
from gflow.progress import Report, check_progress
from gflow.sweeps import folder as files
from gflow.sweeps.result import NOT_BEGUN, REFUSED, Run, Sweep, not_begun
from gflow.sweeps.table import rows_of
from gflow.sweeps.telling import Count, Tell, telling
from gflow.trajectory import Trajectory
from gflow.validation import check_start

Make = Callable[..., tuple[Problem, Any]]
_Function = TypeVar("_Function", bound=Callable[..., Any])

_CHUNK = 64
# Matrices of a KKT point that are larger than this are not kept with the limit.
_MOST_BYTES = 2**20
# What the sweep itself says of the search.
_OWN = ("problems", "starts", "max_seconds", "progress", "throw")
# Options of the search that are called like an argument of the sweep, and their names here.
_RENAMED = {"settings": "limit_settings", "chunk": "batch"}
# Options that say how runs are searched side by side, and change no limit beyond rounding.
_HOW = ("batch", "mesh")


def _takes_options(function: _Function) -> _Function:
    """A decorator: in place of `**options` the signature has those of `find_limits` by name."""
    own = inspect.signature(function)
    listed = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    options = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name, default in _defaults().items()
    ]
    signature: Any = own.replace(parameters=[*listed, *options])
    function.__signature__ = signature
    return function


def _defaults() -> dict[str, Any]:
    """The options of the search and what they are if they are not given."""
    parameters = inspect.signature(find_limits).parameters
    found = {name: each.default for name, each in parameters.items() if name not in _OWN}
    return {_RENAMED.get(name, name): default for name, default in found.items()}


@named()
@_takes_options
def sweep(
    make: Make,
    settings: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    folder: str | Path | None = None,
    chunk: int | None = None,
    progress: bool | Report = False,
    max_seconds: float | None = None,
    **options: Any,
) -> Sweep:
    """The limits of many flows, one for each row of settings.

        def make(radius, seed):
            network = gflow.networks.mlp((5, 16, 1), power=2)
            attack = gflow.perturbations.fgm(radius)
            return gflow.Problem(network, dataset, perturbation=attack), network.init(seed)

        found = gflow.sweep(make, {"radius": [0.0, 0.1, 0.2], "seed": range(8)})
        found.to_pandas()
        found.spread("radius")  # over the seeds

    The runs go through `gflow.find_limits`, `chunk` of them at a time. A run that fails spoils no
    other: where `make` or the search raises an exception, its outcome is "refused" and its message
    says why; where the search does not arrive, its limit says why, as with `throw=False`.

    With `folder` every chunk is saved when it is finished. The same call with the same folder goes
    on after the last chunk that was saved, after a kill or a power cut too; on the same machine and
    versions the limits are, bit for bit, those of a sweep that was not interrupted. A chunk that is
    damaged, or in which a run was stopped by the seconds or the keyboard, is done again.

    Args:
        make: `make(**row)` returns the problem and its start, as for `find_limit`. It must be a
            pure function: called again with the same row, it returns the same.
        settings: a mapping from names to lists, all of whose combinations are run, the last name
            fastest; or a sequence of mappings, one for each run.
        folder: where finished chunks are kept; made if it is missing. One process at a time.
        chunk: how many runs are searched, and kept, at once; None for 64, or for what the folder's
            sweep was begun with.
        progress: True for a line with the runs done, arrived and failed, and their rate; or a
            function of a dict with `done`, `runs`, `arrived`, `failed`, `rate` (runs a second),
            `steps` (of the chunk in progress) and `seconds`.
        max_seconds: for the whole sweep. Runs that it does not come to are "not_begun".
        options: those of `find_limits`, for every run; its `settings` is called `limit_settings`
            here, and its `chunk`, if it has one, `batch`.

    Returns:
        Every run in the order of the settings. An interrupt from the keyboard returns what was
        found until then.

    Raises:
        TypeError, ValueError: `settings` or an option cannot be meant; or the folder holds another
            sweep: other settings, options or chunks, or `make` now returns another problem.
        RuntimeError: another process is writing into the folder.
        OSError: the folder cannot be written to.

    Of a KKT point whose matrices are larger than 1 MB, they are not kept with its limit;
    `radius_sensitivity` and `data_sensitivity` need them.
    """
    check_x64()
    rows, deadline = rows_of(settings), Deadline.after(max_seconds, "sweep")
    _check(make, chunk, progress, options)
    place = None if folder is None else _place(folder)
    plan = files.Plan(rows, _as_text(options), _chunk(chunk, place))
    with (
        nullcontext() if place is None else files.held(place),
        telling(progress, len(rows)) as tell,
    ):
        if place is not None:
            files.begin(place, plan)
        runs = _all_runs(_Job(make, plan, options, deadline, place, tell))
    return Sweep(tuple(runs), plan.options, plan.chunk)


@dataclass(frozen=True)
class _Job:
    """A sweep that is being done: what is asked for, until when, where it is kept, who is told."""

    make: Make
    plan: files.Plan
    options: Mapping[str, Any]
    deadline: Deadline
    folder: Path | None
    tell: Tell


def _check(make: Any, chunk: Any, progress: Any, options: Mapping[str, Any]) -> None:
    """Refuses what cannot be meant, before anything is computed."""
    if not callable(make):
        raise TypeError(
            f"`sweep({make!r}, ...)`: give a function that returns a problem and a start, "
            "`make(**row)`."
        )
    if chunk is not None and (not is_integer(chunk) or chunk < 1):
        raise ValueError(f"`sweep(chunk={chunk!r})` must be an integer of at least 1.")
    check_progress(progress, "sweep")
    checked = inspect.signature(check_options).parameters
    search = _of_search(options)
    check_options(**{name: value for name, value in search.items() if name in checked})


def _of_search(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options as `find_limits` calls them."""
    names = {new: old for old, new in _RENAMED.items()}
    return {names.get(name, name): value for name, value in options.items()}


def _as_text(options: Mapping[str, Any]) -> dict[str, str]:
    """The options that are not the usual ones, so that equal ones are equal in another process."""
    usual = _defaults()
    return {
        name: without_addresses(repr(value))
        for name, value in options.items()
        if name not in _HOW and repr(value) != repr(usual[name])
    }


def _place(folder: Any) -> Path:
    if not isinstance(folder, str | Path) or not str(folder).strip():
        raise TypeError(f"`sweep(folder={folder!r})`: give the path of a folder.")
    path = Path(folder)
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(f"`sweep(folder={str(folder)!r})`: this is a file, not a folder.")
    return path


def _chunk(chunk: int | None, place: Path | None) -> int:
    """The size of a chunk: what is asked for, or that of the sweep in the folder."""
    if chunk is None and place is not None:
        try:
            return files.read_plan(place).chunk
        except FileNotFoundError:
            pass
    return _CHUNK if chunk is None else int(chunk)


def _all_runs(job: _Job) -> list[Run]:
    """Every chunk: read where it was finished before, and searched otherwise."""
    runs: list[Run] = []
    count, stopped = Count(), False
    for number in range(job.plan.num_chunks):
        found = _kept(job, number)
        kept = found is not None
        if found is None and (stopped or job.deadline.passed()):
            found = [not_begun(row) for row in job.plan.rows_of(number)]
        elif found is None:
            found = _searched(job, number, count)
            stopped = any(run.outcome == "interrupted" for run in found)
            if job.folder is not None and files.finished(found):
                files.write_chunk(job.folder, job.plan, number, found)
        runs += found
        count = count.plus(sum(run.arrived for run in found), _begun(found), kept=kept)
        job.tell(count)
    return runs


def _begun(runs: Sequence[Run]) -> int:
    return sum(run.outcome != NOT_BEGUN for run in runs)


def _kept(job: _Job, number: int) -> list[Run] | None:
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
    _check_same(job, next((run for run in runs if run.made), None))
    return runs


def _check_same(job: _Job, run: Run | None) -> None:
    """Raises ValueError unless `make` still returns what it returned for this run."""
    if run is not None and _made(job, run.settings).checksum != run.made:
        raise ValueError(
            f"`gflow.sweep(make, ..., folder={str(job.folder)!r})`: for {dict(run.settings)} "
            "`make` returns another problem or start than the one whose limit is kept there. It "
            "must be a pure function of its row; after changing it choose another folder."
        )


@dataclass(frozen=True)
class _Made:
    """What `make` returned for a row; or why it did not, and then no problem."""

    problem: Problem | None = None
    start: Params | Trajectory | Limit | None = None
    checksum: str = ""
    refusal: str = ""


def _made(job: _Job, row: Mapping[str, Any]) -> _Made:
    """Whatever `make` does: an exception is the outcome of its run."""
    try:
        made = job.make(**row)
        problem, start = _pair(made)
        parameters = start.direction if isinstance(start, Trajectory | Limit) else start
        check_start(problem, parameters)
        return _Made(problem, start, _checksum(problem, start))
    except Exception as error:
        return _Made(refusal=_sentence(error))


def _pair(made: Any) -> tuple[Problem, Any]:
    if not (isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], Problem)):
        raise TypeError(f"`make` returned {made!r}, expected a pair: a `gflow.Problem`, its start.")
    return made


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


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


def _searched(job: _Job, number: int, before: Count) -> list[Run]:
    """The runs of a chunk: all at once, and one by one where that raises an exception."""
    rows = job.plan.rows_of(number)
    try:
        made = [_made(job, row) for row in rows]
        limits = _limits_of(job, [each for each in made if each.problem is not None], before)
    except KeyboardInterrupt:
        return [replace(not_begun(row), outcome="interrupted") for row in rows]
    found = iter(limits)
    return [_run(row, each, found) for row, each in zip(rows, made, strict=True)]


def _limits_of(job: _Job, made: Sequence[_Made], before: Count) -> list[Limit | str]:
    """The limits; in place of one whose search raised an exception, its sentence."""
    try:
        return list(_found(job, made, before))
    except Exception as error:
        if len(made) == 1:
            return [_sentence(error)]
    return [limit for each in made for limit in _limits_of(job, [each], before)]


def _found(job: _Job, made: Sequence[_Made], before: Count) -> list[Limit]:
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
        **_of_search(job.options),
    )


def _run(row: Mapping[str, Any], made: _Made, limits: Iterator[Limit | str]) -> Run:
    if made.problem is None:
        return Run(row, None, REFUSED, made.refusal)
    found = next(limits)
    if isinstance(found, str):
        return Run(row, None, REFUSED, found, made.checksum)
    return Run(row, _lean(found), found.result_name, found.message, made.checksum)


def _lean(limit: Limit) -> Limit:
    """The limit without matrices of its KKT point that are large: a sweep has many."""
    return replace(limit, polished=_smaller(limit.polished), kinks=_smaller(limit.kinks))


def _smaller(point: KKTPoint | None) -> KKTPoint | None:
    if point is None or point.system is None:
        return point
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(point.system))
    return replace(point, system=None) if size > _MOST_BYTES else point
