"""Another generator, in a separate environment, started by `generate.py --other`.

    ctranslate2   MODEL is a folder that `ct2-transformers-converter --model FOLDER` wrote
    vllm          MODEL is a folder for transformers

Reads batches of prompts as JSON lines, {"prompts": [[id, ...], ...], "new_tokens": 96, "stops":
[id, ...]}, and writes the new ids of each batch, decoded greedily, as a line: [[id, ...], ...].
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence

Answer = Callable[[Sequence[list[int]], int, list[int]], list[list[int]]]


def ctranslate2(model: str, form: str) -> Answer:
    """CTranslate2, whose own batching cuts the prompts into batches of similar length."""
    import ctranslate2 as library

    threads = int(os.environ["OMP_NUM_THREADS"])
    generator = library.Generator(model, compute_type=form, intra_threads=threads)
    with open(os.path.join(model, "vocabulary.json"), encoding="utf-8") as file:
        tokens = json.load(file)

    def answer(prompts: Sequence[list[int]], most: int, stops: list[int]) -> list[list[int]]:
        outputs = generator.generate_batch(
            [[tokens[i] for i in ids] for ids in prompts],
            max_length=most,
            sampling_topk=1,
            end_token=stops,
            include_prompt_in_result=False,
        )
        return [one.sequences_ids[0] for one in outputs]

    return answer


def vllm(model: str, form: str) -> Answer:
    """vLLM, which schedules what it is given by itself."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # Of several processes one waits for the other by spinning, which would count as its CPU time.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=model,
        dtype=form,
        max_model_len=1024,
        max_num_seqs=256,
        gpu_memory_utilization=float(os.environ.get("VLLM_MEMORY", "0.5")),
        enable_prefix_caching=True,
    )

    def answer(prompts: Sequence[list[int]], most: int, stops: list[int]) -> list[list[int]]:
        sampling = SamplingParams(temperature=0, max_tokens=most, stop_token_ids=stops)
        outputs = engine.generate(
            [{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False
        )
        return [list(one.outputs[0].token_ids) for one in outputs]

    return answer


def main() -> None:
    """Answer until there is nothing more to read."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no reply
    name, model, form = sys.argv[1:4]
    answer = {"ctranslate2": ctranslate2, "vllm": vllm}[name](model, form)
    for line in sys.stdin:
        request = json.loads(line)
        token_ids = answer(request["prompts"], request["new_tokens"], request["stops"])
        print(json.dumps(token_ids), file=replies, flush=True)


if __name__ == "__main__":
    main()
