"""Attention on the CPU: PyTorch's fused kernel against two matrix products.

    python benchmarks/attention.py

Shapes are the embedded model's: a step of decoding with 128 rows, and a training step, forward and
backward, with 8 rows. Times are CPU milliseconds of one thread, side by side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from setbacks.models.attention import attend_by_products

CASES = [("decoding", 128, 1, keys) for keys in (150, 300)]
CASES += [("training", 8, length, length) for length in (64, 128, 256, 512)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/attention.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(dtype, *case) for dtype in ("bfloat16", "float32") for case in CASES]
    print("| step | dtype | queries | keys | fused ms | products ms | ratio |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(dtype: str, step: str, rows: int, queries: int, keys: int) -> dict[str, object]:
    """Time both ways of one layer."""
    config = LlamaConfig(
        vocab_size=8, hidden_size=576, num_hidden_layers=1, num_attention_heads=9,
        num_key_value_heads=3, intermediate_size=8, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    attend_by_products(model, queries)
    layer = model.model.layers[0].self_attn
    trained, kind = step == "training", getattr(torch, dtype)

    def random(heads: int, length: int) -> torch.Tensor:
        return torch.randn(rows, heads, length, 64, dtype=kind, requires_grad=trained)

    query, key, value = random(9, queries), random(3, keys), random(3, keys)
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    mask = mask.repeat(rows, 1, 1, 1)
    mask[: rows // 2, ..., keys - 20 :] = False  # padding
    mask[..., 0] = True

    def timed(attend: Callable[..., Any]) -> float:
        times = max(1, 100 // queries)
        start = time.process_time()
        for _ in range(times):
            mixed, _weights = attend(layer, query, key, value, mask, scaling=0.125)
            if trained:
                mixed.sum().backward()
        return (time.process_time() - start) / times

    products = AttentionInterface()["sdpa"]
    case: dict[str, object] = {"step": step, "dtype": dtype, "queries": queries, "keys": keys}
    return case | in_turns(
        fused=lambda: timed(sdpa_attention_forward), products=lambda: timed(products)
    )


def in_turns(**two: Callable[[], float]) -> dict[str, float]:
    """Return the median milliseconds of two ways by their names, and the first by the second.

    They take turns, so that a slow moment of the machine hits both.

    Args:
        two: each runs one way, and returns its seconds.
    """
    turns = [[timed() for timed in two.values()] for _ in range(9)]
    one, other = map(statistics.median, zip(*turns, strict=True))
    rounded = {name: round(of * 1e3, 2) for name, of in zip(two, (one, other), strict=True)}
    return rounded | {"ratio": round(one / other, 2)}


if __name__ == "__main__":
    main()
