"""The README's Python examples, in a fresh interpreter, print what the README says."""

import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PRINTED = re.findall(r"^```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE)

NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?")

# Rounding, and the number of steps, depend on the versions and on the processor. A step may make an
# error of 1e-8, and what is zero but for rounding is as likely 1e-16 as 1e-17.
_RELATIVE, _ZERO = 2e-3, 1e-12
_COUNT = 0.1


def test_there_are_examples():
    assert EXAMPLES
    assert PRINTED


@pytest.mark.slow
def test_the_examples_print_what_the_readme_says(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "JAX_ENABLE_X64"}
    command = [sys.executable, "-W", "error", "-c", "\n".join(EXAMPLES)]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    for told, found in zip_longest("".join(PRINTED).splitlines(), run.stdout.splitlines()):
        assert told is not None and found is not None, run.stdout
        assert same(told, found), f"README.md:\n{told}\nprinted:\n{found}"


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
