"""How a model answers prompts: together in one batch, or one after another.

`SideBySide` is the engine's fast loop. `OneByOne` is for models that give wrong answers in a batch:
it leaves the steps to transformers' `generate`, which knows how each model keeps its state, and
passes it one unpadded prompt at a time. `setbacks.engines.fidelity` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

from setbacks.engines.decoding import Running, select_rows
from setbacks.engines.reading import read
from setbacks.models.loading import parameters

if TYPE_CHECKING:
    import numpy as np
    import torch

    from setbacks.engines.graphs import Graphs

    # Picks the next token of each row: from logits [rows, vocabulary] in float32, the index of the
    # prompt that each row answers, and the number of tokens before this one.
    Pick = Callable[[torch.Tensor, np.ndarray, int], torch.Tensor]

Answer = tuple[list[int], bool]  # the new tokens, and whether the model ended the answer


class Answering(Protocol):
    """How a model answers prompts."""

    def answer(
        self, prompts: Sequence[list[int]], most: Sequence[int], stops: Collection[int], pick: Pick
    ) -> list[Answer]:
        """Continue each prompt.

        Args:
            prompts: their ids; none is empty.
            most: for each prompt, the most tokens that may follow; at least one.
            stops: the ids that end an answer and are not part of it.
            pick: picks the tokens.
        """
        ...

    def log_probabilities(
        self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
    ) -> torch.Tensor:
        """Return the log-probability of each option, [prompts, options] in float64.

        Args:
            prompts: their ids; none is empty.
            options: for each prompt, the ids of each continuation; the same number for all prompts.
        """
        ...

    def forget(self) -> None:
        """Release the memory that is held between calls."""
        ...


class SideBySide:
    """All prompts in one batch, padded on the left; rows that have ended leave it.

    Args:
        model: a causal language model.
        pad: the id of padding.
        graphs: of the model, if its steps are replayed.
    """

    def __init__(self, model: Any, pad: int, graphs: Graphs | None = None) -> None:
        self.model, self.pad, self.graphs = model, pad, graphs

    def answer(
        self, prompts: Sequence[list[int]], most: Sequence[int], stops: Collection[int], pick: Pick
    ) -> list[Answer]:
        """Continue each prompt; see `Answering`."""
        import numpy as np
        import torch

        model, device, limits = self.model, self.model.device, np.array(most)
        ends = torch.tensor(sorted(stops), dtype=torch.long, device=device)
        # A prompt that occurs several times (candidates of one analysis) is read once.
        different = list(dict.fromkeys(map(tuple, prompts)))
        answers: list[list[int]] = [[] for _ in prompts]
        stopped, done = np.zeros(len(prompts), dtype=bool), np.zeros(len(prompts), dtype=bool)
        rows = np.arange(len(prompts))  # the prompt that each row of the running batch answers
        with torch.inference_mode():
            cache, mask, position, logits = read(model, different, self.pad, max(most))
            running = Running(model, cache, mask, position)
            if len(different) < len(prompts):
                place = {prompt: index for index, prompt in enumerate(different)}
                spread = torch.tensor([place[tuple(p)] for p in prompts], device=device)
                running.select(spread)
                logits = logits[spread]
            if self.graphs:
                del cache  # the graphs have a copy of it
                running = self.graphs.take_over(running, max(most))
            for step in range(max(most)):
                token = pick(logits.float(), rows, step)
                going = ~done[rows]
                stop = torch.isin(token, ends).cpu().numpy() & going
                for row, value, add in zip(rows, token.tolist(), going & ~stop, strict=True):
                    if add:
                        answers[row].append(value)
                stopped[rows] |= stop
                done[rows] |= stop | (step + 1 >= limits[rows])
                left = ~done[rows]
                if not left.any():
                    break
                if running.worth_dropping(int(left.sum())):
                    rows = rows[left]
                    stay = torch.as_tensor(left.nonzero()[0], device=device)
                    running.select(stay)
                    token = token[stay]
                logits = running.step(token)
        return list(zip(answers, stopped.tolist(), strict=True))

    def log_probabilities(
        self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
    ) -> torch.Tensor:
        """Return the log-probability of each option; see `Answering`."""
        import torch

        model, device, pad = self.model, self.model.device, self.pad
        with torch.inference_mode():
            cache, mask, _, logits = read(model, prompts, pad, max(map(len, chain(*options))))
            first = torch.tensor([[tail[0] for tail in tails] for tails in options], device=device)
            logs = logits.float().log_softmax(dim=-1).gather(1, first).double()
            # Options of several tokens need another pass, each after its prompt's cache.
            more = [
                (n, k)
                for n, tails in enumerate(options)
                for k, tail in enumerate(tails)
                if tail[1:]
            ]
            if more:
                which = torch.tensor([n for n, _ in more], device=device)
                select_rows(cache, which)
                after = [options[n][k] for n, k in more]
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
        return logs

    def forget(self) -> None:
        """Release what the graphs hold."""
        if self.graphs:
            self.graphs.forget()


class OneByOne:
    """One prompt after another, each by transformers' `generate`.

    Args:
        model: a causal language model.
        pad: the id of padding, which `generate` requires and does not use.
    """

    def __init__(self, model: Any, pad: int) -> None:
        self.model, self.pad = model, pad

    def answer(
        self, prompts: Sequence[list[int]], most: Sequence[int], stops: Collection[int], pick: Pick
    ) -> list[Answer]:
        """Continue each prompt; see `Answering`."""
        return [
            self._continue(row, prompt, limit, stops, pick)
            for row, (prompt, limit) in enumerate(zip(prompts, most, strict=True))
        ]

    def _continue(
        self, row: int, prompt: list[int], limit: int, stops: Collection[int], pick: Pick
    ) -> Answer:
        import numpy as np
        import torch
        from transformers import GenerationConfig, LogitsProcessor

        class Picked(LogitsProcessor):  # type: ignore[misc]
            """Leaves one token possible: the one that is picked."""

            def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
                step = input_ids.shape[1] - len(prompt)
                token = pick(scores.float(), np.array([row]), step)
                return torch.full_like(scores, -torch.inf).scatter(1, token[:, None], 0.0)

        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=limit,
            eos_token_id=sorted(stops) or None,
            pad_token_id=self.pad,
        )
        model, ids = self.model, torch.tensor([prompt], device=self.model.device)
        if len(prompt) == 1:
            # A model that keeps its state internally takes a single token for a continuation of the
            # previous text; a pass without a cache clears the state.
            forward(model, prompt, 1)
        # What is not set here, `generate` takes from the model, such as penalties.
        theirs, model.generation_config = model.generation_config, GenerationConfig()
        try:
            with torch.inference_mode():
                whole = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=config,
                    logits_processor=[Picked()],
                )
        finally:
            model.generation_config = theirs
        tokens = whole[0, len(prompt) :].tolist()
        stopped = tokens[-1] in stops
        return tokens[:-1] if stopped else tokens, stopped

    def log_probabilities(
        self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
    ) -> torch.Tensor:
        """Return the log-probability of each option; see `Answering`."""
        import torch

        logs = torch.empty(len(prompts), len(options[0]), dtype=torch.float64)
        for row, (prompt, tails) in enumerate(zip(prompts, options, strict=True)):
            for column, tail in enumerate(tails):
                logits = forward(self.model, prompt + tail[:-1], len(tail))
                each = logits.log_softmax(dim=-1).gather(1, torch.tensor(tail)[:, None])
                logs[row, column] = each.double().sum()
        return logs

    def forget(self) -> None:
        """Nothing is held."""


class WithinReach:
    """Prompts in a batch where that changes nothing, and longer ones one by one.

    Args:
        near: answers prompts within the limit.
        far: answers the longer ones.
        limit: the tokens of prompt and answer together; see `setbacks.engines.reading`.
    """

    def __init__(self, near: Answering, far: Answering, limit: int) -> None:
        self.near, self.far, self.limit = near, far, limit

    def answer(
        self, prompts: Sequence[list[int]], most: Sequence[int], stops: Collection[int], pick: Pick
    ) -> list[Answer]:
        """Continue each prompt; see `Answering`."""
        answers: dict[int, Answer] = {}
        for way, rows in self._split(prompts, max(most)):
            answered = way.answer(
                [prompts[row] for row in rows],
                [most[row] for row in rows],
                stops,
                _of(rows, pick),
            )
            answers |= zip(rows.tolist(), answered, strict=True)
        return [answers[row] for row in range(len(prompts))]

    def log_probabilities(
        self, prompts: Sequence[list[int]], options: Sequence[Sequence[list[int]]]
    ) -> torch.Tensor:
        """Return the log-probability of each option; see `Answering`."""
        import torch

        logs = torch.empty(len(prompts), len(options[0]), dtype=torch.float64)
        for way, rows in self._split(prompts, max(map(len, chain(*options)))):
            chosen = [prompts[row] for row in rows], [options[row] for row in rows]
            logs[rows] = way.log_probabilities(*chosen).cpu()
        return logs

    def forget(self) -> None:
        """Release what either way holds."""
        self.near.forget()
        self.far.forget()

    def _split(self, prompts: Sequence[list[int]], more: int) -> list[tuple[Answering, np.ndarray]]:
        """Return the ways that have prompts, each with the indices of its prompts."""
        import numpy as np

        far = np.array([len(prompt) + more > self.limit for prompt in prompts])
        ways = ((self.near, (~far).nonzero()[0]), (self.far, far.nonzero()[0]))
        return [(way, rows) for way, rows in ways if rows.size]


def _of(rows: np.ndarray, pick: Pick) -> Pick:
    """Pick tokens for some of the prompts, which are numbered from 0 again."""
    return lambda logits, at, step: pick(logits, rows[at], step)


def forward(model: Any, ids: list[int], last: int) -> torch.Tensor:
    """Return the logits after each of the last tokens of a text, read in one pass without a cache.

    This is the reference for a model's answers: there is no padding and no cache.

    Args:
        model: a causal language model.
        ids: the text.
        last: how many tokens from its end.

    Returns:
        Logits [last, vocabulary], in float32 on the CPU.
    """
    import torch

    # Not all models can leave out the logits of the other tokens.
    options = {"logits_to_keep": last} if "logits_to_keep" in parameters(model) else {}
    with torch.inference_mode():
        text = torch.tensor([ids], device=model.device)
        logits = model(input_ids=text, use_cache=False, **options).logits[0, -last:]
    return logits.float().cpu()
