"""The notebook runs from its first cell to its last, and is kept without outputs."""

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat", reason="notebooks take the `docs` extra")
    return nbformat.read(NOTEBOOK, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_kept_without_outputs(notebook):
    """What a run printed is nobody else's; mistakes least of all."""
    assert all(not cell.outputs and cell.execution_count is None for cell in code(notebook))


@pytest.mark.slow
def test_it_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="notebooks take the `docs` extra")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    resources = {"metadata": {"path": tmp_path}}
    nbclient.NotebookClient(notebook, timeout=1800, resources=resources).execute()
    printed = ["".join(o.get("text", "") for o in cell.outputs if o.get("name") == "stdout")
               for cell in code(notebook)]  # fmt: skip
    assert 'Did you mean "epochs"?' in printed[1]
    assert "'mistake':" in printed[3]
    assert "vanilla-guided" in printed[6]
    assert printed[-1] == "[False, True]\n"
