"""A batch's common prefix in training on a CPU: read in every row, against read once.

    python benchmarks/prefix.py

A training step of the embedded model, forward and backward: 8 rows of 80 tokens, the second half of
which is learned. 31 tokens are the same in all rows, as many as SmolLM2's system prompt takes.
Times are CPU milliseconds of one thread, side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from attention import in_turns
from peft import get_peft_model

from setbacks.recipe import Engine, Recipe
from setbacks.training import learner
from setbacks.training import predictions as module
from setbacks.training.lora_linear import fuse_lora

ROWS, LENGTH, PREFIX = 8, 80, 31


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/prefix.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [step(dtype) for dtype in ("bfloat16", "float32")]
    print("| dtype | every row ms | once ms | ratio | gradients differ by |")
    print("| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def step(dtype: str) -> dict[str, object]:
    """Time both ways of a step, and compare their gradients."""
    model = get_peft_model(*learner(Recipe(model=Engine(dtype=dtype, device="cpu"))))
    fuse_lora(model)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.01)
    ids = torch.randint(1000, 9000, (ROWS, LENGTH))
    ids[:, :PREFIX] = ids[0, :PREFIX]
    learned = torch.arange(LENGTH).expand(ROWS, -1) >= LENGTH // 2
    find = module._layout

    def timed(once: bool) -> float:
        module._layout = find if once else lambda *_: None
        model.zero_grad()
        start = time.process_time()
        with torch.autocast("cpu", enabled=dtype == "bfloat16"):
            logits = module.predictions(model, ids, torch.ones_like(ids), learned)
        torch.nn.functional.cross_entropy(logits, ids[learned]).backward()
        module._layout = find
        return time.process_time() - start

    def gradients(once: bool) -> torch.Tensor:
        timed(once)
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    every, one = gradients(False), gradients(True)
    off = float((every - one).norm() / every.norm())
    row: dict[str, object] = {"dtype": dtype}
    times = in_turns(every=lambda: timed(False), once=lambda: timed(True))
    return row | times | {"off": f"{off:.1g}"}


if __name__ == "__main__":
    main()
