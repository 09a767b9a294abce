"""The lists in a job's file, each of which stands for as many runs: `gflow sweep`.

Where a file may hold a single value, a sweep also takes a list of them. Every network under every
perturbation is run with every combination of these values.
"""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gflow.commands.fields import kind_of, tables_of, type_text
from gflow.commands.reading import UserError, check_document
from gflow.configuration import Configuration, labels

MOST_RUNS = 20_000
# Of the top of the file; of tables, every field of [data], [[network]] and [[perturbation]].
_TOP = ("seed", "loss", "gradient", "rivals")
_ARRAYS = ("network", "perturbation")


class Swept(NamedTuple):
    """A list that stands for as many runs.

    Attributes:
        place: where it stands: keys and indices.
        name: of the setting.
        values: its values.
    """

    place: tuple[str | int, ...]
    name: str
    values: list[Any]


class Entry(NamedTuple):
    """One run of a sweep: its settings, by name, and its configuration."""

    settings: dict[str, Any]
    configuration: Configuration


def entries(document: dict[str, Any], source: str) -> list[Entry]:
    """Every run that a document asks for, seeds fastest.

    Raises:
        UserError: a field or a value is wrong, or there are too many runs.
    """
    document = _filled(document)
    found = list(_lists(document))
    for swept in found:
        _check_values(swept)
    count = _count(document, found)
    if count > MOST_RUNS:
        raise UserError(f"{source}: the lists ask for {count} runs; at most {MOST_RUNS} are made.")
    first = _with(document, [(swept, swept.values[0]) for swept in found])
    names = _names(check_document(first, source))
    for swept in found:  # one after another, so that a message names the right place
        for value in swept.values[1:]:
            check_document(_with(first, [(swept, value)]), source)
    return list(_rows(document, found, names))


def _filled(document: Mapping[str, Any]) -> dict[str, Any]:
    """With the networks and perturbations of the main job, where there are none."""
    filled = dict(document)
    for name in _ARRAYS:
        if name not in filled:
            tables = Configuration.model_fields[name].default
            filled[name] = [table.model_dump(exclude_none=True) for table in tables]
    return filled


def _lists(document: Mapping[str, Any]) -> Iterator[Swept]:
    """Every list where a single value may stand, seeds last."""
    yield from _lists_of(document.get("data"), "data", ("data",))
    top = [name for name in _TOP if name in document]
    for name in sorted(top, key=_TOP.index, reverse=True):
        if isinstance(document[name], list):
            yield Swept((name,), name, document[name])
    for array in _ARRAYS:
        tables = document[array] if isinstance(document[array], list) else []
        for number, table in enumerate(tables):
            yield from _lists_of(table, array, (array, number))


def _lists_of(table: Any, section: str, place: tuple[str | int, ...]) -> Iterator[Swept]:
    if not isinstance(table, dict):
        return
    models = tables_of(Configuration.model_fields[section].annotation)
    model = next((each for each in models if kind_of(each) == table.get("kind")), None)
    for name, value in table.items():
        info = None if model is None else model.model_fields.get(name)
        if info is None or name in ("kind", "name") or not isinstance(value, list):
            continue
        # Such as the widths of a network: here only a list of lists is one of many values.
        if type_text(info).startswith("list of") and not any(isinstance(v, list) for v in value):
            continue
        yield Swept((*place, name), _setting(section, name), value)


def _setting(section: str, name: str) -> str:
    return name if name == "radius" else f"{section}.{name}"


def _check_values(swept: Swept) -> None:
    written = [json.dumps(value) for value in swept.values]
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in swept.place)
    where = where.removeprefix(".")
    if not written:
        raise UserError(f"`{where}`: the list is empty.")
    if len(set(written)) < len(written):
        raise UserError(f"`{where}`: the values must differ.")


def _count(document: Mapping[str, Any], found: list[Swept]) -> int:
    """How many runs the product has."""
    counts = {name: 0 for name in _ARRAYS}
    for name in _ARRAYS:
        for number in range(len(document[name]) if isinstance(document[name], list) else 1):
            own = (len(each.values) for each in found if each.place[:2] == (name, number))
            counts[name] += math.prod(own)
    whole = (len(each.values) for each in found if each.place[0] not in _ARRAYS)
    return math.prod([*counts.values(), *whole])


def _with(document: Mapping[str, Any], changes: list[tuple[Swept, Any]]) -> dict[str, Any]:
    """The document with other values at these places; what is not changed is shared."""
    changed = dict(document)
    for name in _ARRAYS:
        if isinstance(changed[name], list):
            changed[name] = [dict(t) if isinstance(t, dict) else t for t in changed[name]]
    if isinstance(changed.get("data"), dict):
        changed["data"] = dict(changed["data"])
    for swept, value in changes:
        table: Any = changed
        for key in swept.place[:-1]:
            table = table[key]
        table[swept.place[-1]] = value
    return changed


def _names(configuration: Configuration) -> dict[str, list[str]]:
    return {name: labels(getattr(configuration, name)) for name in _ARRAYS}


def _rows(
    document: dict[str, Any], found: list[Swept], names: dict[str, list[str]]
) -> Iterator[Entry]:
    """The product, one run after another."""
    seeds = [each for each in found if each.place == ("seed",)]
    whole = [each for each in found if each.place[0] not in _ARRAYS and each not in seeds]
    for outer in _combinations(whole):
        for numbers in itertools.product(*(range(len(document[name])) for name in _ARRAYS)):
            places = list(zip(_ARRAYS, numbers, strict=True))
            own = [each for each in found if each.place[:2] in places]
            for inner in _combinations(own):
                for last in _combinations(seeds):
                    yield _entry(document, names, places, [*outer, *inner, *last])


def _combinations(found: list[Swept]) -> Iterator[list[tuple[Swept, Any]]]:
    for values in itertools.product(*(each.values for each in found)):
        yield list(zip(found, values, strict=True))


def _entry(
    document: dict[str, Any],
    names: dict[str, list[str]],
    places: Sequence[tuple[str, int]],
    chosen: list[tuple[Swept, Any]],
) -> Entry:
    changed = _with(document, chosen)
    settings = {swept.name: value for swept, value in chosen if swept.place[0] not in _ARRAYS}
    seed = settings.pop("seed", changed.get("seed", 0))
    for array, number in places:
        table = changed[array][number]
        table["name"] = names[array][number]
        changed[array] = [table]
        settings[array] = table["name"]
        if "radius" in table:
            settings["radius"] = table["radius"]
        settings |= {s.name: value for s, value in chosen if s.place[:2] == (array, number)}
    return Entry(settings | {"seed": seed}, Configuration.model_validate(changed))
