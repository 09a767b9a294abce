"""What a person sees: a line for each finished run, live progress between, a table at the end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gflow._programs import while_compiling
from gflow.report.record import COLUMNS, Record, Results, write_cell

# Headings broken so that the table fits 80 columns.
_NARROW = {
    "smoothed\nmargin": "smooth.\nmargin",
    "log-loss": "log-\nloss",
    "stationarity": "station-\narity",
    "alignment": "align-\nment",
}


class Display:
    """Live progress of a job: a line for each run in progress, and one for each that is finished.

    Where the output is no terminal, only the lines of finished runs are written.
    """

    def __init__(self, console: Console):
        self.console = console
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    @contextlib.contextmanager
    def run(self, label: str) -> Iterator["ShownRun"]:
        """A line for the run `label` while it is in progress."""
        task = self.bars.add_task(label, total=1.0, state="compiling")

        def compiling(name: str | None) -> None:
            if name is not None:
                self.bars.update(task, state=f"compiling {name}")

        try:
            with while_compiling(compiling):
                yield ShownRun(self, label, task)
        finally:
            self.bars.remove_task(task)


class ShownRun:
    """The line of one run in progress."""

    def __init__(self, display: Display, label: str, task: TaskID):
        self._display, self._label, self._task = display, label, task

    def progress(self, targets: dict[str, float]) -> Callable[[dict[str, float]], None]:
        """A function for `integrate(progress=...)` that moves the bar towards the targets."""
        start: dict[str, float] = {}

        def show(status: dict[str, float]) -> None:
            if not start:
                start.update(status)
            fraction = max([_fraction(name, start, status, to) for name, to in targets.items()])
            loss = _column("log_loss").write(status["log_loss"])
            state = f"{status['steps']:.0f} steps, log-loss {loss}"
            self._display.bars.update(self._task, completed=fraction, state=state)

        return show

    def finish(self, run: Record) -> None:
        """Writes the line of the finished run."""
        loss = write_cell(run, _column("log_loss"))
        line = Text(f"{self._label:<32}")
        if run.succeeded:
            margin = write_cell(run, _column("adversarial_margin"))
            line.append(f"log-loss {loss}, adv. margin {margin}")
        else:
            line.append(f"failed, log-loss {loss}", style="red")
        steps = write_cell(run, _column("steps"))
        line.append(f", {steps} steps, {run.seconds:.1f} s", style="dim")
        self._display.console.print(line, soft_wrap=True)


def _fraction(name: str, start: dict[str, float], status: dict[str, float], target: float) -> float:
    """How far a quantity has come from its start to its target; 0 where it is not told."""
    if name not in status or start[name] == target:
        return 0.0
    share = (start[name] - status[name]) / (start[name] - target)
    return min(max(share, 0.0), 1.0)


def _column(key: str) -> Any:
    return next(column for column in COLUMNS if column.key == key)


def print_table(console: Console, results: Results) -> None:
    """The table of all runs, and the sentences of those that failed. It fits 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", min_width=10)
    for column in COLUMNS:
        table.add_column(_NARROW.get(column.title, column.title), justify="right", no_wrap=True)
    table.add_column("result", no_wrap=True)
    for network in dict.fromkeys(run.network for run in results.runs):
        table.add_row(Text(network, style="bold"))
        for run in results.runs:
            if run.network == network:
                table.add_row(*_row(run))
        table.add_section()
    console.print(table)
    for run in results.runs:
        if not run.succeeded:
            text = f"{run.network}, {run.perturbation}: {run.result}"
            console.print(text, style="red", highlight=False, markup=False)


def _row(run: Record) -> list[Text]:
    cells = [write_cell(run, column) for column in COLUMNS]
    result = Text("reached", style="green") if run.succeeded else Text("failed", style="red")
    return [Text(f" {run.perturbation}"), *map(Text, cells), result]
