"""The notebook's cells run from the first to the last, and it is kept without outputs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "quickstart.ipynb"
CODE = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    """What a run printed is nobody else's; mistakes least of all."""
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in CODE)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_its_cells_run(tmp_path, environment):
    """As a script, in a process of its own: no cell needs more than Python."""
    script = tmp_path / "cells.py"
    script.write_text("\n\n".join("".join(cell["source"]) for cell in CODE))
    ran = subprocess.run(
        [sys.executable, script],
        cwd=tmp_path,
        env=environment | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert 'Did you mean "epochs"?' in ran.stdout
    assert "'mistake':" in ran.stdout
    assert "mistake_analysis-guided" in ran.stdout
    assert ran.stdout.endswith("[False, True]\n")
