"""What a person sees of a sweep: live progress, and the table of its margins."""

import time
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from gflow.commands.telling import say

# A line is written so often at most where the output is no terminal.
_SECONDS = 10.0


class SweepDisplay:
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

    def __enter__(self) -> "SweepDisplay":
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
            say(self.console, f"{status['done']}/{status['runs']} runs{state}")

    def _compile(self, name: str | None) -> None:
        words = "searching" if name is None else f"compiling {name}"
        self.bars.update(self._task, description=words)


def print_sweep(console: Console, record: Any) -> None:
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
