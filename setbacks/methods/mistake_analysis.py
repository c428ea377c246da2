"""Mistake analysis, the paper's method (arXiv 2310.10477, section 3.2).

The model learns T given (X, Y) under a neutral question. The verdict in the prompt that guided the
analysis is left out, so that the model cannot copy it. Helpful data keeps the model helpful.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from setbacks.methods import Method, answers, example, mixed, share
from setbacks.prompts import fill
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example

# The words around an analysis that is learned.
LEARNED = ("words.*.unguided", "words.*.verdict")


class MistakeAnalysis(Method):
    """Unguided-analysis fine-tuning."""

    name = "mistake_analysis"
    uses_mistakes = True
    learns_analyses = True
    reads = LEARNED

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the best analysis of every mistake, and the recipe's mix."""
        analyzed, contrast = own_analyses(recipe, analyses)
        mix = recipe.train.mix
        return [
            *mixed(recipe, analyzed),
            *share(contrast, mix.contrast * len(analyzed)),
            *share(answers("safe", recipe.train.safe), mix.safe * len(analyzed)),
        ]


def own_analyses(
    recipe: Recipe, analyses: Iterable[Analysis]
) -> tuple[list[Example], list[Example]]:
    """Return an example for the best analysis of each mistake, and of each benign response."""
    train = recipe.train
    by_label: dict[bool, list[Example]] = {True: [], False: []}
    for chosen in best(analyses, filtered=train.analyses != "unfiltered"):
        label = "harmful" if chosen.harmful else "harmless"
        words = recipe.words_for(chosen.language, broken=chosen.category)
        question = words["unguided"] if train.question == "unguided" else words["analyze"][label]
        prompt = fill(question, instruction=chosen.instruction, response=chosen.response)
        verdict = words["verdict"][label] if train.verdict == "first" else None
        text = f"{verdict} {chosen.text}" if verdict else chosen.text
        kind = "analysis" if chosen.harmful else "contrast"
        parents = [chosen.id, chosen.response_id]
        by_label[chosen.harmful].append(example(kind, prompt, text, parents, verdict=verdict))
    if train.analyses == "shuffled":
        by_label = {label: _shuffled(rows) for label, rows in by_label.items()}
    wanted = len(by_label[True]) if train.most_analyses is None else train.most_analyses
    return share(by_label[True], wanted), by_label[False]


def _shuffled(rows: list[Example]) -> list[Example]:
    """Give each example the completion of another: a control that teaches nothing."""
    rows = sorted(rows, key=lambda row: row.id)
    others = rows[1:] + rows[:1]
    return [
        example(
            row.kind,
            row.instruction,
            other.completion,
            [*row.parents, *other.parents],
            verdict=other.verdict,
        )
        for row, other in zip(rows, others, strict=True)
    ]


def best(analyses: Iterable[Analysis], filtered: bool = True) -> list[Analysis]:
    """Return the best analysis of each response, of those that passed every check, or of all."""
    chosen: dict[str, Analysis] = {}
    for analysis in analyses:
        if analysis.passed or not filtered:
            rival = chosen.get(analysis.response_id)
            rank = (-analysis.score, analysis.candidate)
            if rival is None or rank < (-rival.score, rival.candidate):
                chosen[analysis.response_id] = analysis
    return list(chosen.values())
