"""`gflow sweep`: the limits of all combinations of the lists in a file, into a folder."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gflow._files import write_text
from gflow.commands.crew import Programs, set_up_jax
from gflow.commands.explaining import document_toml
from gflow.commands.folder import CONFIG_NAME, RUNS, claimed, write
from gflow.commands.left import resume_of
from gflow.commands.lists import Entry, entries
from gflow.commands.reading import UserError, read_document, source_of, told_if_deep
from gflow.commands.running import ALL_REACHED, INTERRUPTED, NOT_ALL_REACHED, describe_source

CSV_NAME = "sweep.csv"
_COMMENT = "A sweep: `gflow sweep config.toml` runs every combination of the lists."
# A line is written so often at most where the output is no terminal.
_SECONDS = 10.0
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


@dataclass(frozen=True)
class Asked:
    """What a file asks for: the file's content, where it comes from, and every run."""

    document: dict[str, Any]
    source: str
    runs: list[Entry]


def read_sweep(path: Path | None, overrides: Sequence[str] = (), *, saved: bool = False) -> Asked:
    """The sweep that a file describes.

    Args:
        saved: whether the file is one of gflow's own, which has no field where none was given.

    Raises:
        UserError: the file cannot be read, or a field or value is wrong.
    """
    with told_if_deep(source := source_of(path)):
        document = read_document(path, overrides, saved=saved)
        runs = entries(document, source)
    _check_limit(runs[0])
    return Asked(document, source, runs)


def read_saved(folder: Path, *, others: bool) -> Asked:
    """The sweep in `folder`, as it was asked for.

    Args:
        others: whether options were given that belong to a new sweep.

    Raises:
        UserError: they were, or the folder holds no sweep.
    """
    if others:
        raise UserError(
            "`gflow sweep --resume FOLDER` goes on with a sweep as it was asked for: leave out "
            "CONFIG, --set, --output, --overwrite and --chunk."
        )
    command = resume_of(folder)
    if command and command.startswith("gflow run"):
        raise UserError(f"`{folder}` holds a job, no sweep: `{command}` goes on with it.")
    if not (folder / CONFIG_NAME).is_file() or not (folder / RUNS).is_dir():
        raise UserError(
            f"`{folder}` holds no sweep to go on with: there is no `{CONFIG_NAME}` or no `{RUNS}` "
            f"in it. Begin one with `gflow sweep CONFIG --output {folder}`."
        )
    return read_sweep(folder / CONFIG_NAME, saved=True)


def _check_limit(run: Entry) -> None:
    """A sweep runs to limits, by one search each, within the seconds of the whole."""
    limit = run.configuration.limit
    refused = {
        "enabled": (not limit.enabled, "a sweep runs to limits; `gflow run` stops before"),
        "reproduce": (limit.reproduce, "a sweep searches once; `gflow run` searches again"),
        "max_seconds": (
            limit.max_seconds is not None,
            "a sweep has seconds for all its runs together, `max_seconds` at the top of the file",
        ),
    }
    for name, (given, words) in refused.items():
        if given:
            raise UserError(f"`limit.{name}`: {words}.")


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
        _say(console, _announcement(asked, folder))
        with console.status("Loading JAX, data and networks"):
            set_up_jax(options.programs)
            make = maker(asked.runs)
        _prepare(asked, folder, options)
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


def _prepare(asked: Asked, folder: Path, options: Options) -> None:
    """The folder as that of this sweep, with its own runs or with none."""
    safe = "Nothing was searched."
    write(safe, (folder / RUNS).mkdir, exist_ok=True)
    if options.resumed:
        return
    for path in (folder / RUNS).glob("*.npz"):
        write(safe, path.unlink)
    write(safe, write_text, folder / CONFIG_NAME, document_toml(asked.document, _COMMENT))


def _searched(asked: Asked, make: Any, folder: Path, console: Console, options: Options) -> Any:
    from gflow.sweeps import sweep

    configuration = asked.runs[0].configuration
    search = {name: getattr(configuration.limit, name) for name in _SEARCH}
    with _Display(console, len(asked.runs)) as display:
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
        except (ValueError, RuntimeError) as error:
            raise UserError(str(error)) from error


def _mesh() -> Any:
    """The devices of this process, where it has several."""
    import jax

    devices = jax.local_devices()
    return jax.sharding.Mesh(devices, ("runs",)) if len(devices) > 1 else None


class _Display:
    """Live progress: runs done of all, arrived, failed, and their rate."""

    def __init__(self, console: Console, runs: int):
        self.console, self._told = console, float("-inf")
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed:.0f}/{task.total:.0f} runs{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self.bars.add_task("searching", total=runs, state="")

    def __enter__(self) -> "_Display":
        from gflow._compiling import while_compiling

        self._compiling = while_compiling(self._compile)
        self._compiling.__enter__()
        self.bars.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.bars.stop()
        self._compiling.__exit__(*error)

    def update(self, status: Mapping[str, Any]) -> None:
        """Shows how far the sweep has come."""
        state = (
            f", {status['arrived']} arrived, {status['failed']} failed, {status['rate']:.3g} runs/s"
        )
        self.bars.update(self._task, completed=status["done"], total=status["runs"], state=state)
        late = time.perf_counter() - self._told > _SECONDS or status["done"] == status["runs"]
        if not self.console.is_terminal and late:
            self._told = time.perf_counter()
            _say(self.console, f"{status['done']}/{status['runs']} runs{state}")

    def _compile(self, name: str | None) -> None:
        words = "searching" if name is None else f"compiling {name}"
        self.bars.update(self._task, description=words)


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
    _print(console, record)
    _say(console, repr(found))
    for outcome, message in _failures(found).items():
        _say(console, f"{outcome}: {message}")
    _say(console, f"In {seconds:.0f} s. Written: {', '.join(map(str, paths))}")
    _say_unfinished(found, folder, console)
    return _code(found)


def _say_unfinished(found: Any, folder: Path, console: Console) -> None:
    """A sentence on the runs that are not finished, where there are any."""
    from gflow.sweeps.result import NOT_BEGUN, NOT_BEGUN_MESSAGE, UNFINISHED

    unfinished = sum(run.outcome in UNFINISHED for run in found)
    left = dict.fromkeys(run.message for run in found if run.outcome == NOT_BEGUN)
    left.pop(NOT_BEGUN_MESSAGE, None)
    why = " ".join(left) or ("Interrupted." if _interrupted(found) else "The seconds are spent.")
    if unfinished:
        _say(
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
    from gflow.sweeps.result import UNFINISHED

    failed = [run for run in found.failed if run.outcome not in UNFINISHED]
    return {run.outcome: run.message for run in reversed(failed)}


def _print(console: Console, record: Any) -> None:
    """The margin over the seeds, a line for every other combination of settings."""
    from gflow.report.sweep_record import over_seeds, significant

    names, rows = over_seeds(record)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in names:
        table.add_column(name)
    for title in ("arrived", "mean margin", "smallest", "largest", "std"):
        table.add_column(title, justify="right", no_wrap=True)
    for row in rows:
        cells = ["" if row[name] is None else str(row[name]) for name in names]
        numbers = [significant(row[key]) for key in ("mean", "min", "max", "std")]
        style = "" if row["arrived"] == row["runs"] else "red"
        count = f"{row['arrived']}/{row['runs']}"
        table.add_row(*(Text(cell, style=style) for cell in (*cells, count)), *numbers)
    console.print(table)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
