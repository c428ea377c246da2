"""Critique-Revise (arXiv 2212.08073, section 3.1): rewrite a mistake after its critique.

The critique is the analysis of step 2; the model itself writes the revision. A refused safe request
is put right in the same way, by a revision that does not refuse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from setbacks.judges.refusal import phrases_of, refuses
from setbacks.methods import (
    CHOICE_OF_ANALYSES,
    LEARNING_OF_ANALYSES,
    Method,
    example,
    mistake_sources,
    mixed,
    refusal_sources,
    share_of_refusals,
)
from setbacks.methods.mistake_analysis import best
from setbacks.prompts import fill
from setbacks.recipe import Recipe, Sources
from setbacks.records import (
    Analysis,
    Completion,
    Example,
    Request,
    Revision,
    Setback,
    digest,
)
from setbacks.runs.session import planned
from setbacks.text import words_of

if TYPE_CHECKING:
    from setbacks.runs.session import Session

_FEWEST_WORDS = 4
_WORDS: dict[Setback, str] = {"harmful": "revise", "refusal": "revise_refusal"}
_KINDS: dict[Setback, str] = {"harmful": "revision", "refusal": "refusal_revision"}


class Draft(NamedTuple):
    """One revision to generate."""

    id: str
    analysis: Analysis


class CritiqueRevise(Method):
    """Supervised fine-tuning on the model's own revisions of its mistakes."""

    name = "critique_revise"
    uses_mistakes = True
    outputs = ("revisions.jsonl",)
    reads = ("words.*.revise", "words.*.revise_refusal", "words.*.refusal")

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return ("safe", *CHOICE_OF_ANALYSES, *LEARNING_OF_ANALYSES)

    def prepare(self, run: Session, analyses: Sequence[Analysis]) -> Sequence[Revision]:
        """Generate a revision of every mistake that has an analysis, sampled as analyses are."""
        recipe = run.recipe
        engine = run.engine(recipe.model)
        phrases = phrases_of(recipe)
        drafts = [
            Draft(digest("revision", recipe.seed, analysis.id), analysis)
            for analysis in best(analyses)
            if analysis.label != "harmless"
        ]

        def request(draft: Draft) -> Request:
            prompt = fill(
                recipe.words_for(draft.analysis.language)[_WORDS[draft.analysis.kind]],
                instruction=draft.analysis.instruction,
                response=draft.analysis.response,
                critique=draft.analysis.text,
            )
            return Request(prompt=prompt, seed=int(draft.id, 16))

        def records(batch: Sequence[Draft], completions: Sequence[Completion]) -> list[Revision]:
            return [
                Revision(
                    id=id_,
                    analysis_id=analysis.id,
                    instruction=analysis.instruction,
                    response=analysis.response,
                    kind=analysis.kind,
                    text=completion.text,
                    passed=len(words_of(completion.text)) >= _FEWEST_WORDS
                    and completion.text != analysis.response
                    and not (analysis.kind == "refusal" and refuses(completion.text, phrases)),
                    model=engine.name,
                )
                for (id_, analysis), completion in zip(batch, completions, strict=True)
            ]

        journal = run.journal("revisions.jsonl", Revision)
        work = run.work(journal, "train", planned(engine, drafts, request), "revisions")
        for batch, completions in work.generated(
            engine, request, recipe.analyze.sampling, recipe.current
        ):
            work.commit(batch, records(batch, completions), completions)
        return journal.finish()

    def examples(self, recipe: Recipe, revisions: Sequence[Revision]) -> list[Example]:
        """Return every usable revision as the answer to its instruction, and helpful answers."""
        own: dict[Setback, list[Example]] = {kind: [] for kind in _KINDS}
        for one in revisions:
            if one.passed:
                made = example(_KINDS[one.kind], one.instruction, one.text, [one.id])
                own[one.kind].append(made)
        refusals = share_of_refusals(recipe, own["refusal"], len(own["harmful"]))
        return mixed(recipe, [*own["harmful"], *refusals])

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        return {
            "revision": mistake_sources(recipe),
            "refusal_revision": refusal_sources(recipe),
            "helpful": recipe.train.helpful,
        }
