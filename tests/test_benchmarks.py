"""What benchmarks share: no result is lost once computed, and each is where a reader looks."""

import ast
import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def common():
    """`benchmarks/_common.py`, which lies beside the package."""
    spec = importlib.util.spec_from_file_location("_common", SCRIPTS / "_common.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_folder_of_the_record_is_there_before_anything_is_computed(
    common, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "new" / "folder" / "record.json"
    monkeypatch.setattr(sys, "argv", ["name.py", "--smoke", "--output", str(path)])
    drawn = []

    def measure(smoke):
        assert path.parent.is_dir()
        return {"smoke": smoke}

    def draw(results, figure):
        assert path.is_file()
        drawn.append((results, figure))

    common.run_benchmark("A benchmark.\n\nMore.", measure, draw)
    record = json.loads(path.read_text())
    assert record["benchmark"] == "A benchmark." and record["results"] == {"smoke": True}
    assert json.loads(capsys.readouterr().out) == record
    assert drawn == [({"smoke": True}, path.with_suffix(".png"))]


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("results/*.json")), ids=lambda path: path.stem)
def test_a_record_that_is_kept_is_of_a_full_run(path):
    record = json.loads(path.read_text())
    assert not record["smoke"] and record["environment"]["float64"]
    # A second record, of other hardware, is named after the script as well.
    script = SCRIPTS / f"{path.stem.removesuffix('_gpu')}.py"
    assert record["benchmark"] in script.read_text()


def test_every_benchmark_answers_a_question_of_the_readme():
    names = sorted(path.name for path in SCRIPTS.glob("[!_]*.py"))
    text = (SCRIPTS / "README.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("| ") and ".py`" in line]
    assert names and all(sum(f"`{name}`" in line for line in table) == 1 for name in names)


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.py")), ids=lambda path: path.stem)
def test_standard_output_is_the_record_alone(path):
    """`run_benchmark` prints it; whatever else is printed says where to."""
    printed = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == "print"
    ]
    elsewhere = [node for node in printed if any(k.arg == "file" for k in node.keywords)]
    assert len(printed) - len(elsewhere) == (path.stem == "_common")
