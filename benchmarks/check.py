"""Check that nothing has become slower: one short run, against bounds that only a fault exceeds.

    python benchmarks/check.py

Compares greedy answers of the local engine with `model.generate`, on the same batches, in turns,
and measures what a stage adds to a record if the engine answers immediately. All times are CPU
times. Takes under two minutes on two cores. Exits 1 if a bound is exceeded.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from generate import generated, instructions, ours, rounds

from setbacks.models.loading import load_model, load_tokenizer
from setbacks.recipe import Engine

FASTER = 1.0  # at least so many times the tokens of plain `generate` a CPU second
OVERHEAD = 200.0  # at most so many microseconds of CPU a record


def main() -> int:
    """Measure, print the results, and return the exit status."""
    torch.set_num_threads(1)
    spec, texts = Engine(), instructions(None, 32)
    plain, tokenizer = load_model(spec).eval(), load_tokenizer(spec)
    turns = rounds(
        lambda: generated(plain, tokenizer, texts, len(texts), 32),
        lambda: ours(spec, texts, 32),
        times=3,
    )
    ratio = statistics.median(theirs / own for theirs, own in turns)
    print(f"generate: {ratio:.2f} times plain generate (bound: {FASTER})")

    script = Path(__file__).with_name("overhead.py")
    command = [sys.executable, str(script), "--one", "5000"]
    ran = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    measured = json.loads(ran.stdout.splitlines()[-1])
    cpu = measured["microseconds"] - measured["of_it_fsync"]
    print(f"overhead: {cpu:.0f} microseconds of CPU a record (bound: {OVERHEAD:.0f})")
    return int(ratio < FASTER or cpu > OVERHEAD)


if __name__ == "__main__":
    raise SystemExit(main())
