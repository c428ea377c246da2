"""How long startup takes: an import, `--help`, and the first record of the quickstart.

    python benchmarks/startup.py

Each runs in a separate process, several times; the results are medians. The first record is that of
`setbacks run` with the model already converted: its first line says that work begins, and then a
batch of records is written at once. The startup time of Python itself is measured, too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

SETBACKS = [sys.executable, "-m", "setbacks"]
SHORT = {
    "python": [sys.executable, "-c", "pass"],
    "import setbacks": [sys.executable, "-c", "import setbacks"],
    "setbacks --help": [*SETBACKS, "--help"],
}


class Took(NamedTuple):
    """Seconds on the clock, and of CPU."""

    wall: float
    cpu: float


def whole(command: list[str]) -> Took:
    """Run a command to its end."""
    start, cpu = time.perf_counter(), used()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Took(time.perf_counter() - start, used() - cpu)


def used() -> float:
    """CPU seconds of the processes that were started and have ended."""
    use = resource.getrusage(resource.RUSAGE_CHILDREN)
    return use.ru_utime + use.ru_stime


def first_record() -> tuple[float, float]:
    """Start the quickstart; return the seconds until it says so, and until there is a record."""
    with tempfile.TemporaryDirectory() as place:
        records = Path(place, "run", "mistakes.jsonl")
        start = time.perf_counter()
        run = subprocess.Popen(
            [*SETBACKS, "run", "--out", str(records.parent)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert run.stderr is not None
        for line in run.stderr:
            if ": 0/" in line:
                break
        begun = time.perf_counter() - start
        while run.poll() is None and not (records.exists() and records.stat().st_size):
            time.sleep(0.02)
        there = time.perf_counter() - start
        if run.poll() is not None:
            raise SystemExit(f"the quickstart ended before its first record:\n{run.stderr.read()}")
        run.send_signal(signal.SIGINT)
        run.communicate()
    return begun, there


def main() -> None:
    """Time it, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=9, help="of each short command")
    parser.add_argument("--quickstarts", type=int, default=3)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/startup.json"))
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(what: str, runs: int, wall: float, cpu: float | None = None) -> None:
        row = {"what": what, "runs": runs, "seconds": round(wall, 2)}
        rows.append(row | {"cpu_seconds": None if cpu is None else round(cpu, 2)})
        print(rows[-1], flush=True)

    for what, command in SHORT.items():
        whole(command)  # brings its files into memory
        took = [whole(command) for _ in range(arguments.runs)]
        wall, cpu = map(statistics.median, zip(*took, strict=True))
        add(what, arguments.runs, wall, cpu)
    if arguments.quickstarts:
        times = [first_record() for _ in range(arguments.quickstarts)]
        begun, there = map(statistics.median, zip(*times, strict=True))
        add("quickstart: work begins", arguments.quickstarts, begun)
        add("quickstart: first records", arguments.quickstarts, there)
    results: dict[str, Any] = {"threads": os.environ.get("OMP_NUM_THREADS", "all"), "rows": rows}
    results["load"] = round(os.getloadavg()[0], 1)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
