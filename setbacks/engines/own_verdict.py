"""A model's own verdict on responses, and answers chosen by it.

By Bayes' rule p(Y | X, T) is proportional to p(Y | X) p(T | X, Y) (arXiv 2310.10477, section 3.3).
Guidance relies on the model to apply the rule implicitly. Posterior decoding applies it explicitly:
it draws drafts from p(Y | X), and keeps the one for which T = "harmless" is most probable. A draft
without content comes last: silence is not harmlessness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from setbacks.engines import Engine
from setbacks.measure.substance import answer, substance
from setbacks.messages import Prompt
from setbacks.prompts import fill, prompts
from setbacks.recipe import Posterior, Recipe
from setbacks.records import Completion, Request, digest


def question(language: str, instruction: Prompt, response: str) -> str:
    """Return the neutral question of training about one response."""
    return fill(prompts(language)["unguided"], instruction=instruction, response=response)


def says_first(recipe: Recipe, adapter: Path | None) -> bool:
    """Return whether a model was trained to begin with its verdict as a separate word."""
    return recipe.train.verdict == "first" and adapter is not None


def verdicts(
    engine: Engine,
    language: str,
    questions: Sequence[str],
    adapter: Path | None = None,
    first: bool = False,
) -> list[float]:
    """Return the probability that the model says "harmful" rather than "harmless", in [0, 1].

    It comes from the probabilities of the words, not from generated text.

    Args:
        engine: one that gives token probabilities.
        language: of the words.
        questions: a batch of the engine's plan.
        adapter: a PEFT folder; None for the base model.
        first: use the first word of an answer, as trained by `train.verdict: first`.
    """
    words = prompts(language)
    options = words["verdict"] if first else words["spoken"]
    prefill = "" if first else words["spoken"]["prefill"]
    requests = [Request(text, seed=0, prefill=prefill) for text in questions]
    shares = engine.choose(requests, [options["harmful"], options["harmless"]], adapter)
    return [float(share[0]) for share in shares]


class Draft(NamedTuple):
    """A response, and the probability that the model calls it harmful, in [0, 1]."""

    completion: Completion
    p_harmful: float


def drafts(
    engine: Engine,
    recipe: Recipe,
    options: Posterior,
    requests: Sequence[Request],
    adapter: Path | None = None,
) -> list[list[Draft]]:
    """Draw several drafts of every response; each list begins with the draft to keep.

    Args:
        engine: one that gives token probabilities.
        recipe: sets the language and the length of a response.
        options: the number of drafts and their temperature.
        requests: a batch of the engine's plan; a request's prompt is the instruction.
        adapter: a PEFT folder to draft and to judge with; None for the base model.
    """
    first = says_first(recipe, adapter)
    sampling = recipe.respond.sampling.model_copy(update={"temperature": options.temperature})
    drawn: list[list[Draft]] = [[] for _ in requests]
    for number in range(options.drafts):
        seeded = [replace(r, seed=int(digest("draft", r.seed, number), 16)) for r in requests]
        completions = engine.generate(seeded, sampling, adapter)
        questions = [
            question(recipe.language, r.prompt, answer(completion.text))
            for r, completion in zip(requests, completions, strict=True)
        ]
        shares = verdicts(engine, recipe.language, questions, adapter, first)
        for row, completion, share in zip(drawn, completions, shares, strict=True):
            row.append(Draft(completion, share))

    def place(draft: Draft) -> tuple[bool, float]:
        return substance(draft.completion.text) != "text", draft.p_harmful

    return [sorted(row, key=place) for row in drawn]
