"""The house: each room of gflow stands on a floor and imports from lower floors only.

A room is a module or a folder. Within a folder the same holds for its files.
"""

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
    {
        "_checks",
        "_compiling",
        "_complement",
        "_executables",
        "_files",
        "_interrupts",
        "_memory_maps",
        "_methods",
        "_program_names",
        "_typing",
    },
    {"_programs"},
    {
        "_description",
        "_interior",
        "_layout",
        "_leaves",
        "_minimum_norm",
        "_numerics",
        "_signatures",
        "progress",
        "results",
    },
    {"_rounded"},
    {
        "_archive",
        "_balls",
        "_fingerprint",
        "_batches",
        "_selection",
        "compilation_cache",
        "deadline",
        "optimizers",
    },
    {"rivals", "saving", "watch"},
    {"datasets", "losses", "networks", "perturbations", "stiff"},
    {"_one_example", "_parts"},
    {"problem"},
    {"_points"},
    {"accuracy", "gradient_checks", "homogeneity", "loss_checks", "purity", "sharpness"},
    {"measures", "reference", "validation"},
    {"kkt"},
    {"checkpoint", "record"},
    {"stored"},
    {"trajectory"},
    {"descent", "flow"},
    {"loading"},
    {"limit"},
    {"batch"},
    {"sweeps"},
    {"comparison", "report"},
    {"__init__"},
    {"studies"},
    {"configuration"},
    {"commands"},
    {"__main__"},
]

# The files of a folder, from the ground up, likewise. A folder without a table here may be in any
# order inside.
FOLDERS = {
    "configuration": [
        {"values"},
        {"data", "methods", "networks", "perturbations"},
        {"job"},
        {"__init__"},
    ],
    "stiff": [
        {"operators", "subspace", "tableaus"},
        {"recycling"},
        {"systems"},
        {"constrained", "traits"},
        {"chebyshev", "rosenbrock"},
        {"__init__"},
    ],
    "flow": [
        {"field", "until"},
        {"frame", "jumps", "krylov", "landing", "outcome", "passage", "quadrature", "same_problem"},
        {"chattering", "clocked", "control"},
        {"solvers"},
        {"segment"},
        {"options", "starting", "stiffness"},
        {"place", "reading"},
        {"run"},
        {"continuing", "ended"},
        {"keeping"},
        {"driver"},
        {"__init__"},
    ],
    "kkt": [
        {
            "__init__",
            "batches",
            "certificate",
            "semidefinite",
            "settings",
            "strong_attack",
            "subspace",
            "variables",
        },
        {"switches", "system"},
        {"kinked_system", "point", "within"},
        {"subgradients"},
        {"curvature", "margin_next_to", "multipliers", "open_coefficients"},
        {"certifying", "second_order"},
        {"open_curvature"},
    ],
    "batch": [
        {"arguments", "lanes", "stacked"},
        {"steps"},
        {"control"},
        {"certificates", "flow", "points", "states"},
        {"judging"},
        {"together"},
        {"finding"},
        {"__init__"},
    ],
    "limit": [
        {"dead", "itinerary", "settings"},
        {"complementarity", "continuation", "cooling_system", "result", "search_settings"},
        {"basin", "circling", "cooling_newton", "journal", "kinked_newton", "options", "verdict"},
        {"cooling", "earned", "following", "sensitivity", "state"},
        {"search", "sliding", "starting"},
        {"floor"},
        {"approach", "drift"},
        {"ending", "leaving", "polish", "stored"},
        {"smooth"},
        {"kinked"},
        {"slopes"},
        {"finding"},
        {"__init__"},
    ],
}


def levels(floors: list[set[str]]) -> dict[str, int]:
    """The level of every name; each stands on one floor only."""
    assert sum(map(len, floors)) == len(set().union(*floors))
    return {name: level for level, names in enumerate(floors) for name in names}


LEVEL = levels(FLOORS)

# Imported where they are used, never by `import gflow`.
HEAVY = [
    "clarabel",
    "click",
    "contourpy",
    "jinja2",
    "matplotlib",
    "pandas",
    "pydantic",
    "rich",
    "sklearn",
]


def room_of(path: Path) -> str:
    """The module or package directly below gflow that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def package_of(path: Path) -> tuple[str, ...]:
    return ("gflow", *path.relative_to(PACKAGE).parent.parts)


def imported(source: str, package: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What a file of `package` imports, wherever in the file, as dotted names in parts.

    An import by a string counts like any other.

    Raises:
        AssertionError: an import by what is no literal, of which nothing can be told.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (tuple(alias.name.split(".")) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            if node.level:
                module = package[: len(package) - node.level + 1] + module
            yield from ((*module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in ("import_module", "__import__"):
            name = literal(node.args[0]) if node.args else ""
            assert name, f"`{ast.unparse(node)}`: import by a literal name, or not at all."
            yield tuple(name.split("."))


def literal(name: ast.expr) -> str:
    """A literal string; of an f-string the packages that it begins with, all that is literal."""
    match name:
        case ast.Constant(value=str(text)) if not text.startswith("."):
            return text
        case ast.JoinedStr(values=[ast.Constant(value=str(text)), *_]):
            return text.rpartition(".")[0]
    return ""


def called(node: ast.Call) -> str:
    """The last part of the name of the function that is called."""
    return ast.unparse(node.func).rpartition(".")[2]


def imported_rooms(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """Rooms of gflow that a file of `package` imports.

    `import gflow` and a public name such as `from gflow import Problem` count as `__init__`.
    """
    for name in imported(source, package):
        if name[0] == "gflow":
            yield name[1] if len(name) > 1 and name[1] in ROOMS else "__init__"


def imported_files(source: str, folder: str) -> Iterator[str]:
    """Files of its own folder that a file imports; a name of the folder counts as `__init__`."""
    known = {path.stem for path in (PACKAGE / folder).glob("*.py")}
    for name in imported(source, ("gflow", folder)):
        if name[:2] == ("gflow", folder):
            yield name[2] if len(name) > 2 and name[2] in known else "__init__"


FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = {room_of(path) for path in FILES} - {"__init__"}
# `gflow/__init__.py` imports its public names on first use, by strings.
CHECKED = [path for path in FILES if path != PACKAGE / "__init__.py"]
INSIDE = [path for path in FILES if path.parent.name in FOLDERS and path.parent.parent == PACKAGE]


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
        ("importlib.import_module('gflow.limit')", ["limit"]),
        ("from importlib import import_module\nimport_module('gflow.losses').x", ["losses"]),
        ("__import__('gflow.flow.field')", ["flow"]),
        ("import_module('clarabel')", []),
        ("import_module(f'gflow.limit.{name}')", ["limit"]),
    ],
)
def test_imports_are_read_in_every_form(source, expected):
    assert list(imported_rooms(source, ("gflow", "flow"))) == expected


@pytest.mark.parametrize(
    "name", ["READERS[kind]", "f'{home}.flow'", "f'gflow{rest}'", "'.x', home"]
)
def test_an_import_by_a_name_that_is_computed_is_refused(name):
    with pytest.raises(AssertionError, match="import by a literal name"):
        list(imported(f"import_module({name})", ("gflow",)))


def of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@pytest.mark.parametrize("path", CHECKED, ids=of)
def test_a_file_imports_from_lower_floors_only(path):
    room = room_of(path)
    assert room in LEVEL, f"`{room}` has no floor yet: say in FLOORS where it stands."
    for other in imported_rooms(path.read_text(), package_of(path)):
        if other != room:
            assert LEVEL[other] < LEVEL[room], f"`{room}` must not import `{other}`."


@pytest.mark.parametrize("path", INSIDE, ids=of)
def test_a_file_of_a_folder_imports_from_lower_levels_only(path):
    folder, file = path.parent.name, path.stem
    level = levels(FOLDERS[folder])
    assert file in level, f"`{folder}/{file}` has no level yet: say in FOLDERS where it stands."
    for other in imported_files(path.read_text(), folder):
        assert level[other] < level[file], f"`{folder}/{file}` must not import `{other}`."


def test_the_tables_hold_what_is_there_and_nothing_else():
    for folder, floors in FOLDERS.items():
        assert levels(floors).keys() == {path.stem for path in INSIDE if path.parent.name == folder}


def test_the_flow_stands_below_the_search_for_its_limit():
    assert LEVEL["stiff"] < LEVEL["problem"] < LEVEL["flow"] < LEVEL["limit"]


def test_something_was_compared():
    pairs = {
        (room_of(path), other)
        for path in CHECKED
        for other in imported_rooms(path.read_text(), package_of(path))
    }
    assert ("problem", "networks") in pairs
    assert len(pairs) > len(ROOMS)
    inside = {
        (path.stem, other)
        for path in INSIDE
        for other in imported_files(path.read_text(), path.parent.name)
    }
    assert {("driver", "run"), ("rosenbrock", "traits")} <= inside


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
