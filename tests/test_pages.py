"""What the pages name is there: files, modules, public names, tests and their tables."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), ROOT / "benchmarks" / "README.md", *ROOT.glob("docs/*.md")])
# The changelog names what was.
PAGES.remove(ROOT / "CHANGELOG.md")
FILE = re.compile(r"`([\w./]+\.(?:py|md|toml|ipynb|png))`")
NAME = re.compile(r"`(gflow(?:\.\w+)+)[`(]")
# `TABLE` of `tests/test_file.py`, where "of" may stand in the next line.
TABLE = re.compile(r"`([A-Z_]{3,})`\s+(?:of|in)\s+`(tests/\w+\.py)`")
TEST = re.compile(r"`(test_\w+)`")


def found_in(pattern, page):
    """What a page names; without names that stand for those of the reader's own."""
    return {found for found in pattern.findall(page.read_text()) if "NAME" not in str(found)}


def resolved(name):
    """The object of a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            place = importlib.import_module(".".join(parts[:count]))
        except ModuleNotFoundError:
            continue
        for part in parts[count:]:
            place = getattr(place, part)
        return place
    raise ModuleNotFoundError(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_names_are_there(page):
    folders = [ROOT / name for name in ("", "gflow", "docs", "benchmarks", "notebooks")]
    # A path within the package may be short, as `_base.py` beside `gflow/networks/_NAME.py`.
    files = {path.name for path in (ROOT / "gflow").rglob("*.py")}
    for name in found_in(FILE, page):
        known = name in files or any((folder / name).is_file() for folder in folders)
        assert known, f"{page.name} names `{name}`"
    for name in found_in(NAME, page):
        resolved(name)


def test_tests_and_their_tables_are_there():
    page = ROOT / "CONTRIBUTING.md"
    tables, tests = found_in(TABLE, page), found_in(TEST, page)
    assert len(tables) > 5 and len(tests) > 5
    for table, file in tables:
        assert re.search(rf"^{table}\b", (ROOT / file).read_text(), re.MULTILINE), (table, file)
    texts = {path.stem: path.read_text() for path in (ROOT / "tests").glob("test_*.py")}
    for test in tests:
        assert test in texts or any(f"def {test}(" in text for text in texts.values()), test
