"""What `gflow run` and `gflow sweep` tell alike: exit codes, the data in a few words, a line."""

from rich.console import Console

from gflow import configuration as tables

ALL_REACHED = 0
NOT_ALL_REACHED = 1
INTERRUPTED = 130


def describe_source(table: tables.Data) -> str:
    """The data set in a few words."""
    match table:
        case tables.Digits():
            return f"handwritten digits {table.positive} against {table.negative}"
        case tables.Mnist():
            return f"MNIST digits {table.positive} against {table.negative}"
        case tables.Npz() | tables.Csv():
            return table.path.name
    return table.kind.replace("_", " ") + " data"


def say(console: Console, text: str) -> None:
    """Writes a line as it is, however wide the terminal is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
