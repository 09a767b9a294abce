"""The Python examples of the README and of the documentation print what is written below them."""

import json
import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(python|text)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

# Rounding, and the number of steps, depend on the versions and on the processor. A step may make an
# error of 1e-8, and what is zero but for rounding is as likely 1e-16 as 1e-17.
_RELATIVE, _ZERO = 2e-3, 1e-12
_COUNT = 0.1

# The README first, in a fresh interpreter; the pages share its compiled programs. Each has a folder
# of its own to write into.
RUN = """
import contextlib, io, json, os, sys
printed, place = {}, os.getcwd()
for name, blocks in json.load(sys.stdin).items():
    os.mkdir(os.path.join(place, name))
    os.chdir(os.path.join(place, name))
    with contextlib.redirect_stdout(io.StringIO()) as output:
        namespace = {}
        for block in blocks:
            exec(compile(block, name, "exec"), namespace)
    printed[name] = output.getvalue()
print(json.dumps(printed))
"""


def pages() -> dict[str, dict[str, list[str]]]:
    """The blocks of Python and of text, in order, of every page that has Python in it."""
    paths = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {path.name: BLOCK.findall(path.read_text()) for path in paths}
    sorted_out = {
        name: {kind: [text for k, text in blocks if k == kind] for kind in ("python", "text")}
        for name, blocks in found.items()
    }
    return {name: blocks for name, blocks in sorted_out.items() if blocks["python"]}


def test_there_are_examples():
    names = {"README", "start", "certificate", "outcomes", "tolerances", "descent"}
    assert {f"{name}.md" for name in names} <= pages().keys()
    assert all(blocks["text"] for blocks in pages().values())


@pytest.mark.slow
def test_the_examples_print_what_the_pages_say(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", RUN],
        input=json.dumps({name: blocks["python"] for name, blocks in pages().items()}),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    printed = json.loads(run.stdout)
    for name, blocks in pages().items():
        lines = "".join(blocks["text"]).splitlines(), printed[name].splitlines()
        for told, found in zip_longest(*lines):
            assert told is not None and found is not None, f"{name} prints\n{printed[name]}"
            assert same(told, found), f"{name}:\n{told}\nprinted:\n{found}"


def same(told: str, found: str) -> bool:
    """Whether two lines have the same words, and numbers that agree but for rounding."""
    pairs = zip_longest(NUMBER.findall(told), NUMBER.findall(found))
    words = [" ".join(NUMBER.sub("#", line).split()) for line in (told, found)]
    return words[0] == words[1] and all(close(*pair) for pair in pairs)


def close(told: str, found: str) -> bool:
    relative = _COUNT if told.isdigit() else _RELATIVE
    # The last digit that is printed may be rounded either way.
    return float(told) == pytest.approx(float(found), rel=relative + last_digit(told), abs=_ZERO)


def last_digit(number: str) -> float:
    """One unit of the last digit, relative to the number."""
    digits = re.sub(r"e.*|[+\-.]", "", number).lstrip("0")
    return 1 / int(digits) if digits else 0.0


@pytest.mark.parametrize(
    ("told", "found", "alike"),
    [
        ("margin=0.04914, 221 points", "margin=0.04915, 214 points", True),
        ("margin=0.04914, 221 points", "margin=0.0520, 221 points", False),
        ("margin=0.04914", "smoothed=0.04914", False),
        ("-7.7618957454433355", "-7.7618957454411111", True),
        ("-7.7618957454433355", "7.7618957454433355", False),
        ("error 4.2e-17", "error 1.1e-16", True),
        ("error 4.2e-17", "error 1.1e-06", False),
        ("support 28, at a kink 0", "support 28, at a kink 5", False),
    ],
)
def test_lines_are_compared_number_by_number(told, found, alike):
    assert same(told, found) == alike
