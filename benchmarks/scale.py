"""Throughput with one worker and with two, and a model's prediction for more.

    OMP_NUM_THREADS=1 python benchmarks/scale.py

The `ray` engine answers the same instructions with one worker and with two, in turns; each worker
has one thread. The time of a batch is measured by sending single batches to one worker. The time
of the driver is its CPU time, plus what a stage adds to each record (results/overhead.json).

The model has no free parameter. Each worker has room for two batches. Batches are sent in groups of
four per worker. Two groups are in flight; the driver processes them in order and sends another
group before each. Two real workers check the model: they are slower than predicted because they
share memory and cores. Machines with one GPU each do not, so the model ignores this. It is applied
to 8 and 64 workers, with batch times as measured here and as on a GPU, for a long work list and a
short one.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generate import instructions

from setbacks.engines import in_turn
from setbacks.engines.cluster import DEEP, SHARE, Cluster
from setbacks.recipe import Engine, Sampling
from setbacks.records import Request

GROUPS = 16  # in the modeled work list, for any number of workers
ON_GPU = 128  # responses in a batch there
SHORT = 10_000  # prompts of a work list that keeps many workers waiting


def opened(workers: int, batch: int, warm: Request) -> Cluster:
    """Return a cluster engine whose workers have loaded the model."""
    spec = Engine(engine="ray", batch_size=batch, device="cpu", ray={"workers": workers})
    engine = Cluster(spec)
    engine.generate([warm] * (workers * batch), Sampling(max_new_tokens=1))  # a batch for each
    return engine


def throughput(
    engine: Cluster, requests: Sequence[Request], sampling: Sampling
) -> dict[str, float]:
    """Generate for the whole list; return seconds on the clock, those of the driver, and tokens."""
    start, cpu, tokens = time.perf_counter(), time.process_time(), 0
    groups = ([requests[i] for i in group] for group in engine.plan(requests))
    for completions in in_turn(engine, groups, sampling):
        tokens += sum(one.tokens for one in completions)
    cpu = time.process_time() - cpu
    return {"seconds": time.perf_counter() - start, "driver": cpu, "tokens": tokens}


def singly(
    engine: Cluster, requests: Sequence[Request], sampling: Sampling, size: int
) -> list[float]:
    """Return the seconds of each batch, sent one at a time, in the order of the plan."""
    order = [index for group in engine.plan(requests) for index in group]
    seconds = []
    for first in range(0, len(order), size):
        start = time.perf_counter()
        engine.generate([requests[i] for i in order[first : first + size]], sampling)
        seconds.append(time.perf_counter() - start)
    return seconds


def predicted(batches: Sequence[float], driver: float, workers: int) -> float:
    """Return the predicted seconds of a work list.

    Args:
        batches: seconds of each batch on a worker, in the order of the plan.
        driver: seconds that the driver adds to each batch.
        workers: number of workers.
    """
    wide = workers * SHARE
    groups = [batches[start : start + wide] for start in range(0, len(batches), wide)]
    now, free, done = 0.0, [0.0] * workers, []  # of the driver, the workers, and each group
    slots = [(0.0, worker) for worker in range(workers)] * DEEP  # since when each has room
    for number, group in enumerate(groups):
        for sent in groups[len(done) : number + Cluster.ahead + 1]:
            for batch in sent:
                slots.sort()
                _, worker = slots[0]
                free[worker] = max(free[worker], now) + batch
                slots[0] = (free[worker], worker)
            done.append(max(free))
        now = max(now, done[number]) + driver * len(group)
    return now


def speedup(batches: Sequence[float], driver: float, workers: int, number: int) -> float:
    """Return the predicted speedup over one worker, on a list of `number` batches."""
    stretched = [batches[index * len(batches) // number] for index in range(number)]
    return predicted(stretched, driver, 1) / predicted(stretched, driver, workers)


def main() -> None:
    """Measure, apply the model, print one table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--overhead", type=Path, default=Path("benchmarks/results/overhead.json"))
    parser.add_argument(
        "--gpu-seconds", type=float, default=0.5, help=f"assumed, of {ON_GPU} responses on a GPU"
    )
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/scale.json"))
    arguments = parser.parse_args()
    if os.environ.get("OMP_NUM_THREADS") != "1":
        raise SystemExit("set OMP_NUM_THREADS=1: Ray gives a single worker all cores otherwise")
    load = os.getloadavg()[0]
    requests = [Request(text, seed=0) for text in instructions(None, arguments.prompts)]
    sampling = Sampling(max_new_tokens=arguments.new_tokens)

    turns: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    batches: list[float] = []
    for turn in range(arguments.turns):
        for workers in turns:
            engine = opened(workers, arguments.batch, requests[0])
            if workers == 1 and turn == 0:
                batches = singly(engine, requests, sampling, arguments.batch)
            turns[workers].append(throughput(engine, requests, sampling))
            print(f"{workers} worker(s): {turns[workers][-1]}", flush=True)
            del engine  # and its workers with it

    stage = json.loads(arguments.overhead.read_text(encoding="utf-8"))["setbacks"][-1][
        "microseconds"
    ]
    sent = statistics.median(one["driver"] for one in turns[1]) / len(batches)
    driver = sent + 1e-6 * stage * arguments.batch
    engine = opened(1, ON_GPU, requests[0])
    sent = throughput(engine, [requests[0]] * ON_GPU, Sampling(max_new_tokens=1))["driver"]
    gpu_driver = sent + 1e-6 * stage * ON_GPU
    mean = statistics.mean(batches)
    gpu = [batch * arguments.gpu_seconds / mean for batch in batches]  # as uneven as here
    seconds = {
        n: statistics.median(one["seconds"] for one in result) for n, result in turns.items()
    }
    rows: list[dict[str, Any]] = []
    for workers in (1, 2, 8, 64):
        row: dict[str, Any] = {"workers": workers}
        if workers in turns:
            tokens = turns[workers][0]["tokens"]
            row["tokens_per_second"] = round(tokens / seconds[workers], 1)
            row["measured"] = round(seconds[1] / seconds[workers], 2)
            row["predicted_here"] = round(
                predicted(batches, driver, 1) / predicted(batches, driver, workers), 2
            )
        long = GROUPS * SHARE * workers
        row["model"] = round(speedup(batches, driver, workers, long), 2)
        row["model_gpu"] = round(speedup(gpu, gpu_driver, workers, long), 2)
        row["model_gpu_short"] = round(speedup(gpu, gpu_driver, workers, SHORT // ON_GPU), 2)
        rows.append(row)
        print(row)
    result = {
        "prompts": len(requests),
        "batch": arguments.batch,
        "new_tokens": arguments.new_tokens,
        "turns": arguments.turns,
        "batch_seconds": [round(mean, 2), round(min(batches), 2), round(max(batches), 2)],
        "driver_ms_a_batch": round(1e3 * driver, 1),
        "gpu_batch": ON_GPU,
        "gpu_seconds": arguments.gpu_seconds,
        "gpu_driver_ms_a_batch": round(1e3 * gpu_driver, 1),
        "groups": GROUPS,
        "short": SHORT,
        "cores": os.cpu_count(),
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
        "rows": rows,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
