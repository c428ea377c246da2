"""Which architectures work, and for what: the tests of the zoo, as one table.

    python benchmarks/architectures.py
    python benchmarks/architectures.py -n 2 -k "gemma or qwen"    # options of pytest

Runs `tests/test_zoo.py` on tiny random models of every architecture (`tests/zoo.py`), on the CPU in
float32. A cell is the result of a test: "pass", a note of what the engine did instead, or the
error. `docs/generate.py` copies the table to docs/own-model.md. Exits 1 if anything fails.
"""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "architectures.json"
# Each column is a test of tests/test_zoo.py.
COLUMNS = {
    "text": "test_greedy_text_is_that_of_a_plain_forward",
    "choose": "test_a_choice_is_that_of_a_plain_forward",
    "replayed steps": "test_replayed_steps_give_the_text_of_a_plain_forward",
    "run": "test_a_run_of_two_steps",
    "merge": "test_merged_is_beside",
    "export": "test_an_export_writes_what_the_run_wrote",
    "resume": "test_a_run_that_is_killed_ends_with_the_same_bytes",
    "refused": "test_what_would_be_wrong_is_refused_in_one_line",
}


class Matrix:
    """A pytest plugin that stores the result of each test, by architecture and column."""

    def __init__(self) -> None:
        self.cells: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note the outcome of one part of a test."""
        test, _, architecture = report.location[2].rstrip("]").partition("[")
        column = next((name for name, names in COLUMNS.items() if names == test), None)
        if column is None or (report.passed and report.when != "call"):
            return
        self.cells.setdefault(architecture, {})[column] = outcome(report)


def outcome(report: pytest.TestReport) -> str:
    """Describe the result of a test in a few words."""
    notes = dict(report.user_properties)
    if report.passed:
        return notes.get("cell", "pass")
    crash = getattr(report.longrepr, "reprcrash", None)
    message = crash.message if crash else str(report.longrepr)
    message = re.sub(r"/\S*/pytest-\S*?/run\d*/", "", message)  # the run's temporary folder
    return f"FAILED: {' '.join(message.split())[:200]}"


def main(options: list[str]) -> int:
    """Run the tests, print one table, write JSON; return the exit code."""
    sys.path.insert(0, str(ROOT / "tests"))
    import zoo

    matrix = Matrix()
    tests = [str(ROOT / "tests" / "test_zoo.py"), "-m", "slow or long", "--tb=no"]
    status = pytest.main([*tests, *options], plugins=[matrix])
    rows = [
        {"architecture": name, "kind": model.kind, **matrix.cells[name]}
        for name, model in zoo.ZOO.items()
        if name in matrix.cells
    ]
    print("| " + " | ".join(["architecture", *COLUMNS]) + " |")
    print("|" + " --- |" * (1 + len(COLUMNS)))
    for row in rows:
        print("| " + " | ".join(row.get(name, "-") for name in ("architecture", *COLUMNS)) + " |")
    libraries = ("torch", "transformers", "peft", "trl")
    results: dict[str, Any] = {
        "versions": {name: version(name) for name in libraries},
        "rows": rows,
    }
    if not options:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
