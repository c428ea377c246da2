"""Mistake analysis joined to the answer: analyze the mistake first, then answer without it.

Our method. In the paper, p(T | Y, X) shapes an answer implicitly (arXiv 2310.10477, section 3.3).
Here one example has both, so that the answer is conditioned on an explicit analysis: (X) -> T, then
a safe answer. The guided arm uses the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setbacks.messages import Prompt
from setbacks.methods import Method, example, mistake_sources, mixed, safe, share
from setbacks.methods.mistake_analysis import LEARNED, best, own_analyses
from setbacks.prompts import Words, ask
from setbacks.recipe import Recipe, Sources
from setbacks.records import Analysis, Example


class MistakeAnalysisJoined(Method):
    """Analyses, and answers that follow an analysis in the same example."""

    name = "mistake_analysis_joined"
    uses_mistakes = True
    learns_analyses = True
    reads = (*LEARNED, "words.*.joined", "words.*.policy.guided", "policy")

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the analyses, joined examples for harmful and benign instructions, and the mix."""
        analyzed, contrast = own_analyses(recipe, analyses)
        joined = _joined(recipe, analyses)
        balance = recipe.train.mix.contrast
        return [
            *mixed(recipe, [*analyzed, *joined[True]]),
            *share(contrast, balance * len(analyzed)),
            *share(joined[False], balance * len(joined[True])),
        ]

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        joined = [*mistake_sources(recipe), *recipe.train.safe]
        contrast = {"joined_contrast": recipe.analyze.contrast}
        return {**super().sources(recipe), "joined": joined, **contrast}

    def guided_prompt(self, words: Words, instruction: Prompt) -> Prompt:
        """Return the prompt that asks for an analysis first, then for the answer."""
        return ask(words["joined"]["prompt"], instruction)

    def more_tokens(self, recipe: Recipe) -> int:
        """Return the tokens for an analysis."""
        return recipe.analyze.sampling.max_new_tokens

    def split(self, words: Words, text: str) -> tuple[str, str | None]:
        """Return the answer after the mark, and the analysis before it.

        Without the mark the model gave no separate answer, so the whole text counts as the answer.
        """
        analysis, mark, answer = text.partition(words["joined"]["answer"])
        return (answer.strip(), analysis.strip()) if mark else (text, None)


def _joined(recipe: Recipe, analyses: Sequence[Analysis]) -> dict[bool, list[Example]]:
    """Return the joined examples of harmful instructions (True) and of benign ones (False)."""
    chosen = best(analyses)
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
        text = f"{verdict} {analysis.text}\n\n{words['joined']['answer']} {answer}"
        prompt = ask(words["joined"]["prompt"], analysis.instruction)
        kind = "joined" if analysis.harmful else "joined_contrast"
        by_label[analysis.harmful].append(
            example(kind, prompt, text, [analysis.id, analysis.response_id], verdict=verdict)
        )
    return by_label
