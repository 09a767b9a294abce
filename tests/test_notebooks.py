"""Every notebook is a pair, `.py` and `.ipynb`, that agrees and runs. `pytest -m notebook`.

A notebook that is not small anyway reads the environment variable `GFLOW_SMOKE` and is then small.
"""

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parent.parent / "notebooks"
NAMES = sorted({path.stem for kind in ("*.py", "*.ipynb") for path in FOLDER.glob(kind)})

pytestmark = pytest.mark.notebook


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


def test_there_are_notebooks():
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_pair_agrees(name):
    script = jupytext.read(FOLDER / f"{name}.py", fmt="py:percent")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    assert cells(notebook), "an empty notebook"
    assert cells(script) == cells(notebook), f"run `jupytext --sync notebooks/{name}.py`."


@pytest.mark.parametrize("name", NAMES)
def test_the_stored_outputs_hold_no_error(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GFLOW_SMOKE", "1")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    client = NotebookClient(
        notebook,
        timeout=900,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code and all(cell.execution_count for cell in code if cell.source.strip())
