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
from setbacks.methods.mistake_analysis import LEARNED, own_analyses
from setbacks.models.loading import load_tokenizer
from setbacks.models.thinking import thinking_of
from setbacks.prompts import Words, ask
from setbacks.recipe import Recipe, Sources, Train
from setbacks.records import Analysis, Example, same_prompt


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
        both = _joined(recipe, analyses, [*analyzed, *contrast], self.thoughts)
        joined = [row for row in both if row.kind == "joined"]
        benign = [row for row in both if row.kind == "joined_contrast"]
        balance = recipe.train.mix.contrast
        return [
            *mixed(recipe, [*analyzed, *refusals, *joined]),
            *share(contrast, balance * len(analyzed or refusals), "contrast"),
            *share(benign, balance * len(joined), "contrast"),
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
    recipe: Recipe, analyses: Sequence[Analysis], own: Sequence[Example], thoughts: bool
) -> list[Example]:
    """Join an answer to each example of an analysis.

    Args:
        recipe: the recipe.
        analyses: all of them.
        own: examples of analyses, of harmful and of benign responses: what the recipe selects or
            shuffles holds for joined examples, too.
        thoughts: whether the analysis is the model's thought.

    Returns:
        No example for a mistake whose instruction has no safe answer, nor for a benign response to
        a harmful instruction.
    """
    by_id = {analysis.id: analysis for analysis in analyses}
    # Copies of a prompt may differ in line ends or in Unicode form.
    answers = {same_prompt(x.instruction): x for x in safe(recipe, MistakeAnalysisJoined.name)}
    asked = answers.keys() | {same_prompt(x.instruction) for x in analyses if x.harmful}
    joined = []
    for row in own:
        # Its parents are an analysis and its response; a shuffled one then has those of another.
        analysis, shown = by_id[row.parents[0]], by_id[row.parents[-2]]
        key = same_prompt(analysis.instruction)
        if key not in answers if analysis.harmful else key in asked:
            continue
        answer = answers[key].completion if analysis.harmful else analysis.response
        kind = "joined" if analysis.harmful else "joined_contrast"
        words = recipe.words_for(analysis.language)
        verdict = words["verdict"]["harmful" if analysis.harmful else "harmless"]
        thought = f"{verdict} {shown.text}"
        if thoughts:
            prompt = analysis.instruction
            joined.append(example(kind, prompt, answer, row.parents, thought=thought))
        else:
            text = f"{thought}\n\n{words['joined']['answer']} {answer}"
            prompt = ask(words["joined"]["prompt"], analysis.instruction)
            joined.append(example(kind, prompt, text, row.parents, verdict=verdict))
    return joined
