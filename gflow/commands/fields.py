"""The fields of the configuration, walked: for help, for messages, for the example file."""

import json
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gflow.configuration import Configuration, Table

Location = tuple[str | int, ...]


class Section(NamedTuple):
    """One table that a configuration may hold.

    Attributes:
        header: its line in TOML, such as `[[network]]`; empty for the top of the file.
        purpose: what the table is for.
        models: the kinds of table that may stand there.
    """

    header: str
    purpose: str
    models: list[type[Table]]


def sections() -> list[Section]:
    """Every table of the configuration, the top of the file first."""
    found = [Section("", "the job", [Configuration])]
    for name, info in Configuration.model_fields.items():
        models = tables_of(info.annotation)
        if models:
            header = f"[[{name}]]" if is_array(info) else f"[{name}]"
            found.append(Section(header, info.description or "", models))
    return found


def plain_fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    """The fields of a table that hold values, not tables; `kind` is left to the section."""
    for name, info in model.model_fields.items():
        if name != "kind" and not tables_of(info.annotation):
            yield name, info


def is_array(info: FieldInfo) -> bool:
    """Whether the field is an array of tables, `[[name]]` in TOML."""
    return get_origin(info.annotation) is list


def tables_of(annotation: Any) -> list[type[Table]]:
    """The tables that a field of this type holds: none for plain values."""
    if isinstance(annotation, type) and issubclass(annotation, Table):
        return [annotation]
    return [table for part in get_args(annotation) for table in tables_of(part)]


def kind_of(model: type[BaseModel]) -> str | None:
    """The value of `kind` that chooses this table, where there is a choice."""
    info = model.model_fields.get("kind")
    return info.default if info else None


def type_text(info: FieldInfo) -> str:
    """`integer`, `list of integers`, `"frozen" or "total"`: a field's type in plain words."""
    return _type_text(info.annotation)


def _type_text(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_text(arguments[0])
    if origin is Literal:
        return " or ".join(json.dumps(choice) for choice in arguments)
    if origin is list:
        return f"list of {_type_text(arguments[0])}s"
    if origin in (Union, types.UnionType):
        return " or ".join(_type_text(part) for part in arguments if part is not type(None))
    return {int: "integer", float: "number", bool: "true or false", str: "text", Path: "path"}[
        annotation
    ]


def constraints(info: FieldInfo) -> list[Any]:
    """The bounds of a field, those of `Annotated[...] | None` included."""
    found = list(info.metadata)
    for part in get_args(info.annotation):
        for metadata in getattr(part, "__metadata__", ()):
            found += metadata.metadata if isinstance(metadata, FieldInfo) else [metadata]
    return found


def default_text(info: FieldInfo) -> str:
    """The default as TOML writes it; `required` or `unset` where there is none."""
    if info.is_required():
        return "required"
    return "unset" if info.default is None else toml_value(info.default)


def toml_value(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, str | Path):
        # TOML's basic strings are JSON's, but for DEL, which JSON leaves as it is.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool | int) else repr(value)


def union_depth(location: Location) -> int | None:
    """Where in Pydantic's location of an error the kind of the table stands, if it does."""
    if not location or location[0] not in Configuration.model_fields:
        return None
    info = Configuration.model_fields[str(location[0])]
    depth = 2 if is_array(info) else 1
    is_union = len(tables_of(info.annotation)) > 1
    return depth if is_union and len(location) > depth else None


def fields_at(location: Location) -> list[str]:
    """Names of the fields of the table at `location`, Pydantic's location of an error."""
    if not location:
        return list(Configuration.model_fields)
    models = tables_of(Configuration.model_fields[str(location[0])].annotation)
    depth = union_depth(location)
    kind = None if depth is None else location[depth]
    chosen = next((model for model in models if kind_of(model) == kind), models[0])
    return list(chosen.model_fields)


def kinds_at(location: Location) -> list[str]:
    """The kinds of table that may stand at `location`."""
    models = tables_of(Configuration.model_fields[str(location[0])].annotation)
    return [str(kind_of(model)) for model in models]
