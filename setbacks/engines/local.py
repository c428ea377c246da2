"""The local engine: transformers, on the CPU or one GPU.

It adds to `model.generate`: batches of similar length, planned from the whole work list; rows that
have ended leave the running batch, where `generate` would keep computing them; a row's random draws
come from its own seed, not from its neighbors; an adapter is merged into the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import permutations, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.engines import Engine, by_length
from setbacks.engines.answering import Answering, SideBySide
from setbacks.engines.decoding import likeliest
from setbacks.engines.fidelity import Way, find_way, prepare
from setbacks.engines.states import Text, answer_states
from setbacks.engines.thoughts import Row, completion, steered
from setbacks.errors import InputError
from setbacks.messages import turns_of, with_system
from setbacks.models.adapters import attached, check_adapter, check_tokenizer, merged
from setbacks.models.chat_template import (
    encode_answer,
    encode_request,
    stop_tokens,
    thinking_before,
)
from setbacks.models.embedded import resolve
from setbacks.models.loading import check_length, context, load_model, load_tokenizer, no_memory
from setbacks.models.thinking import Markers
from setbacks.prompts import Words, prompts
from setbacks.records import Completion, Request

if TYPE_CHECKING:
    import numpy as np
    import torch

    from setbacks.recipe import Engine as Spec
    from setbacks.recipe import Sampling

log = logging.getLogger(__name__)

_checked: dict[str, Way] = {}  # how to run each model that this process has checked


class Local(Engine):
    """A transformers model that answers batches of requests.

    Args:
        spec: the model and how it is run.
        words: those of the Alpaca template, for models without a chat template. None for English.
    """

    shows_probabilities = True
    shows_states = True

    def __init__(self, spec: Spec, words: Words | None = None) -> None:
        self.spec = spec
        self.words = words or prompts("en")
        self.name = spec.model
        self._model: Any = None
        self._tokenizer: Any = None
        self._adapter: Path | None = None
        self._source = spec
        self._answering: Any = None  # how the model in memory answers: an `Answering`
        self._noted = False  # whether the run's log has the way
        self._warned_of_cut = False  # whether the user knows that answers are cut

    def plan(self, requests: Sequence[Request]) -> list[list[int]]:
        """Cut the whole work list into batches by the length of the prompts, in characters."""
        return by_length([request.size for request in requests], self.spec.batch_size)

    def generate(
        self, requests: Sequence[Request], sampling: Sampling, adapter: Path | None = None
    ) -> list[Completion]:
        """Generate one planned batch.

        If memory runs out, the batch is halved: the texts may then differ in near-ties from those
        of a machine that has room for the whole batch.

        Args:
            requests: a batch of the plan.
            sampling: how tokens are drawn.
            adapter: a PEFT folder, or None for the base model.

        Raises:
            InputError: a prompt does not fit into the context window, or the model cannot be used.
        """
        import torch

        self._load(adapter)
        prompts = [self._encode(request) for request in requests]
        self._check_fit(requests, prompts, 1)
        completions = None
        try:
            completions = self._generate(requests, prompts, sampling)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise no_memory(self.name, "for a single response") from error
        if completions is None:  # outside the clause: the error keeps references to the tensors
            self._answering.forget()
            torch.cuda.empty_cache()
            half = len(requests) // 2
            return [
                *self.generate(requests[:half], sampling, adapter),
                *self.generate(requests[half:], sampling, adapter),
            ]
        return completions

    def choose(
        self, requests: Sequence[Request], options: Sequence[str], adapter: Path | None = None
    ) -> np.ndarray:
        """Return the probability that each answer begins with each option (`Engine.choose`).

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

    def states(
        self, requests: Sequence[Request], depths: Sequence[float], adapter: Path | None = None
    ) -> np.ndarray:
        """Return the mean hidden state over the tokens of each answer (`Engine.states`).

        Args:
            requests: a batch of the plan, with answers as `reply`.
            depths: the layers, as shares of all layers.
            adapter: a PEFT folder, or None for the base model.

        Raises:
            InputError: the model returns no hidden states, or cannot be used.
        """
        import numpy as np
        import torch

        self._load(adapter)
        limit = context(self._model.config)
        texts = [self._encode_reply(request).within(limit) for request in requests]
        states = None
        try:
            alone = not isinstance(self._answering, SideBySide)
            states = answer_states(self._model, texts, depths, alone=alone)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise no_memory(self.name, "to read a single answer") from error
        if states is None:  # as in `generate`
            torch.cuda.empty_cache()
            half = len(requests) // 2
            halves = (requests[:half], requests[half:])
            return np.concatenate([self.states(part, depths, adapter) for part in halves])
        return states

    def _encode_reply(self, request: Request) -> Text:
        spec, turns = self.spec, turns_of(request.prompt)
        ids = encode_answer(
            self._tokenizer,
            with_system(turns, spec.system),
            request.reply or "",
            template=spec.chat_template,
            words=self.words,
            variables={**spec.template, **request.template},
        )
        return Text(*ids)

    def _encode(self, request: Request, option: str = "") -> list[int]:
        return encode_request(self._tokenizer, request, self.spec, self.words, option)

    def _load(self, adapter: Path | None) -> None:
        """Load the model: the base, or with an adapter merged into it.

        A merged adapter costs nothing per token. To remove it, the base is loaded again, which is
        exact (subtraction is not) and needs no second copy of the weights. After an error with an
        adapter, the engine works as if the adapter had not been requested.
        """
        import torch
        from transformers.utils.hub import resolve_revision

        if self._model is not None and adapter == self._adapter:
            return
        if adapter is not None:
            check_adapter(adapter, self.spec.model)
        if self._tokenizer is None:
            # A branch may change; loading again has to give the same weights.
            source = resolve(self.spec.model, self.spec.revision)
            commit = resolve_revision(source, self.spec.revision)
            self._source = self.spec.model_copy(update={"revision": commit})
            self._tokenizer = load_tokenizer(self._source)
        if adapter is not None:
            check_tokenizer(adapter, self._tokenizer)
        # Never two models at once, and never a half-changed one.
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
        """Prepare a model to answer, in a way that was checked to be correct for it.

        An adapter changes weights, not how they are used, so it answers in the way of its base.

        Raises:
            InputError: no way is correct, or there is not enough memory to check.
        """
        import torch

        pad, key = self._tokenizer.pad_token_id or 0, self._source.model_dump_json()
        if way := _checked.get(key):
            answering = prepare(model, way.name, pad)
        else:
            graphs = self.spec.cuda_graphs
            try:
                way, answering = find_way(
                    model, self._tokenizer, pad, context(model.config), graphs, self.name
                )
            except torch.OutOfMemoryError as error:
                raise no_memory(self.name, "to read a few short texts") from error
            _checked[key] = way
            if way.fell_back:
                log.warning(way.summary)
        if not self._noted:
            self._noted = True
            self.note(way.summary)
        return answering

    def _check_fit(
        self, requests: Sequence[Request], texts: Sequence[list[int]], more: int
    ) -> None:
        """Check that a model can read some texts, and `more` tokens after each.

        Raises:
            InputError: one is too long, or has a token that the model does not know.
        """
        limit = context(self._model.config)
        known = self._model.get_input_embeddings().weight.shape[0]
        for request, ids in zip(requests, texts, strict=True):
            check_length(self.name, request, len(ids), limit, more)
            if (unknown := max(ids)) >= known:
                raise InputError(
                    f'model "{self.name}": it has no embedding for token {unknown} '
                    f"({self._tokenizer.convert_ids_to_tokens(unknown)}) of its tokenizer; resize "
                    "its embeddings, or use the tokenizer that it was trained with"
                )

    def _warn_of_cut(self) -> None:
        """Warn once that answers are cut off at the end of the context window."""
        if not self._warned_of_cut:
            self._warned_of_cut = True
            message = (
                f'model "{self.name}": some answers are cut off where prompt and answer fill its '
                f"context of {context(self._model.config):,} tokens; use shorter prompts"
            )
            log.warning(message)
            self.note(message)

    def _generate(
        self, requests: Sequence[Request], prompts: list[list[int]], sampling: Sampling
    ) -> list[Completion]:
        """Return the completion of each prompt."""
        import numpy as np
        import torch

        tokenizer, device = self._tokenizer, self._model.device
        stops = stop_tokens(self._model, tokenizer, self.spec.chat_template)
        limit = context(self._model.config) or np.inf
        ways = [thinking_before(tokenizer, request, self.spec) for request in requests]
        markers = {way: Markers(tokenizer, way) for way in {*ways} if way}
        rows = [
            Row(markers[way], sampling, stops, limit - len(prompt)) if way else None
            for way, prompt in zip(ways, prompts, strict=True)
        ]
        most = [
            row.most if row else int(min(sampling.max_new_tokens, limit - len(prompt)))
            for row, prompt in zip(rows, prompts, strict=True)
        ]
        draws = np.stack([np.random.default_rng(r.seed).random(max(most)) for r in requests])

        def picked(logits: torch.Tensor, rows: np.ndarray, step: int) -> torch.Tensor:
            drawn = torch.as_tensor(draws[rows, step], dtype=torch.float32, device=device)
            return pick(logits, drawn, sampling)

        choose = steered(picked, rows, min(stops, default=None)) if any(rows) else picked
        answers = self._answering.answer(prompts, most, stops, choose)
        completions = []
        for request, prompt, row, answer in zip(requests, prompts, rows, answers, strict=True):
            if row is not None:
                completions.append(row.completion(tokenizer, prompt))
                cut = row.out_of_context
            else:
                completions.append(completion(tokenizer, request, prompt, *answer))
                cut = not answer[1] and len(answer[0]) < sampling.max_new_tokens
            if cut:
                self._warn_of_cut()
        return completions

    def _log_probabilities(self, ways: list[list[list[int]]]) -> np.ndarray:
        """Return the log-probability of each continuation, [prompts, ways].

        Args:
            ways: for each prompt, its ids with each option; they are conditioned on what the ways
                share.
        """
        shared = [
            next((n for n, at in enumerate(zip(*w, strict=False)) if len(set(at)) > 1), 0)
            for w in ways
        ]
        tails = [[way[cut:] for way in w] for w, cut in zip(ways, shared, strict=True)]
        if any(len(t) < 2 or any(starmap(_begins, permutations(t, 2))) for t in tails):
            raise InputError(
                "choose needs two or more options, none of which is the beginning of another"
            )
        given = [w[0][:cut] for w, cut in zip(ways, shared, strict=True)]
        logs: np.ndarray = self._answering.log_probabilities(given, tails).cpu().numpy()
        return logs


def _begins(tail: list[int], other: list[int]) -> bool:
    return other[: len(tail)] == tail


def pick(logits: torch.Tensor, draws: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Pick one token a row: top-k, then top-p, then the inverse of the cumulative distribution.

    Args:
        logits: float32, [rows, vocabulary].
        draws: uniform in [0, 1), [rows]: the row's own random number for this step.
        sampling: temperature (0 picks the most likely), top_k, top_p.

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
    # Rounding can raise the aim to the whole sum: no draw may exceed what top-p allows.
    last = (probability > 0).sum(dim=-1, keepdim=True) - 1
    chosen = (cumulative <= aim).sum(dim=-1, keepdim=True).minimum(last)
    return tokens.gather(1, chosen).squeeze(1)
