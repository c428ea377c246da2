"""LoRA's linear layers on the CPU: PEFT's forward pass against one function of autograd.

    python benchmarks/lora_linear.py

Shapes are the embedded model's: each kind of its layers, and a step of the whole model with 8 rows
of 80 tokens, half of which are learned. Both are forward and backward; the adapter is in float32.
Times are CPU milliseconds of one thread, side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from attention import in_turns
from peft import LoraConfig, get_peft_model

from setbacks.recipe import Engine, Recipe
from setbacks.training import learner
from setbacks.training.lora_linear import fuse_lora
from setbacks.training.predictions import predictions

ROWS, LENGTH = 8, 80
LAYERS = [("q_proj, o_proj", 576, 576), ("k_proj, v_proj", 576, 192)]
LAYERS += [("gate_proj, up_proj", 576, 1536), ("down_proj", 1536, 576)]
CONFIG = {"r": 16, "lora_alpha": 32}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/lora_linear.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for dtype in ("bfloat16", "float32"):
        rows += [layer(dtype, *case) for case in LAYERS] + [step(dtype)]
    print("| dtype | what | PEFT ms | one function ms | ratio |")
    print("| --- | --- | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def layer(dtype: str, name: str, inputs: int, outputs: int) -> dict[str, object]:
    """Time both ways of one layer, forward and backward."""
    kind = getattr(torch, dtype)
    base = torch.nn.Sequential(torch.nn.Linear(inputs, outputs, bias=False)).to(kind)
    model = get_peft_model(base, LoraConfig(target_modules=["0"], **CONFIG))
    x = torch.randn(ROWS, LENGTH, inputs, dtype=kind, requires_grad=True)
    slope = torch.randn(ROWS, LENGTH, outputs, dtype=kind)
    return side_by_side(dtype, name, model, lambda: model(x), slope, 20)


def step(dtype: str) -> dict[str, object]:
    """Time both ways of a training step of the embedded model."""
    model = get_peft_model(*learner(Recipe(model=Engine(dtype=dtype, device="cpu"))))
    ids = torch.randint(1000, 9000, (ROWS, LENGTH))
    learned = torch.arange(LENGTH).expand(ROWS, -1) >= LENGTH // 2

    def loss() -> torch.Tensor:
        logits = predictions(model, ids, torch.ones_like(ids), learned)
        return torch.nn.functional.cross_entropy(logits, ids[learned])

    return side_by_side(dtype, "training step", model, loss, None, 1)


def side_by_side(
    dtype: str,
    name: str,
    model: Any,
    forward: Callable[[], torch.Tensor],
    slope: torch.Tensor | None,
    times: int,
) -> dict[str, object]:
    """Time PEFT's way and ours."""

    def timed() -> float:
        start = time.process_time()
        for _ in range(times):
            with torch.autocast("cpu", enabled=dtype == "bfloat16"):
                out = forward()
            out.backward(slope)
        return (time.process_time() - start) / times

    def peft() -> float:
        for module in model.modules():
            if hasattr(module, "lora_A"):
                vars(module).pop("forward", None)
        return timed()

    def one() -> float:
        fuse_lora(model)
        return timed()

    peft(), one()  # the first products of a shape take longer
    row: dict[str, object] = {"dtype": dtype, "what": name}
    return row | in_turns(peft=peft, one=one)


if __name__ == "__main__":
    main()
