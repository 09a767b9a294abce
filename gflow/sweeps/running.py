"""`gflow.sweep`: a table of settings, each a problem with its start, to their limits."""

import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gflow._checks import check_x64, is_integer
from gflow._fingerprint import without_addresses
from gflow._interrupts import interruptible
from gflow._signatures import named
from gflow.batch import find_limits
from gflow.batch.arguments import check_layout
from gflow.deadline import Deadline
from gflow.limit.options import check_options
from gflow.progress import Report, check_progress
from gflow.sweeps import folder as files
from gflow.sweeps.processes import SHOWN_AFTER, Companions, Group, group
from gflow.sweeps.result import Sweep
from gflow.sweeps.run import Run, not_begun
from gflow.sweeps.searching import Job, Make, all_runs, check_same, kept
from gflow.sweeps.table import rows_of
from gflow.sweeps.telling import telling

_Function = TypeVar("_Function", bound=Callable[..., Any])

_CHUNK = 64
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
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=default,
            annotation=bool if isinstance(default, bool) else inspect.Parameter.empty,
        )
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
@interruptible
def sweep(
    make: Make,
    settings: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    folder: str | Path | None = None,
    chunk: int | None = None,
    progress: bool | Report = False,
    max_seconds: float | None = None,
    distributed: bool = False,
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

    With `distributed=True` the processes of `jax.distributed` share the runs: all make the same
    call, each searches its share of the chunks on its own devices and writes them into the folder,
    and all return the whole sweep once every one has ended. One that is killed leaves its runs as
    "not_begun", with a message that names it; the same call goes on.

    Args:
        make: `make(**row)` returns the problem and its start, as for `find_limit`. It must be a
            pure function: called again with the same row, it returns the same.
        settings: a mapping from names to lists, all of whose combinations are run, the last name
            fastest; or a sequence of mappings, one for each run.
        folder: where finished chunks are kept; made if it is missing. One call at a time.
        chunk: how many runs are searched, and kept, at once; None for 64, or for fewer where there
            would not be one for each process, or for what the folder's sweep was begun with.
        progress: True for a line with the runs done, arrived and failed, and their rate; or a
            function of a dict with `done`, `runs`, `arrived`, `failed`, `rate` (runs a second),
            `steps` (of the chunk in progress) and `seconds`.
        max_seconds: for the whole sweep. Runs that it does not come to are "not_begun".
        distributed: whether processes share the runs, in a `folder` that all of them see. They meet
            by `jax.distributed.initialize()`, which is called unless it was before, and leave
            `jax.distributed` before the first run, since JAX ends all processes where one has died;
            a process that is killed before that ends them all, by JAX's own message. Progress and
            `max_seconds` are of the share of the process.
        options: those of `find_limits`, for every run; its `settings` is called `limit_settings`
            here, and its `chunk`, if it has one, `batch`.

    Returns:
        Every run in the order of the settings. An interrupt from the keyboard returns what was
        found until then.

    Raises:
        TypeError, ValueError: `settings` or an option cannot be meant; or the folder holds another
            sweep: other settings, options or chunks, or `make` now returns another problem.
        RuntimeError: another call is writing into the folder; or the processes do not meet.
        OSError: the folder cannot be written to.

    Of a KKT point whose matrices are larger than 1 MB, they are not kept with its limit;
    `radius_sensitivity` and `data_sensitivity` need them.
    """
    check_x64()
    rows, deadline = rows_of(settings), Deadline.after(max_seconds, "sweep")
    _check(make, chunk, progress, options)
    place = None if folder is None else _place(folder)
    asked = _Asked(make, rows, options, deadline, progress, chunk)
    if distributed:
        if place is None:
            raise ValueError("`sweep(distributed=True)`: give a `folder` that all processes see.")
        return _shared(asked, place, group())
    with nullcontext() if place is None else files.held(place):
        plan = asked.plan(place)
        if place is not None:
            files.begin(place, plan)
        with telling(progress, len(rows)) as tell:
            numbers = range(plan.num_chunks)
            found = all_runs(Job(make, plan, _of_search(options), deadline, place, tell), numbers)
    return Sweep(
        tuple(run for number in numbers for run in found[number]), plan.options, plan.chunk
    )


@dataclass(frozen=True)
class _Asked:
    """The arguments of a sweep, as checked."""

    make: Make
    rows: tuple[Mapping[str, Any], ...]
    options: Mapping[str, Any]
    deadline: Deadline
    progress: bool | Report
    chunk: int | None

    def plan(self, place: Path | None, processes: int = 1) -> files.Plan:
        """What is asked for, with the chunk that is asked for, or that of the sweep in the folder,
        or one small enough that each process has some.
        """
        chunk = self.chunk
        if chunk is None and place is not None:
            with suppress(FileNotFoundError):
                chunk = files.read_plan(place).chunk
        usual = min(_CHUNK, -(-len(self.rows) // processes)) if processes > 1 else _CHUNK
        return files.Plan(self.rows, _as_text(self.options), int(chunk or usual))


def _shared(asked: _Asked, place: Path, own: Group) -> Sweep:
    """The sweep by several processes, of which this is one."""
    companions = Companions(own, place)
    with companions.present(), files.held(place) if own.index == 0 else nullcontext():
        todo = companions.agree(lambda: _todo(asked, asked.plan(place, own.count), place))
        plan = asked.plan(place)
        files.begin(place, plan)
        numbers = todo[own.index :: own.count]
        runs = sum(len(plan.rows_of(number)) for number in numbers)
        with telling(asked.progress, runs) as tell:
            job = Job(asked.make, plan, _of_search(asked.options), asked.deadline, place, tell)
            found = all_runs(job, numbers)
        interrupted = any(run.outcome == "interrupted" for each in found.values() for run in each)
        finished = [number for number in numbers if files.finished(found[number])]
        companions.end("was interrupted" if interrupted else "", finished)
        lost, written = ({}, set()) if interrupted else companions.wait()
    for number in sorted(set(range(plan.num_chunks)) - set(numbers)):
        read = _read(job, number, wait=number in written)
        whose = todo.index(number) % own.count if number in todo else own.index
        found[number] = _left(plan, number, own, whose, lost) if read is None else read
    every = (run for number in range(plan.num_chunks) for run in found[number])
    return Sweep(tuple(every), plan.options, plan.chunk)


def _todo(asked: _Asked, plan: files.Plan, place: Path) -> list[int]:
    """The chunks that are to be searched, of a sweep that is begun or gone on with."""
    files.begin(place, plan)
    made = {i: files.made_of_finished(place, plan, i) for i in range(plan.num_chunks)}
    for number, each in made.items():
        known = [pair for pair in zip(plan.rows_of(number), each or (), strict=False) if pair[1]]
        for row, checksum in known[:1]:
            check_same(asked.make, place, row, checksum)
    return [number for number, each in made.items() if each is None]


def _read(job: Job, number: int, *, wait: bool) -> list[Run] | None:
    """The runs of a chunk that another process has finished, for whose file to show in the folder
    is waited where it is known to have been written.
    """
    latest = time.monotonic() + (SHOWN_AFTER if wait else 0)
    while (runs := kept(job, number)) is None and time.monotonic() < latest:
        time.sleep(1.0)
    return runs


def _left(
    plan: files.Plan, number: int, own: Group, whose: int, lost: Mapping[int, str]
) -> list[Run]:
    """The runs of a chunk that a process has left."""
    rows = plan.rows_of(number)
    if whose not in lost:
        return [not_begun(row) for row in rows]
    why = f"Not begun, or not kept: process {whose} of {own.count} {lost[whose]}."
    return [not_begun(row, why) for row in rows]


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
    check_layout(options.get("batch"), options.get("mesh"), "sweep", "batch")


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
