"""Mistake analysis, the paper's method (arXiv 2310.10477, section 3.2).

The model learns T given (X, Y) under a neutral question. The verdict in the prompt that guided the
analysis is left out, so that the model cannot copy it. Helpful data keeps the model helpful.

Ours: the analysis of a refused safe request is learned under the same question. It begins with the
verdict "harmless" and goes on to say why it was wrong to refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from setbacks.errors import InputError
from setbacks.methods import Method, answers, example, mixed, share, share_of_refusals
from setbacks.prompts import fill
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example, Label

T = TypeVar("T")

# The words around an analysis that is learned.
LEARNED = ("words.*.unguided", "words.*.verdict")


class MistakeAnalysis(Method):
    """Unguided-analysis fine-tuning."""

    name = "mistake_analysis"
    uses_mistakes = True
    learns_analyses = True
    reads = LEARNED

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return () if recipe.train.mix.safe else ("safe",)

    def examples(self, recipe: Recipe, analyses: Sequence[Analysis]) -> list[Example]:
        """Return the best analysis of every mistake, and the recipe's mix."""
        analyzed, refusals, contrast = own_analyses(recipe, analyses)
        own, mix = [*analyzed, *refusals], recipe.train.mix
        return [
            *mixed(recipe, own),
            *share(contrast, mix.contrast * len(analyzed or refusals), "contrast"),
            *share(answers("safe", recipe.train.safe), mix.safe * len(own), "safe"),
        ]


class OwnAnalyses(NamedTuple):
    """Examples of analyses: of harmful mistakes, of refused safe requests, of benign responses."""

    harmful: list[Example]
    refusals: list[Example]
    contrast: list[Example]


KINDS: dict[Label, str] = {
    "harmful": "analysis",
    "refusal": "refusal_analysis",
    "harmless": "contrast",
}


def own_analyses(recipe: Recipe, analyses: Iterable[Analysis]) -> OwnAnalyses:
    """Return an example for the best analysis of each mistake, and of each benign response."""
    train = recipe.train
    by_label: dict[Label, list[Example]] = {label: [] for label in KINDS}
    for chosen in best(analyses, filtered=train.analyses != "unfiltered"):
        words = recipe.words_for(chosen.language, broken=chosen.category)
        guided = words["analyze"][chosen.label]
        question = words["unguided"] if train.question == "unguided" else guided
        prompt = fill(question, instruction=chosen.instruction, response=chosen.response)
        spoken = words["verdict"]["harmful" if chosen.harmful else "harmless"]
        verdict = spoken if train.verdict == "first" else None
        text = f"{verdict} {chosen.text}" if verdict else chosen.text
        parents = [chosen.id, chosen.response_id]
        by_label[chosen.label].append(
            example(KINDS[chosen.label], prompt, text, parents, verdict=verdict)
        )
    if train.analyses == "shuffled":
        by_label = {label: _shuffled(rows) for label, rows in by_label.items()}
    wanted = len(by_label["harmful"]) if train.most_analyses is None else train.most_analyses
    harmful = share(by_label["harmful"], wanted)
    refusals = share_of_refusals(recipe, by_label["refusal"], len(harmful))
    return OwnAnalyses(harmful, list(refusals), by_label["harmless"])


def _shuffled(rows: list[Example]) -> list[Example]:
    """Give each example the completion of another: a control that teaches nothing."""
    rows = sorted(rows, key=lambda row: row.id)
    return [
        example(
            row.kind,
            row.instruction,
            other.completion,
            [*row.parents, *other.parents],
            verdict=other.verdict,
        )
        for row, other in zip(rows, others(rows), strict=True)
    ]


def others(rows: Sequence[T]) -> list[T]:
    """Return another row for each row, to give its analysis as a control.

    Raises:
        InputError: there is only one.
    """
    if len(rows) == 1:
        raise InputError(
            "train.analyses: shuffled takes the analysis of another response of the same kind "
            "(harmful, refused or benign), and of one kind there is only one; use more data, or "
            "train.analyses=filtered"
        )
    return [*rows[1:], *rows[:1]]


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
