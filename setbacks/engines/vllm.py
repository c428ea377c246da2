"""The vLLM engine: vLLM inside this process, on one machine's GPUs or, with a CPU build, its CPU.

Prompts are tokenized by `setbacks.models.chat_template.encode`, so a model reads the same tokens as
with the local engine. A common beginning of prompts, such as guidance, is read once. An adapter
stays separate from the weights, and is selected for each request. See Kwon et al., arXiv
2309.06180, and https://docs.vllm.ai/en/stable/api/vllm/ (`LLM`, `SamplingParams`, `LoRARequest`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from setbacks.engines import Engine, by_length
from setbacks.engines.thoughts import Row, Written, completion, in_passes
from setbacks.errors import InputError
from setbacks.models.adapters import check_adapter, check_tokenizer
from setbacks.models.chat_template import encode_request, stop_tokens, thinking_before
from setbacks.models.embedded import resolve
from setbacks.models.loading import load_tokenizer
from setbacks.models.thinking import Markers
from setbacks.prompts import Words, prompts
from setbacks.recipe import Engine as Spec
from setbacks.recipe import Section
from setbacks.records import Completion, Request

if TYPE_CHECKING:
    from setbacks.recipe import Sampling

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # vLLM's MaxLoRARanks


class Settings(Section):
    """How vLLM runs a model."""

    tensor_parallel: int = Field(1, ge=1, description="GPUs that share one copy of the model.")
    memory: float = Field(
        0.9, gt=0, le=1, description="Share of a GPU's memory for weights and cache."
    )
    max_length: int | None = Field(
        None, ge=1, description="Longest prompt and response, in tokens; null: the model's own."
    )


class VLLMOptions(Spec):
    """A model that vLLM runs."""

    vllm: Settings | None = Field(None, description="How vLLM runs it; null: all defaults.")


class VLLM(Engine):
    """A model that vLLM runs.

    Args:
        spec: the model, and in `spec.vllm` vLLM's settings.
        words: those of the Alpaca template, for models without a chat template. None for English.
    """

    Options = VLLMOptions
    unused = ("device", "cuda_graphs")  # vLLM decides both

    def __init__(self, spec: VLLMOptions, words: Words | None = None) -> None:
        self.spec = spec
        self.settings = spec.vllm or Settings()
        self.words = words or prompts("en")
        self.name = spec.model
        self._model: Any = None
        self._rank = 0  # the highest adapter rank that the loaded model supports
        self._adapters: dict[Path, int] = {}

    @classmethod
    def check(cls, spec: Spec) -> None:
        """Check that vLLM is installed.

        Raises:
            InputError: it is not.
        """
        if find_spec("vllm") is None:
            raise InputError(
                "engine: vllm needs vllm, in a separate environment: see docs/engines.md"
            )

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches by the length of the prompts, in characters."""
        return by_length([request.size for request in requests], self.spec.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned batch.

        Args:
            requests: a batch of the plan.
            sampling: how tokens are drawn, each request from its own seed.
            adapter: a PEFT folder, or None for the base model.

        Raises:
            InputError: the model or adapter does not exist or does not fit into memory, or a prompt
                is longer than the context window.
        """
        from vllm import SamplingParams

        lora, tokenizer = self._load(adapter), self._tokenizer
        prompts = [encode_request(tokenizer, r, self.spec, self.words) for r in requests]
        ways = [thinking_before(tokenizer, request, self.spec) for request in requests]
        markers = {way: Markers(tokenizer, way) for way in {*ways} if way}
        rows = [
            Row(markers[way], sampling, (), self._context - len(prompt)) if way else None
            for way, prompt in zip(ways, prompts, strict=True)
        ]
        # vLLM itself applies those of the generation config.
        ends = sorted(stop_tokens(None, tokenizer, self.spec.chat_template))

        def write(places: Sequence[int], given: list[list[int]], most: list[int]) -> list[Written]:
            params = [
                SamplingParams(
                    max_tokens=limit,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=sampling.top_k,
                    seed=requests[place].seed % 2**63,
                    stop_token_ids=ends,
                )
                for place, limit in zip(places, most, strict=True)
            ]
            return self._write(given, params, lora)

        outputs = in_passes(write, prompts, rows, sampling.max_new_tokens)
        return [
            row.completion(tokenizer, prompt)
            if row
            else completion(tokenizer, request, prompt, *output)
            for row, request, prompt, output in zip(rows, requests, prompts, outputs, strict=True)
        ]

    def _write(self, prompts: list[list[int]], params: list[Any], lora: Any) -> list[Written]:
        """Return the tokens after each prompt, and whether the model ended them."""
        try:
            outputs = self._model.generate(
                [{"prompt_token_ids": ids} for ids in prompts],
                params,
                lora_request=lora,
                use_tqdm=False,
            )
        except (ValueError, OSError) as error:
            raise InputError(f"{self.name}: vLLM: {_line(error)}") from error
        written: list[Written] = []
        for output in outputs:
            (answer,) = output.outputs
            stopped = answer.finish_reason == "stop"
            # The token that ended it is not part of the text.
            written.append((answer.token_ids[: len(answer.token_ids) - stopped], stopped))
        return written

    @property
    def _context(self) -> int:
        """The longest prompt and response, in tokens."""
        longest: int = self._model.llm_engine.model_config.max_model_len
        return longest

    @cached_property
    def _tokenizer(self) -> Any:
        return load_tokenizer(self.spec)

    def _load(self, adapter: Path | None) -> Any:
        """Load the model with room for an adapter; return the `LoRARequest` of the adapter."""
        rank = 0
        if adapter is not None:
            check_adapter(adapter, self.spec.model)
            check_tokenizer(adapter, self._tokenizer)
            rank = _rank(adapter)
        if self._model is None or rank > self._rank:
            self._model = None  # never two models at once
            self._model, self._rank = self._open(rank), rank
        if adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        number = self._adapters.setdefault(adapter, len(self._adapters) + 1)
        return LoRARequest(str(adapter), number, str(adapter))

    def _open(self, rank: int) -> Any:
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # no telemetry
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        from vllm import LLM

        lora = {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1} if rank else {}
        try:
            return LLM(
                model=resolve(self.spec.model, self.spec.revision),
                revision=self.spec.revision,
                dtype=self.spec.dtype,
                trust_remote_code=self.spec.trust_remote_code,
                tensor_parallel_size=self.settings.tensor_parallel,
                gpu_memory_utilization=self.settings.memory,
                max_model_len=self.settings.max_length,
                max_num_seqs=self.spec.batch_size,
                enable_prefix_caching=True,
                **lora,
            )
        except (ValueError, OSError, RuntimeError) as error:
            raise InputError(
                f'model "{self.name}" cannot be loaded by vLLM: {_line(error)} (if memory is '
                "short, change vllm.memory, vllm.max_length or vllm.tensor_parallel)"
            ) from error


def _rank(adapter: Path) -> int:
    """Return the smallest rank of vLLM that fits an adapter.

    Raises:
        InputError: it is not a LoRA adapter, or its rank is too high.
    """
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    if config.get("peft_type") != "LORA" or not all(isinstance(rank, int) for rank in ranks):
        raise InputError(
            f"{adapter}: not a LoRA adapter ({config.get('peft_type')}), and vLLM supports "
            "no others; use engine: local"
        )
    fits = [rank for rank in RANKS if rank >= max(ranks)]
    if not fits:
        raise InputError(
            f"{adapter}: rank {max(ranks)} is above vLLM's limit of {RANKS[-1]}; use engine: local"
        )
    return fits[0]


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
