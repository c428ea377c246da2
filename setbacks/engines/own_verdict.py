"""A model's own verdict on responses, and answers chosen by it.

By Bayes' rule p(Y | X, T) is proportional to p(Y | X) p(T | X, Y) (arXiv 2310.10477, section 3.3).
Guidance relies on the model to apply the rule implicitly. Posterior decoding applies it explicitly:
it draws drafts from p(Y | X), and keeps the one for which T = "harmless" is most probable. A draft
without content comes last: silence is not harmlessness. What the model says, or a probe of its
hidden states (`setbacks.engines.states`), gives the probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from setbacks.engines import Engine
from setbacks.engines.states import StatesProbe
from setbacks.measure.substance import answer, substance
from setbacks.messages import Prompt
from setbacks.prompts import Words, fill
from setbacks.recipe import Posterior, Recipe
from setbacks.records import Completion, Request, digest


class Question(NamedTuple):
    """The neutral question about one response, and the words of its language."""

    text: str
    words: Words


def question(words: Words, instruction: Prompt, response: str) -> Question:
    """Return the neutral question of training about one response."""
    return Question(fill(words["unguided"], instruction=instruction, response=response), words)


def says_first(recipe: Recipe, adapter: Path | None) -> bool:
    """Return whether a recipe trains a model to begin with its verdict as a separate word.

    The model before training counts as not trained to, even with an adapter: nothing that it is
    asked may depend on how it will be trained.
    """
    return recipe.train.verdict == "first" and adapter not in (None, recipe.current)


def verdicts(
    engine: Engine,
    questions: Sequence[Question],
    adapter: Path | None = None,
    first: bool = False,
) -> list[float]:
    """Return the probability that the model says "harmful" rather than "harmless", in [0, 1].

    It comes from the probabilities of the words, not from generated text.

    Args:
        engine: one that gives token probabilities.
        questions: a batch of the engine's plan.
        adapter: a PEFT folder; None for the base model.
        first: use the first word of an answer, as trained by `train.verdict: first`.
    """
    shares = [0.0] * len(questions)
    in_language: dict[tuple[str, str, str], list[int]] = {}
    for index, asked in enumerate(questions):
        options = asked.words["verdict" if first else "spoken"]
        prefill = "" if first else options["prefill"]
        answers = prefill, options["harmful"], options["harmless"]
        in_language.setdefault(answers, []).append(index)
    for (prefill, *choices), indexes in in_language.items():
        requests = [Request(questions[i].text, seed=0, prefill=prefill) for i in indexes]
        chosen = engine.choose(requests, choices, adapter)
        for index, share in zip(indexes, chosen, strict=True):
            shares[index] = float(share[0])
    return shares


class Draft(NamedTuple):
    """A response, and the probability that it is harmful by its model, in [0, 1]."""

    completion: Completion
    p_harmful: float


def drafts(
    engine: Engine,
    recipe: Recipe,
    options: Posterior,
    requests: Sequence[Request],
    languages: Sequence[str],
    adapter: Path | None = None,
    probe: StatesProbe | None = None,
) -> list[list[Draft]]:
    """Draw several drafts of every response; each list begins with the draft to keep.

    Args:
        engine: one that gives token probabilities, or hidden states for a probe.
        recipe: sets the words and the length of a response.
        options: the number of drafts and their temperature.
        requests: a batch of the engine's plan; a request's prompt is the instruction.
        languages: of the instructions.
        adapter: a PEFT folder to draft and to judge with; None for the base model.
        probe: of the hidden states, to rank by; None: rank by the spoken verdict.
    """
    first = says_first(recipe, adapter)
    sampling = recipe.respond.sampling.model_copy(update={"temperature": options.temperature})
    drawn: list[list[Draft]] = [[] for _ in requests]
    for number in range(options.drafts):
        seeded = [replace(r, seed=int(digest("draft", r.seed, number), 16)) for r in requests]
        completions = engine.generate(seeded, sampling, adapter)
        answers = [answer(completion.text) for completion in completions]
        if probe is None:
            questions = [
                question(recipe.words_for(language), r.prompt, text)
                for r, language, text in zip(requests, languages, answers, strict=True)
            ]
            shares = verdicts(engine, questions, adapter, first)
        else:
            replies = [replace(r, reply=text) for r, text in zip(requests, answers, strict=True)]
            shares = probe.p_harmful(engine, replies, adapter)
        for row, completion, share in zip(drawn, completions, shares, strict=True):
            row.append(Draft(completion, share))

    def place(draft: Draft) -> tuple[bool, float]:
        return substance(draft.completion.text) != "text", draft.p_harmful

    return [sorted(row, key=place) for row in drawn]
