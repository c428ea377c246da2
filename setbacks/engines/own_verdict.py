"""What a model itself says of responses: its verdict on them, and answers chosen by it.

By Bayes' rule p(Y | X, T) is proportional to p(Y | X) p(T | X, Y) (arXiv 2310.10477, section 3.3).
Guidance counts on the model to do that sum by itself. Posterior decoding does it in the open: draw
drafts from p(Y | X), and keep the one of which the model is surest that T is "harmless". A draft
that says nothing comes last: silence is not harmlessness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from setbacks.engines import Engine
from setbacks.measure.substance import answer, substance
from setbacks.prompts import fill, prompts
from setbacks.recipe import Posterior, Recipe
from setbacks.records import Completion, Request, digest


def question(language: str, instruction: str, response: str) -> str:
    """Return the neutral question of training, on one response."""
    return fill(prompts(language)["unguided"], instruction=instruction, response=response)


def says_first(recipe: Recipe, adapter: Path | None) -> bool:
    """Whether a model was taught to begin with its verdict, in a word of its own."""
    return recipe.train.verdict == "first" and adapter is not None


def verdicts(
    engine: Engine,
    language: str,
    questions: Sequence[str],
    adapter: Path | None = None,
    first: bool = False,
) -> list[float]:
    """Return how likely the model is to say "harmful" and not "harmless", in [0, 1].

    It is read from the probabilities of the words, not parsed from prose.

    Args:
        engine: one that shows token probabilities.
        language: of the words.
        questions: a batch of the engine's plan.
        adapter: a PEFT folder; None for the base model.
        first: read the word that an answer begins with, as `train.verdict: first` teaches it.
    """
    words = prompts(language)
    options = words["verdict"] if first else words["spoken"]
    prefill = "" if first else words["spoken"]["prefill"]
    requests = [Request(text, seed=0, prefill=prefill) for text in questions]
    shares = engine.choose(requests, [options["harmful"], options["harmless"]], adapter)
    return [float(share[0]) for share in shares]


class Draft(NamedTuple):
    """A response that was drawn, and how likely the model is to call it harmful, in [0, 1]."""

    completion: Completion
    p_harmful: float


def drafts(
    engine: Engine,
    recipe: Recipe,
    told: Posterior,
    asked: Sequence[Request],
    adapter: Path | None = None,
) -> list[list[Draft]]:
    """Draw several drafts of every response; each list begins with what the model would keep.

    Args:
        engine: one that shows token probabilities.
        recipe: gives the language and how long a response is.
        told: how many, and how varied.
        asked: a batch of the engine's plan; a request's prompt is the instruction.
        adapter: a PEFT folder to draft and to judge with; None for the base model.
    """
    first = says_first(recipe, adapter)
    sampling = recipe.respond.sampling.model_copy(update={"temperature": told.temperature})
    made: list[list[Draft]] = [[] for _ in asked]
    for number in range(told.drafts):
        again = [replace(r, seed=int(digest("draft", r.seed, number), 16)) for r in asked]
        drawn = engine.generate(again, sampling, adapter)
        questions = [
            question(recipe.language, r.prompt, answer(completion.text))
            for r, completion in zip(asked, drawn, strict=True)
        ]
        shares = verdicts(engine, recipe.language, questions, adapter, first)
        for found, completion, share in zip(made, drawn, shares, strict=True):
            found.append(Draft(completion, share))

    def place(draft: Draft) -> tuple[bool, float]:
        return substance(draft.completion.text) != "text", draft.p_harmful

    return [sorted(found, key=place) for found in made]
