"""The local engine: transformers, on the CPU or one GPU.

What it adds to `model.generate`: batches of similar length, planned from the whole work list; rows
that have ended leave the running batch, where `generate` goes on computing them; a row's random
draws come from its own seed, not from its neighbours; an adapter is merged into the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import permutations, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.engines import Engine, by_length
from setbacks.engines.answering import Answer, Answering
from setbacks.engines.decoding import likeliest
from setbacks.engines.fidelity import Found, find_way, prepare
from setbacks.errors import InputError
from setbacks.models.adapters import attached, check_adapter, check_tokenizer, merged
from setbacks.models.chat_template import encode_request, stop_tokens, written
from setbacks.models.embedded import resolve
from setbacks.models.loading import context, load_model, load_tokenizer, no_memory
from setbacks.records import Completion, Request

if TYPE_CHECKING:
    import numpy as np
    import torch

    from setbacks.recipe import Engine as Spec
    from setbacks.recipe import Sampling

log = logging.getLogger(__name__)

_found: dict[str, Found] = {}  # how to run each model that this process has checked


class Local(Engine):
    """A transformers model that answers batches of requests.

    Args:
        spec: the model and how it is run.
        language: of the Alpaca template, for models without a chat template.
    """

    shows_probabilities = True

    def __init__(self, spec: Spec, language: str = "en") -> None:
        self.spec = spec
        self.language = language
        self.name = spec.model
        self._model: Any = None
        self._tokenizer: Any = None
        self._adapter: Path | None = None
        self._source = spec
        self._answering: Any = None  # how the model in memory answers: an `Answering`
        self._noted = False  # whether the run's log has how the model is answered,
        self._said_cut = False  # and whether the user knows that answers are cut

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches by the length of the prompts, in characters."""
        return by_length([request.size for request in requests], self.spec.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned batch.

        Out of memory, the batch is halved and goes on: the texts may then differ in near-ties from
        those of a machine that holds it whole.

        Args:
            requests: a batch of the plan.
            sampling: how tokens are drawn.
            adapter: a PEFT folder, or None for the base model.

        Raises:
            InputError: a prompt does not fit into the model's context, or the model cannot be used.
        """
        import torch

        self._load(adapter)
        prompts = [self._encode(request) for request in requests]
        self._check_fit(requests, prompts, 1)
        made = None
        try:
            made = self._generate(prompts, [request.seed for request in requests], sampling)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise no_memory(self.name, "for a single response") from error
        if made is None:  # outside the clause: the error holds on to all that did not fit
            self._answering.forget()
            torch.cuda.empty_cache()
            half = len(requests) // 2
            return [
                *self.generate(requests[:half], sampling, adapter),
                *self.generate(requests[half:], sampling, adapter),
            ]
        self._say_what_was_cut(made, sampling)
        return [
            Completion(
                text=written(self._tokenizer, prompt, tokens, request.prefill),
                finish="stop" if stopped else "length",
                prompt_tokens=len(prompt),
                tokens=len(tokens),
            )
            for request, prompt, (tokens, stopped) in zip(requests, prompts, made, strict=True)
        ]

    def choose(
        self, requests: Sequence[Request], options: Sequence[str], adapter: Path | None = None
    ) -> np.ndarray:
        """Return how likely each answer begins with each option (`Engine.choose`).

        Args:
            requests: a batch of the plan.
            options: at least two texts.
            adapter: a PEFT folder, or None for the base model.

        Returns:
            Probabilities [requests, options], float64; each row sums to 1.

        Raises:
            InputError: one option's tokens begin with another's, or as in `generate`.
        """
        import numpy as np
        import torch

        self._load(adapter)
        ways = [[self._encode(request, option) for option in options] for request in requests]
        self._check_fit(requests, [max(way, key=len) for way in ways], 0)
        logs = None
        try:
            logs = self._log_probabilities(ways)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise no_memory(self.name, "to read a single prompt") from error
        if logs is None:  # as in `generate`
            torch.cuda.empty_cache()
            half = len(requests) // 2
            halves = (requests[:half], requests[half:])
            return np.concatenate([self.choose(part, options, adapter) for part in halves])
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        shares: np.ndarray = odds / odds.sum(axis=1, keepdims=True)
        return shares

    def _encode(self, request: Request, option: str = "") -> list[int]:
        return encode_request(self._tokenizer, request, self.spec, self.language, option)

    def _load(self, adapter: Path | None) -> None:
        """Have the model in memory as it is asked for: the base, or with an adapter merged into it.

        Merged, an adapter costs nothing at each token. The way back is to load the base anew, which
        is exact, where subtracting what was added is not, and keeps no second copy of the weights.
        When an adapter is at fault, the next call finds the engine as if it had not been named.
        """
        import torch
        from transformers.utils.hub import resolve_revision

        if self._model is not None and adapter == self._adapter:
            return
        if adapter is not None:
            check_adapter(adapter, self.spec.model)
        if self._tokenizer is None:
            # A branch may move on; what is loaded anew has to be what was there before.
            source = resolve(self.spec.model, self.spec.revision)
            commit = resolve_revision(source, self.spec.revision)
            self._source = self.spec.model_copy(update={"revision": commit})
            self._tokenizer = load_tokenizer(self._source)
        if adapter is not None:
            check_tokenizer(adapter, self._tokenizer)
        # No two at a time, and none that is half changed.
        model, self._model, self._answering = self._model, None, None
        if model is None or self._adapter is not None:
            model = None
            try:
                model = load_model(self._source)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise no_memory(self.name, "for its weights") from error
        if adapter is not None:
            quantized = getattr(model, "is_quantized", False)
            model = attached(model, adapter) if quantized else merged(model, adapter)
        self._answering = self._prepare(model.eval())
        self._model, self._adapter = model, adapter

    def _prepare(self, model: Any) -> Answering:
        """Prepare a model to answer, in the way that is found to be right for it.

        An adapter changes weights and not how they are used, so the way of the base is its own.

        Raises:
            InputError: there is no such way, or not enough memory to look for it.
        """
        import torch

        pad, key = self._tokenizer.pad_token_id or 0, self._source.model_dump_json()
        if known := _found.get(key):
            answering = prepare(model, known.way, pad)
        else:
            graphs = self.spec.cuda_graphs
            try:
                known, answering = find_way(
                    model, self._tokenizer, pad, context(model.config), graphs, self.name
                )
            except torch.OutOfMemoryError as error:
                raise no_memory(self.name, "to read a few short texts") from error
            _found[key] = known
            if known.fell_back:
                log.warning(known.said)
        if not self._noted:
            self._noted = True
            self.note(known.said)
        return answering

    def _check_fit(
        self, requests: Sequence[Request], texts: Sequence[list[int]], more: int
    ) -> None:
        """Look whether a model can read some texts, and so many tokens more after each.

        Raises:
            InputError: one is too long, or has a token that is unknown to the model.
        """
        limit = context(self._model.config)
        known = self._model.get_input_embeddings().weight.shape[0]
        for request, ids in zip(requests, texts, strict=True):
            if limit is not None and len(ids) + more > limit:
                words = " ".join(request.prompt.split())
                shown = words if len(words) <= 120 else f"{words[:80]} ... {words[-40:]}"
                raise InputError(
                    f'model "{self.name}": a prompt of {len(ids):,} tokens does not fit into its '
                    f"context of {limit:,} tokens, with room for an answer: shorten it or leave it "
                    f'out ("{shown}")'
                )
            if (unknown := max(ids)) >= known:
                raise InputError(
                    f'model "{self.name}": it has no embedding for token {unknown} '
                    f"({self._tokenizer.convert_ids_to_tokens(unknown)}) of its tokenizer; resize "
                    "its embeddings, or use the tokenizer that it was trained with"
                )

    def _say_what_was_cut(self, made: Sequence[Answer], sampling: Sampling) -> None:
        """Warn, once, of answers that end where the context does."""
        cut = any(not stopped and len(ids) < sampling.max_new_tokens for ids, stopped in made)
        if cut and not self._said_cut:
            self._said_cut = True
            said = (
                f'model "{self.name}": some answers are cut off where prompt and answer fill its '
                f"context of {context(self._model.config):,} tokens; use shorter prompts"
            )
            log.warning(said)
            self.note(said)

    def _generate(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[Answer]:
        """Return, for each prompt, the new tokens and whether the model ended by itself."""
        import numpy as np
        import torch

        device = self._model.device
        draws = np.stack(
            [np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds]
        )

        def picked(logits: torch.Tensor, rows: np.ndarray, step: int) -> torch.Tensor:
            drawn = torch.as_tensor(draws[rows, step], dtype=torch.float32, device=device)
            return pick(logits, drawn, sampling)

        limit = context(self._model.config) or np.inf
        most = [int(min(sampling.max_new_tokens, limit - len(prompt))) for prompt in prompts]
        stops = stop_tokens(self._model, self._tokenizer, self.spec.chat_template)
        return self._answering.answer(prompts, most, stops, picked)

    def _log_probabilities(self, ways: list[list[list[int]]]) -> np.ndarray:
        """Return the log-probability of each way to go on, [prompts, ways].

        Args:
            ways: for each prompt its ids with each option; what they share is given.
        """
        shared = [
            next((n for n, at in enumerate(zip(*w, strict=False)) if len(set(at)) > 1), 0)
            for w in ways
        ]
        tails = [[way[cut:] for way in w] for w, cut in zip(ways, shared, strict=True)]
        if any(len(t) < 2 or any(starmap(_begins, permutations(t, 2))) for t in tails):
            raise InputError(
                "options to choose from: two or more, and none of them the beginning of another"
            )
        given = [w[0][:cut] for w, cut in zip(ways, shared, strict=True)]
        found: np.ndarray = self._answering.log_probabilities(given, tails).cpu().numpy()
        return found


def _begins(tail: list[int], other: list[int]) -> bool:
    return other[: len(tail)] == tail


def pick(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Pick one token a row: top-k, then top-p, then the inverse of the cumulative distribution.

    Args:
        logits: float32, [rows, vocabulary].
        draws: uniform in [0, 1), [rows]: the row's own random number for this step.
        sampling: temperature (0 picks the likeliest), top_k, top_p.

    Returns:
        Token ids, [rows].
    """
    if sampling.temperature == 0:
        return likeliest(logits)
    top, tokens = logits.topk(min(sampling.top_k, logits.shape[-1]), dim=-1)  # sorted
    probability = (top / sampling.temperature).softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability
    probability = probability.masked_fill(before >= sampling.top_p, 0.0)  # the first one stays
    cumulative = probability.cumsum(dim=-1)
    aim = draws[:, None] * cumulative[:, -1:]
    # Rounding can bring the aim up to the whole sum: no draw may go past what top-p allows.
    last = (probability > 0).sum(dim=-1, keepdim=True) - 1
    chosen = (cumulative <= aim).sum(dim=-1, keepdim=True).minimum(last)
    return tokens.gather(1, chosen).squeeze(1)
