"""Critique-Revise (arXiv 2212.08073, section 3.1): rewrite a mistake after its critique.

The critique is the analysis of step 2; the revision is drawn from the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from setbacks.engines import Completion, Request
from setbacks.methods import example, mixed
from setbacks.methods.mistake_analysis import best
from setbacks.prompts import fill, prompts
from setbacks.recipe import Recipe
from setbacks.records import Analysis, Example, Revision, digest

if TYPE_CHECKING:
    from setbacks.runfolder import RunFolder

_FEWEST_WORDS = 4


class CritiqueRevise:
    """Supervised fine-tuning on the model's own revisions of its mistakes."""

    name = "critique_revise"
    uses_mistakes = True
    learning_rate = 2e-4

    def prepare(self, run: RunFolder, analyses: Sequence[Analysis]) -> Sequence[Revision]:
        """Draw a revision of every mistake that has an analysis, with greedy decoding."""
        recipe = run.recipe
        engine = run.engine(recipe.model)
        chosen = [
            analysis.model_copy(update={"id": digest("revision", recipe.seed, analysis.id)})
            for analysis in best(analyses)
            if analysis.harmful
        ]

        def request(analysis: Analysis) -> Request:
            prompt = fill(
                prompts(recipe.language)["revise"],
                instruction=analysis.instruction,
                response=analysis.response,
                critique=analysis.text,
            )
            return Request(prompt=prompt, seed=int(analysis.id, 16))

        def records(batch: Sequence[Analysis], made: Sequence[Completion]) -> list[Revision]:
            return [
                Revision(
                    id=analysis.id,
                    analysis_id=analysis.response_id,
                    instruction=analysis.instruction,
                    response=analysis.response,
                    text=completion.text,
                    passed=len(completion.text.split()) >= _FEWEST_WORDS
                    and completion.text != analysis.response,
                    model=engine.name,
                )
                for analysis, completion in zip(batch, made, strict=True)
            ]

        journal, sampling = run.journal("revisions.jsonl", Revision), recipe.analyze.sampling
        run.generate(
            journal, "train", engine, chosen, request, records, sampling, label="revisions"
        )
        return journal.finish()

    def examples(self, recipe: Recipe, revisions: Sequence[Revision]) -> list[Example]:
        """Return every usable revision as the answer to its instruction, and helpful answers."""
        own = [
            example("revision", revision.instruction, revision.text, [revision.id])
            for revision in revisions
            if revision.passed
        ]
        return mixed(recipe, own)
