"""A sweep on disk: `sweep.npz`, what is asked for, and a file for each chunk of runs that ended.

    sweep.npz            the settings of every run, the options of the search, the size of a chunk
    chunk-000001.npz     the limits of the first so many runs, and so on
    process-0000.json    of several processes that share a sweep, where each stands

Each file is there whole or not at all, every array has a checksum, and nothing is run when one is
read. A chunk names the sweep that it belongs to by a checksum of `sweep.npz`'s content.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from textwrap import shorten
from typing import Any

from gflow._archive import Damaged, read_archive, write_archive
from gflow._description import NotRestorable, decode, encode
from gflow._files import Locked, locked
from gflow._fingerprint import checksum_of
from gflow.limit.stored import Arrays, get, put
from gflow.problem import Problem
from gflow.sweeps.result import Sweep
from gflow.sweeps.run import UNFINISHED, Run, not_begun
from gflow.sweeps.table import cell

FORMAT = 1
_NAME = "sweep.npz"
# Of an option, in a message.
_LETTERS = 80


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked for.

    Attributes:
        rows: the settings of every run.
        options: of the search, those that are not the usual ones, as text.
        chunk: runs that are searched, and kept, at once.
    """

    rows: tuple[Mapping[str, Any], ...]
    options: Mapping[str, str]
    chunk: int

    @property
    def num_chunks(self) -> int:
        """How many files hold all runs."""
        return -(-len(self.rows) // self.chunk)

    def rows_of(self, number: int) -> tuple[Mapping[str, Any], ...]:
        """The settings of the runs of a chunk, which count from 0."""
        return self.rows[number * self.chunk : (number + 1) * self.chunk]

    def content(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The header and the arrays of `sweep.npz`."""
        arrays: dict[str, Any] = {}
        header = {
            "format": FORMAT,
            "rows": [
                {name: _put(value, arrays) for name, value in row.items()} for row in self.rows
            ],
            "options": dict(self.options),
            "chunk": self.chunk,
        }
        return header, arrays

    @cached_property
    def checksum(self) -> str:
        """Of all of it; equal for equal plans."""
        return checksum_of(*self.content())


def _put(value: Any, arrays: dict[str, Any]) -> Any:
    """A setting as JSON; of what a file cannot hold, the cell of a table."""
    if isinstance(value, list):
        return {"list": [_put(item, arrays) for item in value]}
    own: dict[str, Any] = {}
    if '"opaque"' in json.dumps(encode(value, own)):
        return cell(value)
    return encode(value, arrays)


def _get(value: Any, arrays: Mapping[str, Any]) -> Any:
    if isinstance(value, dict) and "list" in value:
        return [_get(item, arrays) for item in value["list"]]
    return decode(value, arrays)


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the folder, made if need be, for this process while the block runs.

    Raises:
        RuntimeError: another process holds it.
        OSError: it cannot be written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder):
            yield
    except Locked:
        raise RuntimeError(
            f"another sweep is writing into `{folder}`: wait for it to end, or choose another "
            "folder."
        ) from None


def begin(folder: Path, plan: Plan) -> None:
    """Writes `sweep.npz`, unless it is there already.

    Raises:
        ValueError: the folder holds another sweep, or something else of this name.
    """
    if not (folder / _NAME).exists():
        write_archive(folder / _NAME, *plan.content())
        return
    found = read_plan(folder)
    if found.checksum != plan.checksum:
        raise ValueError(
            f"`gflow.sweep(..., folder={str(folder)!r})`: the folder holds another sweep: "
            f"{_difference(found, plan)}. Choose another folder, or give the settings with which "
            "that one was begun."
        )


def _difference(found: Plan, plan: Plan) -> str:
    """The first thing in which two plans differ, the one in the folder first."""
    if found.chunk != plan.chunk:
        return f"it has chunks of {found.chunk} runs, and you ask for {plan.chunk}"
    for name in dict.fromkeys((*found.options, *plan.options)):
        one, other = found.options.get(name), plan.options.get(name)
        if one != other:
            told = [f"`{name}={shorten(value or 'as usual', _LETTERS)}`" for value in (one, other)]
            return f"it has {told[0]}, and you ask for {told[1]}"
    if len(found.rows) != len(plan.rows):
        return f"it has {len(found.rows)} runs, and you ask for {len(plan.rows)}"
    for number, (one, other) in enumerate(zip(found.rows, plan.rows, strict=True)):
        cells = [{name: cell(value) for name, value in row.items()} for row in (one, other)]
        if cells[0] != cells[1]:
            return f"its run {number} has {cells[0]}, and you ask for {cells[1]}"
    return "its settings hold other values"


def read_plan(folder: Path) -> Plan:
    """What the sweep in the folder was asked for.

    Raises:
        FileNotFoundError: the folder holds no sweep.
        ValueError: the file is damaged, or of another version.
    """
    path = folder / _NAME
    try:
        header, arrays = read_archive(path)
        if header["format"] != FORMAT:
            raise Damaged(f"format {header['format']} is unknown to this version")
        rows = tuple({n: _get(v, arrays) for n, v in row.items()} for row in header["rows"])
        return Plan(rows, header["options"], int(header["chunk"]))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"`{folder}` holds no sweep: there is no `{_NAME}` in it. `sweep.save(folder)` and "
            "`gflow.sweep(..., folder=...)` write one."
        ) from None
    except Exception as error:
        raise ValueError(f"`{path}` is no sweep that gflow can read ({error}).") from error


def _path(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number + 1:06d}.npz"


def write_chunk(folder: Path, plan: Plan, number: int, runs: Sequence[Run]) -> None:
    """Writes the runs of a chunk.

    Raises:
        OSError: the file cannot be written.
    """
    arrays = Arrays()
    header = {
        "format": FORMAT,
        "sweep": plan.checksum,
        "runs": [
            {
                "limit": put(run.limit, arrays),
                "outcome": run.outcome,
                "message": run.message,
                "made": run.made,
                "traceback": run.traceback,
            }
            for run in runs
        ],
    }
    write_archive(_path(folder, number), header, arrays.table)


def read_chunk(
    folder: Path,
    plan: Plan,
    number: int,
    problem_of: Callable[[Mapping[str, Any]], Problem] | None = None,
) -> list[Run]:
    """The runs of a chunk.

    Args:
        problem_of: makes the problem of a row, where a file could not hold it.

    Raises:
        FileNotFoundError: there is no such file.
        Damaged: it is damaged, or of another sweep.
    """
    rows = plan.rows_of(number)
    header, arrays = read_archive(_path(folder, number))
    try:
        if (header["format"], header["sweep"]) != (FORMAT, plan.checksum):
            raise Damaged("it belongs to another sweep, or version")
        pairs = zip(rows, header["runs"], strict=True)
        return [_run(row, run, arrays, problem_of) for row, run in pairs]
    except NotRestorable as error:
        raise Damaged(f"its problems cannot be held by files ({error})") from error
    except Exception as error:
        raise Damaged(str(error)) from error


def _run(
    row: Mapping[str, Any],
    run: Mapping[str, Any],
    arrays: dict[str, Any],
    problem_of: Callable[[Mapping[str, Any]], Problem] | None,
) -> Run:
    try:
        limit = get(run["limit"], arrays)
    except NotRestorable:
        if problem_of is None:
            raise
        limit = get(run["limit"], arrays, problem_of(row))
    trace = run.get("traceback", "")
    return Run(row, limit, run["outcome"], run["message"], run["made"], trace)


def made_of_finished(folder: Path, plan: Plan, number: int) -> list[str] | None:
    """The checksums of what was made for the runs of a chunk; None unless all are finished."""
    try:
        header, _ = read_archive(_path(folder, number))
    except (FileNotFoundError, Damaged):
        return None
    runs = header.get("runs", ())
    this = (header.get("format"), header.get("sweep")) == (FORMAT, plan.checksum)
    if not this or any(run["outcome"] in UNFINISHED for run in runs):
        return None
    return [run["made"] for run in runs]


def finished(runs: Sequence[Run]) -> bool:
    """Whether none of the runs is to be done again."""
    return not any(run.outcome in UNFINISHED for run in runs)


def save(sweep: Sweep, folder: Path) -> Path:
    """See `Sweep.save`."""
    plan = Plan(sweep.rows, sweep.options, sweep.chunk)
    with held(folder):
        begin(folder, plan)
        for number in range(plan.num_chunks):
            runs = sweep.runs[number * plan.chunk : (number + 1) * plan.chunk]
            write_chunk(folder, plan, number, runs)
    return folder


def load(folder: Path) -> Sweep:
    """See `Sweep.load`."""
    plan = read_plan(folder)
    runs: list[Run] = []
    for number in range(plan.num_chunks):
        try:
            runs += read_chunk(folder, plan, number)
        except FileNotFoundError:
            runs += map(not_begun, plan.rows_of(number))
        except Damaged as error:
            path = _path(folder, number)
            raise ValueError(f"`{path}` cannot be read: {error}.") from error
    return Sweep(tuple(runs), plan.options, plan.chunk)
