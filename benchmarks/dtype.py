"""Matrix products on this CPU: float32 against bfloat16.

    python benchmarks/dtype.py

Shapes are those of the embedded model's layers, with the 640 tokens of a training step. Times are
CPU milliseconds of one thread, side by side. What `dtype: auto` means follows the kind of
processor (`setbacks/models/hardware.py`), which this measures.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
from attention import in_turns

from setbacks.models.hardware import fast_bfloat16

ROWS = 640
LAYERS = [("q_proj, o_proj", 576, 576), ("gate_proj, up_proj", 576, 1536)]
LAYERS += [("down_proj", 1536, 576)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/dtype.json"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = {
        "amx": torch.cpu._is_amx_tile_supported(),
        "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
        "auto": "bfloat16" if fast_bfloat16() else "float32",
        "products": [product(*layer) for layer in LAYERS],
    }
    print(f"AMX: {data['amx']}; AVX512-BF16: {data['avx512_bf16']}; auto: {data['auto']}\n")
    print("| layer | bfloat16 ms | float32 ms | ratio |")
    print("| --- | ---: | ---: | ---: |")
    for row in data["products"]:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(data, indent=1) + "\n")


def product(name: str, inputs: int, outputs: int) -> dict[str, object]:
    """Time the product of one layer in both formats."""

    def timed(kind: torch.dtype) -> float:
        x, weight = torch.randn(ROWS, inputs).to(kind), torch.randn(outputs, inputs).to(kind)
        torch.nn.functional.linear(x, weight)  # the first product of a shape takes longer
        start = time.process_time()
        for _ in range(10):
            torch.nn.functional.linear(x, weight)
        return (time.process_time() - start) / 10

    row: dict[str, object] = {"layer": name}
    return row | in_turns(
        bfloat16=lambda: timed(torch.bfloat16), float32=lambda: timed(torch.float32)
    )


if __name__ == "__main__":
    main()
