"""The README's Python examples, in a fresh interpreter, print what the README says."""

import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest
from _printed import same

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
PRINTED = re.findall(r"^```text\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


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
