"""Every field in words: the second half of `gflow run --help`, and the example file."""

import io
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from gflow.commands.fields import (
    Section,
    constraints,
    default_text,
    is_array,
    kind_of,
    plain_fields,
    sections,
    tables_of,
    toml_value,
    type_text,
)
from gflow.configuration import Configuration, Table


def fields_text(*, width: int, colour: bool = False) -> str:
    """Every field of CONFIG.toml with its meaning, type, bounds or choices, and default."""
    console = Console(file=io.StringIO(), width=width, force_terminal=colour)
    with console.capture() as capture:
        _print_fields(console)
    return "".join(line.rstrip() + "\n" for line in capture.get().splitlines())


def _print_fields(console: Console) -> None:
    console.print(Text("Fields of CONFIG.toml", style="bold"))
    console.print(
        "A table that is left out is that of the main job, which `gflow config` prints in full; "
        "[[network]] and [[perturbation]] may be repeated.",
        highlight=False,
        markup=False,
    )
    for section in sections():
        console.print(_section_help(section))


def _section_help(section: Section) -> Group:
    title = Text.assemble(
        (section.header or "top of the file", "bold cyan"), f"  {section.purpose}"
    )
    parts: list[Any] = [Text(), title]
    common = _shared_fields(section.models)
    if common:
        parts.append(_rows(common))
    for model in section.models:
        own = [(n, i) for n, i in plain_fields(model) if n not in dict(common)]
        if len(section.models) > 1:
            parts.append(_kind_line(model))
        parts.append(_rows(own, indent=4 if len(section.models) > 1 else 2))
    return Group(*parts)


def _shared_fields(models: list[type[Table]]) -> list[tuple[str, FieldInfo]]:
    """Fields that every kind inherits, told once."""
    parents = {model.__bases__[0] for model in models}
    if len(models) == 1 or parents == {Table} or len(parents) > 1:
        return []
    return list(plain_fields(parents.pop()))


def _kind_line(model: type[Table]) -> Padding:
    kind = Text.assemble((f'kind = "{kind_of(model)}"', "green"), f"  {summary(model)}")
    kind.no_wrap = False
    return Padding(kind, (0, 0, 0, 2))


def summary(model: type[Table]) -> str:
    """What a table is, in one sentence."""
    return " ".join((model.__doc__ or "").split())


def _rows(fields: list[tuple[str, FieldInfo]], indent: int = 2) -> Padding:
    grid = Grid(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    grid.add_column(style="yellow", width=max(14 - indent + 2, 12), no_wrap=True)
    grid.add_column(ratio=1)
    for name, info in fields:
        grid.add_row(name, explanation(info))
    return Padding(grid, (0, 0, 0, indent))


def explanation(info: FieldInfo) -> Text:
    """What a field means, with its type, its bounds and its default."""
    return Text.assemble(
        info.description or "",
        (f"  [{type_text(info)}{_bounds(info)}; {_default_phrase(info)}]", "dim"),
    )


def _bounds(info: FieldInfo) -> str:
    names = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    found = [
        f" {sign} {getattr(constraint, name):g}"
        for constraint in constraints(info)
        for name, sign in names.items()
        if getattr(constraint, name, None) is not None
    ]
    return ",".join(found)


def _default_phrase(info: FieldInfo) -> str:
    text = default_text(info)
    return text if text in ("required", "unset") else f"default {text}"


def example_toml(configuration: Configuration) -> str:
    """`configuration` as a commented TOML file that reads back as the same configuration."""
    lines = ["# One job of `gflow run`: every network under every perturbation."]
    lines += [
        "# `gflow sweep` runs the limits of all combinations, where lists stand for values.",
        "",
    ]
    lines += _lines(configuration)
    for name, info in Configuration.model_fields.items():
        if not tables_of(info.annotation):
            continue
        value = getattr(configuration, name)
        for table in value if is_array(info) else [value]:
            header = f"[[{name}]]" if is_array(info) else f"[{name}]"
            lines += ["", f"# {summary(type(table))}", header, *_lines(table)]
    return "\n".join(lines) + "\n"


def _lines(table: Table) -> Iterator[str]:
    kind = kind_of(type(table))
    if kind is not None:
        yield f"kind = {toml_value(kind)}"
    for name, info in plain_fields(type(table)):
        value = getattr(table, name)
        # TOML has no null: what is unset is left out, as a comment that says what it would be.
        line = f"# {name} =" if value is None else f"{name} = {toml_value(value)}"
        yield f"{line:<24}  # {info.description}"


def document_toml(document: dict[str, Any], comment: str) -> str:
    """A document of tables and arrays of tables as TOML, under a comment."""
    lines = [f"# {comment}", ""]
    lines += [f"{key} = {toml_value(value)}" for key, value in document.items() if _plain(value)]
    for key, value in document.items():
        if not _plain(value):
            header = f"[[{key}]]" if isinstance(value, list) else f"[{key}]"
            for table in value if isinstance(value, list) else [value]:
                lines += ["", header, *(f"{name} = {toml_value(x)}" for name, x in table.items())]
    return "\n".join(lines) + "\n"


def _plain(value: Any) -> bool:
    return not isinstance(value[0] if isinstance(value, list) and value else value, dict)
