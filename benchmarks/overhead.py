"""What setbacks adds to each record: a whole stage with an engine that answers immediately.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --other PYTHON    # one that has distilabel

The stage `respond` reads prompts from a file, plans batches of 128, calls the engine, and writes
each batch to disk (fsync) before the next. The engine gives the same answer to every prompt, so all
the time is overhead. Each size runs in a separate process, with its peak memory. The benchmark
counts CPU time and the time of fsync, which depends on the disk and its other users. It also times
reading the records in the next stage, and running the finished command again.

With --other, the same prompts and answers go through distilabel, with the Python PYTHON, by
`overhead_elsewhere.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from setbacks.engines import Engine, by_length
from setbacks.recipe import Recipe
from setbacks.records import Completion, Request, Response
from setbacks.runs import session
from setbacks.runs.folder import RunFolder
from setbacks.runs.session import Session
from setbacks.stages.respond import respond

SAID = "<a response> " + "word " * 60


class Null(Engine):
    """An engine that costs nothing."""

    name = "null"

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Batches as the local engine plans them."""
        return by_length([request.size for request in requests], 128)

    def generate(
        self, requests: Sequence[Request], sampling: Any, adapter: Path | None = None
    ) -> list[Completion]:
        """The same to everybody."""
        return [Completion(SAID, "stop", 50, 60)] * len(requests)


def prompts(path: Path, number: int) -> None:
    """Write prompts of the usual, uneven size, with neutral text."""
    with path.open("w", encoding="utf-8") as file:
        for n in range(number):
            text = f"<instruction {n}> " + "word " * (n % 40)
            file.write(json.dumps({"text": text}) + "\n")


def stage(number: int) -> dict[str, Any]:
    """Run the stage in this process; return the seconds, and the peak memory in MB."""
    session.open_engine = lambda *_: Null()  # type: ignore[assignment]
    synced = 0.0
    sync = os.fsync

    def timed(descriptor: int) -> None:
        nonlocal synced
        start = time.perf_counter()
        sync(descriptor)
        synced += time.perf_counter() - start

    with tempfile.TemporaryDirectory() as place:
        prompts(few := Path(place, "few.jsonl"), 10)
        prompts(many := Path(place, "many.jsonl"), number)
        work(few, Path(place, "few"))  # imports what is imported late
        rest = peak()
        os.fsync = timed
        cpu, start = time.process_time(), time.perf_counter()
        records = work(many, Path(place, "many"))
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
        os.fsync = sync
        most, start = peak(), time.process_time()
        assert sum(record.finish == "stop" for record in records) == number
        read = time.process_time() - start
        start = time.process_time()
        assert len(work(many, Path(place, "many"))) == number
        again = time.process_time() - start
    return {
        "records": number,
        "microseconds": round(1e6 * (cpu + synced) / number, 1),
        "of_it_fsync": round(1e6 * synced / number, 1),
        "read_back": round(1e6 * read / number, 1),
        "again": round(1e6 * again / number, 1),
        "wall_seconds": round(seconds, 1),
        "rest_mb": round(rest),
        "peak_mb": round(most),
        "kb_a_record": round((most - rest) * 1024 / number, 2),
        "load": round(os.getloadavg()[0], 1),
    }


def work(prompts: Path, folder: Path) -> Sequence[Response]:
    """Run the stage in a new folder; return its records."""
    suite = {"name": "s", "kind": "harmful", "sources": [str(prompts)]}
    recipe = {
        "evaluate": [{"name": "arm", "model": {}}],
        "respond": {"guidance": False, "suites": [suite]},
    }
    with RunFolder(folder, Recipe.model_validate(recipe)) as opened, Session(opened) as run:
        return respond(run)["arm"]


def peak() -> float:
    """Peak memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Measure, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--other", metavar="PYTHON", help="one that has distilabel")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/overhead.json"))
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(stage(arguments.one)))
        return
    results: dict[str, Any] = {"setbacks": [], "distilabel": []}
    for number in arguments.records:
        results["setbacks"].append(last_line(sys.executable, __file__, "--one", str(number)))
    if arguments.other:
        elsewhere = str(Path(__file__).with_name("overhead_elsewhere.py"))
        with tempfile.TemporaryDirectory() as place:
            prompts(file := Path(place, "prompts.jsonl"), min(arguments.records))
            results["distilabel"].append(last_line(arguments.other, elsewhere, str(file)))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=1) + "\n")


def last_line(*command: str) -> dict[str, Any]:
    """Run a command; show and return what it says last."""
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    printed: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    print(printed, flush=True)
    return printed


if __name__ == "__main__":
    main()
