"""The documentation site: complete, and built without a warning.

`pytest -m documentation` builds it; a stage of continuous integration does.
"""

import inspect
import re
import shlex
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

import gflow
from gflow.__main__ import cli
from gflow.configuration import Configuration
from gflow.kkt import strong_attack
from gflow.kkt.settings import DEAD, SIZES
from gflow.limit import BasinSettings
from gflow.limit.basin import BASINS
from gflow.limit.verdict import VERDICTS
from gflow.results import NAMES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PACKAGE = Path(gflow.__file__).parent

# The modules whose public names the site documents, beside `gflow.__all__`.
MODULES = [
    *("networks", "perturbations", "losses", "datasets", "measures", "optimizers", "report"),
    *("studies", "limit", "reference"),
]


def public_names() -> dict[str, set[str]]:
    """Every public name, with the names under which it may stand in the reference."""
    names = {f"gflow.{name}": getattr(gflow, name) for name in gflow.__all__}
    for module in MODULES:
        home = import_module(f"gflow.{module}")
        names |= {f"gflow.{module}.{name}": getattr(home, name) for name in home.__all__}
    return {name: {name, *others_of(value, names)} for name, value in names.items()}


def others_of(value, names: dict[str, object]) -> set[str]:
    """The names of a function or a class, which is itself under each of them."""
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        return set()
    return {name for name, other in names.items() if other is value}


def undocumented(documented: set[str]) -> list[str]:
    """The public names that are not among those documented."""
    return [name for name, allowed in public_names().items() if not allowed & documented]


def test_a_name_that_is_left_out_is_seen():
    everything = set(public_names())
    assert len(everything) > 100
    assert not undocumented(everything)
    assert undocumented(everything - {"gflow.certify"}) == ["gflow.certify"]
    # One of two names of the same function is enough, and of a number it is not.
    assert not undocumented(everything - {"gflow.find_limit"})
    both = {"gflow.find_limit", "gflow.limit.find_limit"}
    assert set(undocumented(everything - both)) == both
    assert undocumented(everything - {"gflow.optimizers.GROWTH"}) == ["gflow.optimizers.GROWTH"]


def documentation(test):
    """Asked for by `-m documentation`, and slow."""
    return pytest.mark.documentation(pytest.mark.slow(test))


@pytest.fixture(scope="module")
def site():
    """The folder of the site, built with warnings as errors."""
    folder = DOCS / "_build" / "html"
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html"]
    run = subprocess.run([*command, DOCS, folder], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@documentation
def test_every_public_name_is_in_the_reference(site):
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    kinds = [kind for kind in inventory.data if kind.startswith("py:")]
    documented = {name for kind in kinds for name in inventory.data[kind]}
    assert not undocumented(documented)


@documentation
def test_every_notebook_and_page_is_on_the_site(site):
    pages = [path for path in DOCS.glob("*.md")] + [*(DOCS / "api").glob("*.md")]
    notebooks = [*(ROOT / "notebooks").glob("*.ipynb")]
    assert len(pages) > 20 and notebooks
    made = [site / path.relative_to(DOCS).with_suffix(".html") for path in pages]
    made += [site / "notebooks" / f"{path.stem}.html" for path in notebooks]
    assert not [path for path in made if not path.is_file()]
    assert "<math" in (site / "mathematics.html").read_text()


def entries(page: str) -> dict[str, list[str]]:
    """The third headings of a page under each of its second ones."""
    found: dict[str, list[str]] = {}
    for level, title in re.findall(r"^(##|###) (.+)$", page, re.MULTILINE):
        if level == "##":
            found[title] = []
        else:
            found[list(found)[-1]].append(title)
    return found


def test_every_word_of_a_result_has_an_entry():
    found = entries((DOCS / "outcomes.md").read_text())
    told = [[title.removesuffix(" (verdict)") for title in titles] for titles in found.values()]
    assert list(map(len, told)) == [len(NAMES), len(VERDICTS), len(BASINS)]
    assert list(map(set, told)) == [set(NAMES), set(VERDICTS), set(BASINS)]


def test_the_sizes_are_those_of_the_code():
    page = " ".join((DOCS / "performance.md").read_text().split())
    for told in (
        f"Up to {SIZES.formed} parameters the search forms its matrices, up to {SIZES.factored} it",
        f"At kinks the systems are formed up to {SIZES.formed_at_kinks} parameters; beyond, only",
        f"led to 0 for at most {SIZES.at_kinks} parameters",
        f"Limits are sought for at most {SIZES.judged} parameters",
        f"linear in their inputs for at most {SIZES.judged_within};",
    ):
        assert told in page


def test_numbers_of_the_basin_and_of_the_strong_attack_are_those_of_the_code():
    pages = [ROOT / "README.md", *(DOCS / f"{name}.md" for name in ("outcomes", "mathematics"))]
    basin = f"{BasinSettings().displacement:g}"
    for place in (*pages, PACKAGE / "report" / "columns.py"):
        assert re.search(rf"(within|less than) {basin}\b", place.read_text()), place
    number = {3: "three"}[strong_attack._NUM_RANDOM]
    attack = rf"{strong_attack._NUM_STEPS} steps,?\s+from\s+0\s+and\s+(from\s+)?{number}\b"
    code = ("report/evaluation.py", "kkt/certificate.py", "kkt/strong_attack.py")
    for place in (DOCS / "certificate.md", *(PACKAGE / name for name in code)):
        words = place.read_text()
        assert re.search(attack, words), place


def test_the_number_of_directions_of_dead_neurons_is_that_of_the_code():
    told = f"{DEAD.directions} random"
    for place in (DOCS / "outcomes.md", DOCS / "mathematics.md", PACKAGE / "limit" / "result.py"):
        assert told in place.read_text(), place


def test_the_commands_on_the_pages_can_be_given():
    shell = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
    blocks = [text for path in DOCS.glob("*.md") for text in shell.findall(path.read_text())]
    lines = [line for text in blocks for line in text.splitlines() if "gflow " in line]
    calls = [shlex.split(line.partition("gflow ")[2]) for line in lines if "SBATCH" not in line]
    assert {"run", "study"} <= {name for name, *_ in calls}
    for name, *arguments in calls:
        numbers = [argument.replace("$seed", "3") for argument in arguments]
        cli.commands[name].make_context(name, numbers)


def test_the_job_on_the_page_is_one():
    (job,) = re.findall(r"^```toml\n(.*?)^```", (DOCS / "command_line.md").read_text(), re.S | re.M)
    assert Configuration.model_validate(tomllib.loads(job)).num_runs == 6
