"""The house: each room of gflow stands on a floor and imports from lower floors only."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import gflow

PACKAGE = Path(gflow.__file__).parent

# From the ground up. Rooms of one floor do not import each other; where one of a kind builds on
# another, it stands half a floor higher. `__init__` holds the public names: it may import all that
# is below it, and only what is written as a user would write it stands above it.
FLOORS = [
    {"_files", "_programs", "_typing"},
    {
        "_description",
        "_interior",
        "_layout",
        "_minimum_norm",
        "_numerics",
        "_signatures",
        "progress",
        "results",
    },
    {"_archive", "_balls", "_batches", "deadline", "optimizers"},
    {"datasets", "losses", "networks", "perturbations", "stiff"},
    {"_parts"},
    {"problem"},
    {"accuracy", "sharpness"},
    {"measures", "reference", "validation"},
    {"kkt"},
    {"checkpoint", "record"},
    {"stored"},
    {"trajectory"},
    {"descent", "flow"},
    {"limit"},
    {"comparison", "report", "sweep"},
    {"__init__"},
    {"studies"},
    {"configuration"},
    {"commands"},
    {"__main__"},
]
LEVEL = {room: level for level, rooms in enumerate(FLOORS) for room in rooms}

# Imported where they are used, never by `import gflow`.
HEAVY = ["clarabel", "click", "jinja2", "matplotlib", "pandas", "pydantic", "rich", "sklearn"]


def room_of(path: Path) -> str:
    """The module or package directly below gflow that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_of(path: Path) -> tuple[str, ...]:
    return ("gflow", *path.relative_to(PACKAGE).parent.parts)


def imported_rooms(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Rooms of gflow that a file of `package` imports, wherever in the file.

    `import gflow` and a public name such as `from gflow import Problem` count as `__init__`.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _room(tuple(alias.name.split(".")))
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = package[: len(package) - node.level + 1] + module
            for alias in node.names:
                yield from _room((*module, alias.name))


def _room(name: tuple[str, ...]) -> list[str]:
    if name[0] != "gflow":
        return []
    return [name[1]] if len(name) > 1 and name[1] in ROOMS else ["__init__"]


FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {room_of(path) for path in FILES} - {"__init__"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import gflow.flow.field as f", ["flow"]),
        ("import gflow", ["__init__"]),
        ("from gflow import losses, Problem", ["losses", "__init__"]),
        ("from gflow.problem import Problem", ["problem"]),
        ("def f():\n    from gflow.losses import logistic", ["losses"]),
        ("if TYPE_CHECKING:\n    from gflow.flow import field", ["flow"]),
        ("from . import field", ["flow"]),
        ("from .field import velocity", ["flow"]),
        ("from .. import losses", ["losses"]),
        ("from ..losses import logistic", ["losses"]),
        ("import numpy, jax.numpy as jnp\nfrom gflowing import x", []),
    ],
)
def test_imports_are_read_in_every_form(source, expected):
    assert list(imported_rooms(source, ("gflow", "flow"))) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_file_imports_from_lower_floors_only(path):
    room = room_of(path)
    assert room in LEVEL, f"`{room}` has no floor yet: say in FLOORS where it stands."
    for imported in imported_rooms(path.read_text(), package_of(path)):
        if imported != room:
            assert LEVEL[imported] < LEVEL[room], f"`{room}` must not import `{imported}`."


def test_something_was_compared():
    pairs = {
        (room_of(path), imported)
        for path in FILES
        for imported in imported_rooms(path.read_text(), package_of(path))
    }
    assert ("problem", "networks") in pairs
    assert len(pairs) > len(ROOMS)


def test_importing_gflow_imports_nothing_heavy():
    program = (
        "import gflow, sys\n"
        "for name in getattr(gflow, '__all__', dir(gflow)): getattr(gflow, name)\n"
        "print(*sys.modules, sep='\\n')"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    modules = {name.partition(".")[0] for name in run.stdout.split()}
    assert "gflow" in modules
    assert not modules.intersection(HEAVY)
