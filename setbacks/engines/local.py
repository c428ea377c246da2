"""The local engine: transformers, on the CPU or one GPU.

What it adds to `model.generate`: batches of similar length, planned from the whole work list; rows
that have ended leave the running batch, where `generate` goes on computing them; a row's random
draws come from its own seed, not from its neighbours; an adapter is merged into the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, permutations, starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from setbacks.adapters import attached, check_adapter, check_tokenizer, merged
from setbacks.chat import encode_request, stop_tokens, written
from setbacks.embedded import resolve
from setbacks.engines import Completion, Engine, Request, by_length
from setbacks.engines.decoding import Running, decode_by_products, likeliest, pack
from setbacks.engines.reading import read
from setbacks.errors import InputError
from setbacks.models import load_model, load_tokenizer, no_memory

if TYPE_CHECKING:
    import numpy as np
    import torch

    from setbacks.recipe import Engine as Spec
    from setbacks.recipe import Sampling


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
        self._graphs: Any = None
        self._tokenizer: Any = None
        self._adapter: Path | None = None
        self._source = spec

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
        """
        import torch

        self._load(adapter)
        prompts = [self._encode(request) for request in requests]
        made = None
        try:
            made = self._generate(prompts, [request.seed for request in requests], sampling)
        except torch.OutOfMemoryError as error:
            if len(requests) == 1:
                raise no_memory(self.name, "for a single response") from error
        if made is None:  # outside the clause: the error holds on to all that did not fit
            if self._graphs:
                self._graphs.forget()
            torch.cuda.empty_cache()
            half = len(requests) // 2
            return [
                *self.generate(requests[:half], sampling, adapter),
                *self.generate(requests[half:], sampling, adapter),
            ]
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
            InputError: one option's tokens begin with another's.
        """
        import numpy as np
        import torch

        self._load(adapter)
        ways = [[self._encode(request, option) for option in options] for request in requests]
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
        model, self._model, self._graphs = self._model, None, None
        if model is None or self._adapter is not None:
            model = None
            try:
                model = load_model(self._source)
            except (torch.OutOfMemoryError, MemoryError) as error:
                raise no_memory(self.name, "for its weights") from error
        if adapter is not None:
            quantized = getattr(model, "is_quantized", False)
            model = attached(model, adapter) if quantized else merged(model, adapter)
        self._model, self._adapter = model.eval(), adapter
        if model.device.type == "cuda" and self.spec.cuda_graphs:
            from setbacks.engines.graphs import Graphs

            self._graphs = Graphs(model)
        if model.device.type == "cpu" or self._graphs:
            decode_by_products(model)
        pack(model)

    def _generate(
        self, prompts: list[list[int]], seeds: list[int], sampling: Sampling
    ) -> list[tuple[list[int], bool]]:
        """Return, for each prompt, the new tokens and whether the model ended by itself."""
        import numpy as np
        import torch

        model, device = self._model, self._model.device
        ends = stop_tokens(model, self._tokenizer, self.spec.chat_template)
        stops = torch.tensor(sorted(ends), device=device)
        pad = self._tokenizer.pad_token_id or 0
        # A prompt that is asked several times (candidates of one analysis) is read once.
        different = list(dict.fromkeys(map(tuple, prompts)))
        draws = np.stack(
            [np.random.default_rng(seed).random(sampling.max_new_tokens) for seed in seeds]
        )
        made: list[list[int]] = [[] for _ in prompts]
        stopped = np.zeros(len(prompts), dtype=bool)
        rows = np.arange(len(prompts))  # the prompt that each row of the running batch answers
        with torch.inference_mode():
            cache, mask, position, logits = read(model, different, pad, sampling.max_new_tokens)
            running = Running(model, cache, mask, position)
            if len(different) < len(prompts):
                place = {prompt: index for index, prompt in enumerate(different)}
                spread = torch.tensor([place[tuple(p)] for p in prompts], device=device)
                running.select(spread)
                logits = logits[spread]
            if self._graphs:
                del cache  # the graphs have a copy of it
                running = self._graphs.take_over(running, sampling.max_new_tokens)
            for step in range(sampling.max_new_tokens):
                drawn = torch.as_tensor(draws[rows, step], dtype=torch.float32, device=device)
                token = pick(logits.float(), drawn, sampling)
                ended = torch.isin(token, stops).cpu().numpy() | stopped[rows]
                for row, value, end in zip(rows, token.tolist(), ended, strict=True):
                    if not end:
                        made[row].append(value)
                stopped[rows] = ended
                if ended.all() or step + 1 == sampling.max_new_tokens:
                    break
                if running.worth_dropping(int((~ended).sum())):
                    rows = rows[~ended]
                    stay = torch.as_tensor((~ended).nonzero()[0], device=device)
                    running.select(stay)
                    token = token[stay]
                logits = running.step(token)
        return list(zip(made, stopped.tolist(), strict=True))

    def _log_probabilities(self, ways: list[list[list[int]]]) -> np.ndarray:
        """Return the log-probability of each way to go on, [prompts, ways].

        Args:
            ways: for each prompt its ids with each option; what they share is given.
        """
        import torch

        model, device = self._model, self._model.device
        pad = self._tokenizer.pad_token_id or 0
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
        with torch.inference_mode():
            cache, mask, _, logits = read(model, given, pad, max(map(len, chain(*tails))))
            first = torch.tensor([[tail[0] for tail in t] for t in tails], device=device)
            logs = logits.float().log_softmax(dim=-1).gather(1, first).double()
            # Options of several tokens are read further, each behind its prompt's cache.
            more = [(n, k) for n, t in enumerate(tails) for k, tail in enumerate(t) if tail[1:]]
            if more:
                which = torch.tensor([n for n, _ in more], device=device)
                cache.batch_select_indices(which)
                after = [tails[n][k] for n, k in more]
                width = max(map(len, after)) - 1
                ids = torch.tensor(
                    [[*tail[:-1], *[pad] * (width + 1 - len(tail))] for tail in after],
                    device=device,
                )
                then = torch.tensor(
                    [[*tail[1:], *[-1] * (width + 1 - len(tail))] for tail in after], device=device
                )
                mask = mask[which]
                start = mask.sum(dim=1, keepdim=True)
                logits = model(
                    input_ids=ids,
                    attention_mask=torch.cat([mask, torch.ones_like(ids)], dim=1),
                    position_ids=start + torch.arange(width, device=device),
                    past_key_values=cache,
                ).logits
                each = logits.float().log_softmax(dim=-1).gather(2, then.clamp(min=0)[..., None])
                rest = each.squeeze(2).double().masked_fill(then < 0, 0.0).sum(dim=1)
                places = torch.tensor([k for _, k in more], device=device)
                logs[which, places] += rest
        found: np.ndarray = logs.cpu().numpy()
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
