"""What distilabel adds to each record, in a separate environment: started by `overhead.py --other`.

    PYTHON benchmarks/overhead_elsewhere.py PROMPTS.jsonl

The same prompts, and an LLM that gives every prompt the same answer, in a pipeline of one
`TextGeneration` step with batches of 128. Each batch goes to the step's process through queues. The
answers, with their messages, are written as one Parquet file per batch, without fsync, and all
again at the end. CPU time is that of all processes, minus that of a pipeline of ten prompts, which
is the cost of starting it.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distilabel.models.llms.base import LLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration

SAID = "<a response> " + "word " * 60  # as in overhead.py
WHO = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


class Null(LLM):
    """An LLM that costs nothing."""

    @property
    def model_name(self) -> str:
        return "null"

    def generate(self, inputs: list[Any], num_generations: int = 1) -> list[Any]:
        """The same to everybody."""
        tokens = {"input_tokens": [50], "output_tokens": [60]}
        return [{"generations": [SAID], "statistics": tokens} for _ in inputs]


def work(rows: list[dict[str, str]], place: str) -> tuple[float, float]:
    """Run the pipeline; return the CPU seconds of all its processes and those on the clock."""
    cpu, start = used(), time.perf_counter()
    with Pipeline(name="overhead", cache_dir=place) as pipeline:
        load = LoadDataFromDicts(data=rows, batch_size=128)
        load >> TextGeneration(llm=Null(), input_batch_size=128)
    answers = pipeline.run(use_cache=False)["default"]["train"]
    took = used() - cpu, time.perf_counter() - start
    assert list(answers["generation"]) == [SAID] * len(rows)
    return took


def used() -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, WHO))


def main() -> None:
    """Run it twice; print what a record takes."""
    rows = []
    for line in Path(sys.argv[1]).read_text(encoding="utf-8").splitlines():
        rows.append({"instruction": json.loads(line)["text"]})
    with tempfile.TemporaryDirectory() as place:
        few, start = work(rows[:10], os.path.join(place, "few"))
        many, seconds = work(rows, os.path.join(place, "many"))
    peak = sum(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    result = {
        "records": len(rows),
        "microseconds": round(1e6 * (many - few) / len(rows), 1),
        "wall_seconds": round(seconds - start, 1),
        "start_seconds": round(start, 1),
        "peak_mb": round(peak / 1024),
        "load": round(os.getloadavg()[0], 1),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
