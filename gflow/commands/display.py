"""What a person sees: a line for each finished run, live progress between, a table at the end."""

import time
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gflow.report.record import COLUMNS, Record, Results, write_cell


class Display:
    """Live progress of a job: how many runs are done, and how far the present one is.

    Where the output is no terminal, only the lines of finished runs are written.
    """

    def __init__(self, console: Console, planned: int):
        self._console = console
        self._planned = planned
        self._done = 0
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "Display":
        self._progress.start()
        self._task = self._progress.add_task("", total=1.0, state="")
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, network: str, perturbation: str) -> None:
        """Names the run that is about to be integrated."""
        self._label = f"[{self._done + 1}/{self._planned}] {network}, {perturbation}"
        self._progress.reset(self._task, total=1.0, description=self._label, state="compiling")
        self._started = time.perf_counter()

    def update(self, fraction: float, state: str) -> None:
        """Moves the bar of the present run."""
        self._progress.update(self._task, completed=min(max(fraction, 0.0), 1.0), state=state)

    def finish(self, run: Record) -> None:
        """Writes the line of a finished run."""
        self._done += 1
        loss = write_cell(run, _column("log_loss"))
        line = Text(f"{self._label:<40}")
        if run.succeeded:
            margin = write_cell(run, _column("adversarial_margin"))
            line.append(f"loss {loss}, adv. margin {margin}")
        else:
            line.append(f"not reached, loss {loss}", style="red")
        steps = write_cell(run, _column("steps"))
        line.append(f", {steps} steps, {run.seconds:.1f} s", style="dim")
        self._console.print(line, soft_wrap=True)


def _column(key: str) -> Any:
    return next(column for column in COLUMNS if column.key == key)


def print_table(console: Console, results: Results) -> None:
    """The table of all runs, and the sentences of those that failed."""
    # A pipe has no width: nothing is cut there.
    width = None if console.is_terminal else 160
    table = Table(box=box.SIMPLE, pad_edge=False, width=None)
    table.add_column("network")
    table.add_column("perturbation")
    for column in COLUMNS:
        table.add_column(column.title, justify="right")
    table.add_column("result")
    before = None
    for run in results.runs:
        if before not in (None, run.network):
            table.add_section()
        table.add_row(*_row(run, before))
        before = run.network
    console.print(table, width=width)
    for run in results.runs:
        if not run.succeeded:
            text = f"{run.network}, {run.perturbation}: {run.result}"
            console.print(text, style="red", highlight=False, markup=False)


def _row(run: Record, before: str | None) -> list[Text]:
    name = "" if run.network == before else run.network
    cells = [write_cell(run, column, nothing="-") for column in COLUMNS]
    result = Text("reached", style="green") if run.succeeded else Text("NOT REACHED", style="red")
    return [Text(name), Text(run.perturbation), *map(Text, cells), result]
