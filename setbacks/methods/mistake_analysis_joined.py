"""Mistake analysis joined to the answer: analyze the mistake first, then answer without it.

Our method. In the paper, p(T | Y, X) shapes an answer implicitly (arXiv 2310.10477, section 3.3).
Here one example has both, so that the answer is conditioned on an explicit analysis: (X) -> T, then
a safe answer. The guided arm uses the same prompt. A reasoning model can learn the analysis as its
thought (`train.thoughts`); then no prompt has to ask for it. Refused safe requests are learned as
analyses alone: a joined example shows how to answer, and benign responses show that for them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from pydantic import Field

from setbacks.errors import InputError
from setbacks.messages import Prompt
from setbacks.methods import Method, example, mistake_sources, mixed, safe, share
from setbacks.methods.mistake_analysis import LEARNED, best, own_analyses
from setbacks.models.loading import load_tokenizer
from setbacks.models.thinking import thinking_of
from setbacks.prompts import Words, ask
from setbacks.recipe import Recipe, Sources, Train
from setbacks.records import Analysis, Example


class Options(Train):
    """Step 3, fine-tuning on analyses and on answers that follow one."""

    thoughts: bool = Field(
        False,
        description="True for a reasoning model: it learns the analysis as its thought before the "
        "answer, and learns both.",
    )


class MistakeAnalysisJoined(Method):
    """Analyses, and answers that follow an analysis in the same example.

    Args:
        thoughts: whether the analysis is the model's thought, and no part of the answer.
    """

    name = "mistake_analysis_joined"
    Options = Options
    uses_mistakes = True
    learns_analyses = True
    reads = (*LEARNED, "words.*.joined", "words.*.policy.guided", "policy")

    def __init__(self, thoughts: bool = False) -> None:
        self.thoughts = thoughts

    @classmethod
    def open(cls, recipe: Recipe) -> Method:
        """Make the method that a recipe describes."""
        return cls(cast(Options, recipe.train).thoughts)

    def check(self, recipe: Recipe) -> None:
        """Check that a model that is to learn thoughts has markers for them.

        Raises:
            InputError: it has none.
        """
        if self.thoughts and thinking_of(load_tokenizer(recipe.model), recipe.model) is None:
            raise InputError(
                f"train.thoughts: {recipe.model.model} does not think before it answers (its chat "
                "template has no markers of a thought, or model.template turns thinking off); name "
                "the markers in model.thinking, or set train.thoughts=false"
            )

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return ("mix.safe",)

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the analyses, joined examples for harmful and benign instructions, and the mix."""
        analyzed, refusals, contrast = own_analyses(recipe, analyses)
        joined = _joined(recipe, analyses, self.thoughts)
        balance = recipe.train.mix.contrast
        return [
            *mixed(recipe, [*analyzed, *refusals, *joined[True]]),
            *share(contrast, balance * len(analyzed or refusals), "contrast"),
            *share(joined[False], balance * len(joined[True]), "contrast"),
        ]

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        joined = [*mistake_sources(recipe), *recipe.train.safe]
        contrast = {"joined_contrast": recipe.analyze.contrast}
        return {**super().sources(recipe), "joined": joined, **contrast}

    def guided_prompt(self, words: Words, instruction: Prompt) -> Prompt:
        """Return the prompt that asks for an analysis first, then for the answer."""
        if self.thoughts:
            return super().guided_prompt(words, instruction)
        return ask(words["joined"]["prompt"], instruction)

    def more_tokens(self, recipe: Recipe) -> int:
        """Return the tokens for an analysis."""
        return 0 if self.thoughts else recipe.analyze.sampling.max_new_tokens

    def split(self, words: Words, text: str) -> tuple[str, str | None]:
        """Return the answer after the mark, and the analysis before it.

        Without the mark the model gave no separate answer, so the whole text counts as the answer.
        """
        if self.thoughts:
            return text, None
        analysis, mark, answer = text.partition(words["joined"]["answer"])
        return (answer.strip(), analysis.strip()) if mark else (text, None)


def _joined(
    recipe: Recipe, analyses: Sequence[Analysis], thoughts: bool
) -> dict[bool, list[Example]]:
    """Return the joined examples of harmful instructions (True) and of benign ones (False)."""
    chosen = [analysis for analysis in best(analyses) if analysis.kind != "refusal"]
    answers = {x.instruction: x for x in safe(recipe, MistakeAnalysisJoined.name)}
    harmful = {analysis.instruction for analysis in chosen if analysis.harmful}
    by_label: dict[bool, list[Example]] = {True: [], False: []}
    for analysis in chosen:
        # Skip benign answers to harmful instructions: those have safe answers.
        if not analysis.harmful and analysis.instruction in harmful | answers.keys():
            continue
        if analysis.harmful and analysis.instruction not in answers:
            continue
        answer = answers[analysis.instruction].completion if analysis.harmful else analysis.response
        words = recipe.words_for(analysis.language)
        verdict = words["verdict"]["harmful" if analysis.harmful else "harmless"]
        thought = f"{verdict} {analysis.text}"
        kind = "joined" if analysis.harmful else "joined_contrast"
        parents = [analysis.id, analysis.response_id]
        if thoughts:
            made = example(kind, analysis.instruction, answer, parents, thought=thought)
        else:
            text = f"{thought}\n\n{words['joined']['answer']} {answer}"
            prompt = ask(words["joined"]["prompt"], analysis.instruction)
            made = example(kind, prompt, text, parents, verdict=verdict)
        by_label[analysis.harmful].append(made)
    return by_label
