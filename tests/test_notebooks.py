"""The notebooks run from the first cell to the last, and are kept as they should be."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_notebook

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OUTSIDE = re.compile(r"/(?:home|root|work|tmp|Users)/|site-packages|[A-Z]:\\\\")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """Runs a notebook in an empty folder, its kernel the Python of the tests."""
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "1")  # a kernel of the user's of the same name is not taken
    for variable in ("IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    (tmp_path / "empty").mkdir()

    def run(notebook: NotebookNode) -> NotebookNode:
        place = {"metadata": {"path": str(tmp_path / "empty")}}
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", record_timing=False, resources=place)
        return client.execute()

    return run


def outputs(notebook: NotebookNode) -> list[NotebookNode]:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_there_are_two():
    assert [path.stem for path in NOTEBOOKS] == ["fade-in-your-unet", "what-the-gate-sees"]


def test_the_kernel_is_the_python_of_the_tests(execute):
    notebook = execute(new_notebook(cells=[new_code_cell("import sys; print(sys.executable)")]))
    assert outputs(notebook)[0].text.strip() == sys.executable


@pytest.mark.slow
@each
def test_runs_from_the_first_cell_to_the_last(path, execute):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    execute(notebook)
    kinds = [output.output_type for output in outputs(notebook)]
    assert "error" not in kinds
    assert kinds.count("execute_result") == sum(
        output.output_type == "execute_result" for output in outputs(nbformat.read(path, as_version=4))
    )
    errors = [output.text for output in outputs(notebook) if output.get("name") == "stderr"]
    assert errors == []


@each
def test_is_whole_small_and_of_no_machine(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert len(text) <= 400_000
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    assert all(not cell.metadata for cell in notebook.cells)
    words = json.dumps(
        [cell.source for cell in notebook.cells] + [output.get("text", "") for output in outputs(notebook)]
    )
    assert not OUTSIDE.search(words)


@each
def test_is_kept_with_its_results_in_order(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    assert any("image/jpeg" in output.get("data", {}) for output in outputs(notebook))


def test_the_page_names_them_all():
    page = (ROOT / "docs/notebooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(notebooks/[^`]+)`", page, re.MULTILINE) == [
        path.relative_to(ROOT).as_posix() for path in NOTEBOOKS
    ]
