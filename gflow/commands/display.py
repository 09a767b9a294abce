"""What a person sees: a line for each run, live progress between, a table at the end."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gflow.report.columns import columns_of, significant, write_cell
from gflow.report.evaluation import Evaluation, largest, margins_shown
from gflow.report.record import Record, Results
from gflow.report.spread import Spread, spreads

# Headings and words that fit 80 columns.
_NARROW = {"smoothed\nmargin": "smooth.\nmargin", "log-loss": "log-\nloss"}
_NARROW |= {"stationarity": "station-\narity", "alignment": "align-\nment"}
_BAR = 20


class Display:
    """Live progress of a job: a line for each run in progress, and one for each that is finished.

    Where the output is no terminal, a line is written when a run begins and when it is finished.
    """

    def __init__(self, console: Console, labels: Sequence[str], targets: Mapping[str, float]):
        self.console, self._labels, self._targets = console, labels, targets
        self._tasks: dict[int, TaskID] = {}
        self._starts: dict[int, dict[str, Any]] = {}
        self.bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=_BAR),
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

    def begin(self, number: int, state: str = "compiling") -> None:
        """A line for the task `number` while it is in progress."""
        label = self._labels[number]
        self._tasks[number] = self.bars.add_task(label, total=1.0, state=state)
        if not self.console.is_terminal:
            self.say(f"{label:<35} {state}", style="dim")

    def update(self, number: int, status: Mapping[str, Any]) -> None:
        """Moves the bar of a task towards the targets of its flow, and further towards a limit."""
        if number not in self._tasks:
            return
        if status["stage"] == "compiling":
            self.bars.update(self._tasks[number], state=f"compiling {status['name']}")
            return
        start = self._starts.setdefault(number, dict(status))
        steps = f"{status['steps']:.0f} {'systems' if status.get('systems') else 'steps'}"
        if status["stage"] == "flow":
            done = [_fraction(name, start, status, to) for name, to in self._targets.items()]
            fraction, state = max(done), f"{steps}, log-loss {status['log_loss']:.2f}"
        elif status["stage"] == "descent":
            fraction, state = 1.0, f"descent, {steps}, log-loss {status['log_loss']:.2f}"
        else:
            fraction, state = 1.0, f"to the limit, {steps}, {status['stationarity']:.0e}"
        self.bars.update(self._tasks[number], completed=fraction, state=state)

    def end(self, number: int) -> None:
        """Takes the line of a task away."""
        if number in self._tasks:
            self.bars.remove_task(self._tasks.pop(number))

    def finish(self, number: int, run: Record, *, loaded: bool = False) -> None:
        """Writes the line of a finished run."""
        self.end(number)
        line = Text(f"{self._labels[number]:<35} ").append_text(_outcome(run))
        tail = "finished before" if loaded else f"{run.seconds:.1f} s"
        line.append(f", {run.figures['steps']:.0f} steps, {tail}", style="dim")
        self.console.print(line, soft_wrap=True)

    def say(self, text: str, *, style: str = "") -> None:
        """Writes one line."""
        self.console.print(Text(text, style=style), soft_wrap=True)


def _outcome(run: Record) -> Text:
    loss = f"log-loss {run.figures['log_loss'] or math.nan:.2f}"
    if not run.succeeded:
        words = "interrupted" if run.outcome == "interrupted" else "not arrived"
        return Text(f"{words}, {loss}", style="red")
    if "verdict" in run.words:
        margin = significant(run.figures["limit_margin"] or math.nan)
        return Text(f"margin {margin}: {run.words['verdict']}, basin {run.words['basin']}")
    margin = significant(run.figures["adversarial_margin"] or math.nan)
    return Text(f"{loss}, adv. margin {margin}")


def _fraction(
    name: str, start: Mapping[str, Any], status: Mapping[str, Any], target: float
) -> float:
    """How far a quantity has come from its start to its target; 0 where it is not told."""
    if name not in status or start[name] == target:
        return 0.0
    share = (start[name] - status[name]) / (start[name] - target)
    return min(max(share, 0.0), 1.0)


def print_table(console: Console, results: Results) -> None:
    """The table of all runs, and the sentences of those that failed."""
    table = _table()
    columns = columns_of(results)
    for column in columns:
        justify = "left" if column.write is None else "right"
        title = _NARROW.get(column.title, column.title)
        table.add_column(title, justify=justify, no_wrap=column.write is not None)
    for network in dict.fromkeys(run.network for run in results.runs):
        table.add_row(Text(network, style="bold"))
        for run in results.runs:
            if run.network == network:
                cells = [write_cell(run, column) for column in columns]
                style = "" if run.succeeded else "red"
                table.add_row(Text(f" {run.perturbation}", style=style), *map(Text, cells))
        table.add_section()
    console.print(table)
    for run in results.runs:
        if not run.succeeded:
            text = f"{run.network}, {run.perturbation}: {run.result}"
            console.print(text, style="red", highlight=False, markup=False)


def print_matrix(
    console: Console, evaluations: Sequence[Evaluation], settings: Mapping[str, Any]
) -> None:
    """Trained under x attacked by: normalized margins, the largest of each column bold.

    Over several seeds the mean, and half of the range below it.
    """
    several = spreads(evaluations, settings)
    for spread in several:
        _print_one(console, spread, spread.shown().mean, spread.below())
    if not several:
        for each in evaluations:
            _print_one(console, each, margins_shown(each), None)
    text = (
        "Normalized margins, trained under x attacked by (exact signs; strong: the smallest that "
        "any attack tried in the ball finds); * the largest of a column"
    )
    seeds = f"; mean over {len(settings['seed'])} seeds, ± half of the range" if several else ""
    if any(spread.fewer(count) for spread in several for count in spread.shown().count.flat):
        seeds += ", or over those that have a value, which the brackets count"
    console.print(Text(f"{text}{seeds}.", style="dim"), soft_wrap=True)


def _print_one(console: Console, matrix: Evaluation | Spread, margins: Any, below: Any) -> None:
    table = _table()
    table.columns[0].header = f"{matrix.network}\ntrained under"
    for name in matrix.columns:
        table.add_column(name.replace(" ", "\n"), justify="right", no_wrap=True)
    marks = largest(margins)
    for i, row in enumerate(matrix.rows):
        cells = []
        for j, (value, mark) in enumerate(zip(margins[i], marks[i], strict=True)):
            text = _cell(value) + ("*" if mark else " ")
            if below is not None:
                text += f"\n{below[i][j]} "
            cells.append(Text(text, style="bold" if mark else ""))
        table.add_row(Text(f" {row}"), *cells)
    console.print(table)


def _table() -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("", min_width=10)
    return table


def _cell(value: float) -> str:
    return significant(value) if math.isfinite(value) else "-"
