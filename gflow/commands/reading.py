"""From a TOML file to a `Configuration`, or to a message that names what is wrong."""

import contextlib
import difflib
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gflow.commands.bounds import declared_size, too_large
from gflow.commands.fields import fields_at, kinds_at, union_depth
from gflow.configuration import MANY, ONE, Configuration

# Of a file, more than any configuration has; of complaints, more than anyone reads.
_MOST_BYTES = 2**24
_MOST_LINES = 20
_MOST_LETTERS = 200
_MOST_PARTS = 10


class UserError(Exception):
    """A mistake that the user can mend; its text is all that is shown."""


def warning_sentence(message: Warning | str, *_: Any, **__: Any) -> str:
    """A warning as the command line tells it, for `warnings.formatwarning`: without the line of
    source, of which the user is not the author.
    """
    return f"gflow: warning: {message}\n"


def read_configuration(path: Path | None, overrides: Iterable[str] = ()) -> Configuration:
    """The configuration in `path` (the defaults without one), changed by `KEY=VALUE` overrides.

    Raises:
        UserError: the file cannot be read, is no TOML, or holds a wrong field or value.
    """
    with told_if_deep(source := source_of(path)):
        return check_document(read_document(path, overrides), source)


def read_document(
    path: Path | None, overrides: Iterable[str] = (), *, saved: bool = False
) -> dict[str, Any]:
    """What is written in `path`, changed by the overrides, as TOML has it; nothing is checked yet.

    Args:
        saved: whether the file is one of gflow's own, which may be without a field.

    Raises:
        UserError: the file cannot be read, is no TOML, or a user's own without a field.
    """
    document = {} if path is None else _read_toml(path)
    if path is not None and not document and not saved:
        raise UserError(
            f"`{path}` holds no field: it is empty. Leave it out for the main job, or begin with "
            "`gflow config > CONFIG.toml`."
        )
    for override in overrides:
        _merge(document, _parse_override(override))
    _anchor_data_path(document, Path() if path is None else path.parent)
    return document


def source_of(path: Path | None) -> str:
    """Where a configuration comes from, for messages."""
    return "the command line" if path is None else f"`{path}`"


@contextlib.contextmanager
def told_if_deep(source: str) -> Iterator[None]:
    """A document that is nested too deep to be walked is a user's mistake."""
    try:
        yield
    except RecursionError:
        raise UserError(
            f"{source} cannot be used: its tables or lists are nested too deep. A field is at most "
            "a list in a table, as `gflow config` prints them."
        ) from None


def check_document(document: dict[str, Any], source: str) -> Configuration:
    """`document` as a `Configuration`; `source` is where it came from, for the message."""
    try:
        configuration = Configuration.model_validate(document)
    except ValidationError as error:
        lines = [_describe(one) for one in error.errors(include_url=False)]
        raise _unusable(source, lines) from None
    lines = too_large(configuration, declared_size(configuration.data))
    if lines:
        raise _unusable(source, lines)
    return configuration


def _unusable(source: str, lines: list[str]) -> UserError:
    shown = lines[:_MOST_LINES]
    if len(lines) > len(shown):
        shown.append(f"and {len(lines) - len(shown)} more")
    return UserError(
        f"{source} cannot be used:\n"
        + "\n".join(f"  {line}" for line in shown)
        + "\n`gflow run --help` explains every field; `gflow config` prints a complete example."
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as handle:
            content = handle.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UserError(f"`{path}` is no configuration: it has over {_MOST_BYTES:.1g} bytes.")
        text = content.decode("utf-8-sig")  # Windows' editors begin a file with a mark
    except OSError as error:
        near = _near(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"`{path}` cannot be read: {error.strerror or error}{near}.") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"`{path}` is not UTF-8 text: see line {line}.") from None
    try:
        return tomllib.loads(text)
    except ValueError as error:  # also an integer of more digits than Python reads
        raise UserError(f"`{path}` is not valid TOML: {error}.") from None


def _parse_override(override: str) -> dict[str, Any]:
    """`until.log_loss=-5` as nested tables; a value that is no TOML is taken as a string."""
    key, separator, value = override.partition("=")
    if not separator:
        raise UserError(f"`--set {override}`: write KEY=VALUE, such as `until.log_loss=-5`.")
    if key.count(".") > _MOST_PARTS:
        raise UserError(f"`--set {key[:_MOST_LETTERS]}..`: no field is nested as deep.")
    try:
        return tomllib.loads(f"{key} = {value}")
    except ValueError:
        pass
    nested: Any = value.strip()
    for part in reversed(key.strip().split(".")):
        nested = {part: nested}
    return nested


def _merge(document: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(document.get(key), dict):
            _merge(document[key], value)
        else:
            document[key] = value


def _anchor_data_path(document: dict[str, Any], folder: Path) -> None:
    """Paths in a file are meant relative to that file, wherever the command is run."""
    data = document.get("data")
    for name in ("path", "held_out"):
        if isinstance(data, dict) and isinstance(data.get(name), str):
            data[name] = str((folder / Path(data[name]).expanduser()).absolute())


def _describe(error: Any) -> str:
    """One line for one thing that is wrong: its path, what is wrong, what would be right."""
    location = error["loc"]
    path = _path(location)
    match error["type"]:
        case "extra_forbidden":
            return f"`{path}`: no such field{_instead(location)}"
        case "list_type" if isinstance(error["input"], dict):
            return f"`{path}`: one of several tables; write `[[{path}]]` above it, not `[{path}]`"
        case "missing":
            return f"`{path}`: this field is needed"
        case "union_tag_not_found":
            return f"`{path}.kind`: this field is needed: one of {', '.join(kinds_at(location))}"
        case "union_tag_invalid":
            kinds = kinds_at(location)
            found = error["ctx"]["tag"]
            hint = _did_you_mean(found, kinds) or f"; choose one of {', '.join(kinds)}"
            return f"`{path}.kind` = {found!r}: no such kind{hint}"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input ")
    found = "" if isinstance(error["input"], dict | list) else f" = {_toml(error['input'])}"
    return f"`{path}`{found}: {message}"


def _path(location: tuple[str | int, ...]) -> str:
    """`network[0].hidden`. Pydantic puts the kind of a table, and the form of a value, behind their
    place; users do not.
    """
    depth = union_depth(location)
    parts = [part for i, part in enumerate(location) if i != depth and part not in (ONE, MANY)]
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return text.removeprefix(".")


def _instead(location: tuple[str | int, ...]) -> str:
    known = fields_at(location[:-1])
    return _did_you_mean(str(location[-1]), known) or f"; there are {', '.join(known)}"


def _near(path: Path) -> str:
    """A file of nearly the same name in the folder."""
    with contextlib.suppress(OSError):
        files = [file.name for file in path.parent.glob("*.toml")]
        close = difflib.get_close_matches(path.name, files, n=1)
        return f"; perhaps `{path.with_name(close[0])}` is meant" if close else ""
    return ""


def _did_you_mean(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def _toml(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}.."
