"""Mistake analysis joined to the answer: think of the mistake first, then answer without it.

Ours. In the paper, what was learnt of p(T | Y, X) is to shape an answer without ever being said
(arXiv 2310.10477, section 3.3). Here one sample holds both, so that the answer is conditioned on
the analysis in plain sight: (X) -> T, then a safe answer. The arm with guidance is asked that way.
"""

from __future__ import annotations

from collections.abc import Sequence

from setbacks.methods import example, mixed, safe, share
from setbacks.methods.mistake_analysis import best, own_analyses
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example


class MistakeAnalysisJoined:
    """Analyses, and answers that follow an analysis in the same sample."""

    name = "mistake_analysis_joined"
    uses_mistakes = True
    learns_analyses = True
    thinks_first = True
    learning_rate = 2e-4

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the analyses, joined samples for harmful and benign instructions, and the mix."""
        analysed, contrast = own_analyses(recipe, analyses)
        joined = _joined(recipe, analyses)
        balance = recipe.train.mix.contrast
        return [
            *mixed(recipe, [*analysed, *joined[True]]),
            *share(contrast, balance * len(analysed)),
            *share(joined[False], balance * len(joined[True])),
        ]


def _joined(recipe: Recipe, analyses: Sequence[Analysis]) -> dict[bool, list[Example]]:
    """Return the joined samples of harmful instructions (True) and of benign ones (False)."""
    words, chosen = prompts(recipe.language), best(analyses)
    answers = {x.prompt[0].content: x for x in safe(recipe, MistakeAnalysisJoined.name)}
    harmful = {analysis.instruction for analysis in chosen if analysis.harmful}
    made: dict[bool, list[Example]] = {True: [], False: []}
    for analysis in chosen:
        # A benign answer to a harmful instruction is a safe answer: its harm was the mistake's.
        if not analysis.harmful and analysis.instruction in harmful | answers.keys():
            continue
        if analysis.harmful and analysis.instruction not in answers:
            continue
        answer = answers[analysis.instruction].completion if analysis.harmful else analysis.response
        verdict = words["verdict"]["harmful" if analysis.harmful else "harmless"]
        text = f"{verdict} {analysis.text}\n\n{words['joined']['answer']} {answer}"
        prompt = fill(words["joined"]["prompt"], instruction=analysis.instruction)
        kind = "joined" if analysis.harmful else "joined_contrast"
        made[analysis.harmful].append(
            example(kind, prompt, text, [analysis.id, analysis.response_id], verdict=verdict)
        )
    return made
