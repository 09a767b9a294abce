"""`gflow study`: claims of the literature, tried one after another, and the ledger of them."""

from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gflow.commands.folder import claimed, write
from gflow.commands.reading import UserError

_SAFE = "The studies that ended before are in the folder."


def list_studies(console: Console) -> int:
    """Prints the name and the title of every study, and its claim."""
    from gflow.studies import NAMES, find

    for name in NAMES:
        study = find(name)
        console.print(Text.assemble((name, "bold"), "  ", study.title), soft_wrap=True)
        console.print(Text(f"    {study.claim}", style="dim"), soft_wrap=True)
        console.print(Text(f"    {study.source}", style="dim"), soft_wrap=True)
        if study.full:
            console.print(Text(f"    Full form: {study.full}", style="dim"), soft_wrap=True)
    return 0


def run_studies(
    names: Sequence[str], folder: Path, console: Console, *, small: bool, figures: bool
) -> int:
    """Runs the studies, printing each as it ends, and keeps the ledger in `folder` up to date.

    Returns:
        0 where every claim holds, 1 where one does not.

    Raises:
        UserError: there is no such study, or the folder cannot be written to.
    """
    from gflow import studies

    try:
        for name in names:
            studies.find(name)
    except ValueError as error:
        raise UserError(f"{error} `gflow study --list` tells what each claims.") from None
    from gflow.commands.crew import Programs, set_up_jax

    set_up_jax(Programs())
    verdicts, path = [], folder
    form = "small" if small else "full"
    console.print(f"{len(names)} of the studies, {form} form; each is told as it ends.")
    with claimed(folder, overwrite=True):
        for name in names:
            with console.status(f"{name}: compiling and measuring"):
                verdict = studies.run(name, small=small)
            verdicts.append(verdict)
            _print(console, verdict)
            path = write(_SAFE, studies.write_ledger, verdicts, folder, figures=figures)
    holding = sum(verdict.holds for verdict in verdicts)
    console.print(f"{holding} of {len(verdicts)} hold. Written: {path}", soft_wrap=True)
    return 0 if holding == len(verdicts) else 1


def _print(console: Console, verdict) -> None:
    """The study's table: a line for each finding."""
    from gflow.studies.ledger import number, relation

    colour = "green" if verdict.holds else "red"
    title = Text.assemble((verdict.study.title, "bold"), ": ", (verdict.word, colour))
    console.print(title.append(f"  {verdict.seconds:.1f} s", style="dim"), soft_wrap=True)
    if verdict.error:
        console.print(Text(f"  {verdict.error}", style="red"))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("  quantity")
    table.add_column("predicted", justify="right", no_wrap=True)
    table.add_column("measured", justify="right", no_wrap=True)
    table.add_column("compared")
    table.add_column("", no_wrap=True)
    for one in verdict.findings:
        word = Text("holds", style="green") if one.holds else Text("fails", style="red")
        cells = number(one.predicted), number(one.measured), relation(one)
        table.add_row(Text(f"  {one.quantity}"), *map(Text, cells), word)
    console.print(table)
    if verdict.study.correction:
        console.print(Text(f"  What holds instead: {verdict.study.correction}"))
        console.print()
