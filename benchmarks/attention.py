"""One decoding step of attention on the CPU: PyTorch's fused kernel against two matrix products.

    python benchmarks/attention.py

Shapes are the embedded model's, for 128 rows. Times are CPU seconds of one thread, side by side.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/attention.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(d, n) for d in ("bfloat16", "float32") for n in (150, 300)]
    print("| dtype | keys | fused ms | products ms | ratio |\n| --- | ---: | ---: | ---: | ---: |")
    for row in rows:
        print("| {dtype} | {keys} | {fused} | {products} | {ratio} |".format(**row))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


def measure(dtype: str, keys: int) -> dict[str, object]:
    kind = getattr(torch, dtype)
    query = torch.randn(128, 3, 3, 64, dtype=kind)  # rows, key heads, queries that share one, width
    key, value = (torch.randn(128, 3, keys, 64, dtype=kind) for _ in range(2))
    mask = torch.ones(128, 1, 1, keys, dtype=torch.bool)
    mask[..., :20] = False

    def fused() -> None:
        torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)

    def products() -> None:
        scores = (query @ key.transpose(2, 3)).float() * 0.125
        scores.masked_fill(~mask, float("-inf")).softmax(dim=-1).to(kind) @ value

    # In turns, so that a slow moment of the machine hits both.
    times = [(cpu(fused), cpu(products)) for _ in range(5)]
    one, other = (sorted(column)[2] for column in zip(*times, strict=True))
    return {
        "dtype": dtype,
        "keys": keys,
        "fused": round(one * 1e3, 2),
        "products": round(other * 1e3, 2),
        "ratio": round(one / other, 2),
    }


def cpu(step: Callable[[], None], times: int = 20) -> float:
    start = time.process_time()
    for _ in range(times):
        step()
    return (time.process_time() - start) / times


if __name__ == "__main__":
    main()
