"""The notebook runs from its first cell to its last, and is kept without outputs."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
CODE = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    """What a run printed is nobody else's; mistakes least of all."""
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_it_runs_in_a_kernel(tmp_path, environment):
    """As Jupyter runs it: a kernel of its own, each cell after the one before."""
    nbclient = pytest.importorskip("nbclient")
    import nbformat
    from jupyter_client import AsyncKernelManager

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # Sockets in a folder, and not ports of the machine, which another test may take meanwhile.
    kernel = AsyncKernelManager(transport="ipc", connection_file=str(tmp_path / "kernel.json"))
    client = nbclient.NotebookClient(
        notebook,
        km=kernel,
        timeout=1500,
        startup_timeout=300,
        resources={"metadata": {"path": str(tmp_path)}},
    )
    # Without `cleanup_kc`, a kernel of ours outlives its notebook, with a model in its memory.
    client.execute(env=environment | {"TMPDIR": str(tmp_path)}, cleanup_kc=True)
    printed = "".join(
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.get("name") == "stdout"
    )
    assert 'Did you mean "train.epochs"?' in printed
    assert "'mistake':" in printed
    assert "\nmistake_distillation " in printed
    assert printed.endswith("[False, True]\n")
