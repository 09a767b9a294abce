"""`gflow sweep`: the limits of all combinations of the lists in a file, into a folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console

from gflow.commands.asking import Asked
from gflow.commands.crew import Programs, set_up_jax
from gflow.commands.explaining import document_toml
from gflow.commands.folder import CONFIG_NAME, RUNS, claimed, prepare, write
from gflow.commands.lists import Entry
from gflow.commands.reading import UserError
from gflow.commands.sweep_display import SweepDisplay, print_sweep
from gflow.commands.telling import (
    ALL_REACHED,
    INTERRUPTED,
    NOT_ALL_REACHED,
    describe_source,
    say,
)

CSV_NAME = "sweep.csv"
_COMMENT = "A sweep: `gflow sweep config.toml` runs every combination of the lists."
# Of [limit], what the search of a sweep is told.
_SEARCH = (
    "tolerance",
    "cap_logits",
    "flow_tolerance",
    "smoothing",
    "escape",
    "max_rounds",
    "max_steps",
)


@dataclass(frozen=True)
class Options:
    """How a sweep is run.

    Attributes:
        programs: whether compiled programs are kept, and where.
        report: whether to write report.html.
        chunk: runs that are searched, and kept, at once; None for the usual number.
        overwrite: whether the folder may hold results already.
        resumed: whether to go on with the sweep whose folder it is.
        distributed: whether this is one of several processes that share the runs.
    """

    programs: Programs = field(default_factory=Programs)
    report: bool = True
    chunk: int | None = None
    overwrite: bool = False
    resumed: bool = False
    distributed: bool = False


def run_sweep(asked: Asked, folder: Path, console: Console, options: Options) -> int:
    """Runs the sweep, prints its table, writes the folder; the exit code of the command.

    0: every run arrived; 1: some did not; 130: interrupted.

    Raises:
        UserError: the data cannot be read, or the folder is another's; nothing was searched.
        WriteFailed: the folder cannot be written to any more.
    """
    if options.distributed:
        return _share(asked, folder, console, options)
    return _run(asked, folder, console, options)


def _run(asked: Asked, folder: Path, console: Console, options: Options) -> int:
    with claimed(folder, overwrite=options.overwrite or options.resumed):
        begun = time.perf_counter()
        say(console, _announcement(asked, folder))
        with console.status("Loading JAX, data and networks"):
            set_up_jax(options.programs)
            make = maker(asked.runs)
        prepare(
            folder,
            document_toml(asked.document, _COMMENT),
            {RUNS: "*.npz"},
            overwrite=options.overwrite,
            resumed=options.resumed,
            safe="Nothing was searched.",
        )
        found = _searched(asked, make, folder, console, options)
        return _conclude(asked, found, folder, console, options, time.perf_counter() - begun)


def _share(asked: Asked, folder: Path, console: Console, options: Options) -> int:
    """The sweep by several processes: the first one prints and writes what one alone would; the
    others say what is missing, if anything is.
    """
    set_up_jax(options.programs)
    from gflow.sweeps.processes import Companions, group

    try:
        own = group()
    except RuntimeError as error:
        raise UserError(str(error)) from error
    if own.index > 0:
        found = _searched(asked, maker(asked.runs), folder, Console(quiet=True), options)
        _say_unfinished(found, folder, console)
        return _code(found)
    try:
        return _run(asked, folder, console, options)
    except UserError as error:  # for which the others would wait
        with suppress(OSError):
            Companions(own, folder / RUNS).end(f"ended: {error}")
        raise


def _announcement(asked: Asked, folder: Path) -> str:
    names = dict.fromkeys(name for run in asked.runs for name in run.settings)
    counts = {name: len({repr(run.settings.get(name)) for run in asked.runs}) for name in names}
    swept = ", ".join(f"{count} x {name}" for name, count in counts.items() if count > 1)
    data = describe_source(asked.runs[0].configuration.data)
    return f"gflow: {data}; {len(asked.runs)} limit(s): {swept or 'one setting'}, into {folder}"


def maker(runs: Sequence[Entry]) -> Callable[..., tuple[Any, Any]]:
    """The function of a row of settings that `gflow.sweep` takes.

    Raises:
        UserError: some data cannot be read.
    """
    from gflow.commands.building import build_cases, build_datasets

    @cache
    def dataset_of(written: str) -> Any:
        try:
            return build_datasets(data[written])[0]
        except (ValueError, TypeError, OSError, ImportError, MemoryError) as error:
            raise UserError(f"[data]: {error}") from error

    data = {run.configuration.data.model_dump_json(): run.configuration.data for run in runs}
    for written in data:
        dataset_of(written)
    by_row = {_key(run.settings): run.configuration for run in runs}

    def make(**row: Any) -> tuple[Any, Any]:
        configuration = by_row[_key(row)]
        dataset = dataset_of(configuration.data.model_dump_json())
        try:
            (case,) = build_cases(configuration, dataset)
        except UserError as error:  # the run's own failure, which spoils no other
            raise ValueError(str(error)) from None
        return case.problem, case.params

    return make


def _key(row: Mapping[str, Any]) -> str:
    return repr(sorted(row.items()))


def _searched(asked: Asked, make: Any, folder: Path, console: Console, options: Options) -> Any:
    from gflow.sweeps import sweep
    from gflow.sweeps.searching import Changed

    configuration = asked.runs[0].configuration
    search = {name: getattr(configuration.limit, name) for name in _SEARCH}
    with SweepDisplay(console, len(asked.runs)) as display:
        try:
            return write(
                f"Chunks that were finished are safe in `{folder}`; go on with `gflow sweep "
                f"--resume {folder}`.",
                sweep,
                make,
                [run.settings for run in asked.runs],
                folder=folder / RUNS,
                chunk=options.chunk,
                progress=display.update,
                max_seconds=configuration.max_seconds,
                distributed=options.distributed,
                mesh=_mesh(),
                **search,
            )
        except Changed as error:
            raise UserError(
                f"`{folder}` holds limits of other problems: for {dict(error.row)} its "
                f"`{CONFIG_NAME}`, the data or this version of gflow give another one than that "
                "whose limit is kept. Begin the sweep anew in another folder, or undo the change."
            ) from error
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error


def _mesh() -> Any:
    """The devices of this process, where it has several."""
    import jax

    devices = jax.local_devices()
    return jax.sharding.Mesh(devices, ("runs",)) if len(devices) > 1 else None


def _conclude(
    asked: Asked,
    found: Any,
    folder: Path,
    console: Console,
    options: Options,
    seconds: float,
) -> int:
    from gflow.report.sweep_record import SweepRecord, write_record

    record = SweepRecord(
        settings=asked.document,
        names=list(found.names),
        rows=found.table(),
        data=describe_source(asked.runs[0].configuration.data),
        interrupted=_interrupted(found),
        seconds=seconds,
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S"),
    )
    safe = f"The limits are safe in `{folder / RUNS}`."
    paths = [
        write(safe, found.to_csv, folder / CSV_NAME),
        write(safe, write_record, record, folder),
    ]
    if options.report:
        from gflow.commands.reporting import draw_sweep

        with console.status("Drawing figures"):
            paths.append(write(safe, draw_sweep, record, folder))
    print_sweep(console, record)
    say(console, repr(found))
    for outcome, message in _failures(found).items():
        say(console, f"{outcome}: {message}")
    say(console, f"In {seconds:.0f} s. Written: {', '.join(map(str, paths))}")
    _say_unfinished(found, folder, console)
    return _code(found)


def _say_unfinished(found: Any, folder: Path, console: Console) -> None:
    """A sentence on the runs that are not finished, where there are any."""
    from gflow.sweeps.run import NOT_BEGUN, NOT_BEGUN_MESSAGE, UNFINISHED

    unfinished = sum(run.outcome in UNFINISHED for run in found)
    left = dict.fromkeys(run.message for run in found if run.outcome == NOT_BEGUN)
    left.pop(NOT_BEGUN_MESSAGE, None)
    why = " ".join(left) or ("Interrupted." if _interrupted(found) else "The seconds are spent.")
    if unfinished:
        say(
            console,
            f"{unfinished} run(s) are not finished. {why} Go on with `gflow sweep --resume "
            f"{folder}`.",
        )


def _interrupted(found: Any) -> bool:
    return any(run.outcome == "interrupted" for run in found)


def _code(found: Any) -> int:
    if _interrupted(found):
        return INTERRUPTED
    return ALL_REACHED if len(found.arrived) == len(found) else NOT_ALL_REACHED


def _failures(found: Any) -> dict[str, str]:
    """Of each outcome of finished runs that did not arrive, the first one's sentence."""
    from gflow.sweeps.run import UNFINISHED

    failed = [run for run in found.failed if run.outcome not in UNFINISHED]
    return {run.outcome: run.message for run in reversed(failed)}
