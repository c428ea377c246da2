"""What it costs to resume in a large folder: open it, check every record and plan, before any work.

    python benchmarks/resume.py --records 1000000

Writes the responses of one arm as a run would, except for the last batch, then times a resumed run
until it calls the engine for that batch. Loading libraries, the model and the prompts is not
included, since every start does it, resumed or not (see `startup.py` and `overhead.py`).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from setbacks.engines import by_length
from setbacks.recipe import Recipe
from setbacks.records import Response, digest
from setbacks.runs.folder import RunFolder


def main() -> None:
    """Time it, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/resume.json"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "run")
        records = [response(number) for number in range(arguments.records)]
        plan = by_length([len(record.instruction) for record in records], 128)
        batches = [[records[index] for index in batch] for batch in plan]
        with RunFolder(folder, Recipe()) as run:
            journal = run.journal("responses/vanilla.jsonl", Response)
            for batch in journal.pending(batches[:-1]):
                journal.commit(batch, batch)
        size = (folder / "responses/vanilla.jsonl").stat().st_size
        seconds = min(resume(folder, batches) for _ in range(3))
    row = {
        "records": arguments.records,
        "megabytes": round(size / 1e6, 1),
        "seconds": round(seconds, 2),
    }
    print("| records | file | until work resumes |\n| ---: | ---: | ---: |")
    print(f"| {arguments.records:,} | {row['megabytes']} MB | {row['seconds']} s |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(row, indent=1) + "\n")


def response(number: int) -> Response:
    """A record of the usual size, with neutral text."""
    text = f"<instruction {number}> " + "word " * (number % 40)
    return Response(
        id=digest(number),
        arm="vanilla",
        suite="harmful",
        kind="harmful",
        instruction_id=digest("instruction", number),
        instruction=text,
        reference=None,
        category="none",
        language="en",
        guided=False,
        text="<a response> " + "word " * 60,
        finish="stop",
        prompt_tokens=50,
        tokens=60,
        model="none",
    )


def resume(folder: Path, batches: list[list[Response]]) -> float:
    """Open the folder and walk through the plan until there is work; return the seconds."""
    start = time.perf_counter()
    with RunFolder(folder) as run:
        by_length([len(record.instruction) for batch in batches for record in batch], 128)
        journal = run.journal("responses/vanilla.jsonl", Response)
        if not journal.pending(batches):
            raise SystemExit("there was nothing left to do")
        return time.perf_counter() - start


if __name__ == "__main__":
    main()
