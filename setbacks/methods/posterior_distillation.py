"""Posterior distillation: learn the answers that posterior decoding chooses.

Our method. A model that has learned p(T | Y, X) can tell which of its own drafts is harmless
(`setbacks.engines.own_verdict`). To need no drafts at inference, the model is trained on its
choices, as in rejection sampling (arXiv 2304.06767), with its own verdict in place of a reward
model, or a probe of its hidden states (`setbacks.methods.states_probe`). `train.start`, or else
`adapter`, names the adapter that drafts and judges, and from which training starts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from setbacks.data.instructions import instructions
from setbacks.engines.own_verdict import drafts
from setbacks.engines.states import StatesProbe
from setbacks.errors import InputError
from setbacks.measure.substance import substance
from setbacks.methods import USE_OF_MISTAKES, Method, example, mixed
from setbacks.methods.states_probe import states_probe
from setbacks.recipe import Posterior, Recipe, Sources
from setbacks.records import Analysis, Choice, Example, Instruction, Request, digest
from setbacks.runs.session import planned

if TYPE_CHECKING:
    from setbacks.runs.session import Session


class PosteriorDistillation(Method):
    """Supervised fine-tuning on the model's own choice among its drafts."""

    name = "posterior_distillation"
    outputs = ("choices.jsonl", "probe.jsonl")
    reads: ClassVar[tuple[str, ...]] = (
        "respond.posterior",
        "respond.sampling",
        "words.*.unguided",
        "words.*.spoken",
        "words.*.verdict",
    )

    @classmethod
    def open(cls, recipe: Recipe) -> PosteriorDistillation:
        """Make the method; a probe of the states needs mistakes."""
        return RankedByStates() if _posterior(recipe).rank_by == "states" else cls()

    def unused(self, recipe: Recipe) -> Sequence[str]:
        """Return the keys of `train` that change nothing in this method."""
        return ("safe", *USE_OF_MISTAKES)

    def _probe(self, run: Session) -> StatesProbe | None:
        """Return the probe to rank drafts by; None: rank by the spoken verdict."""
        return None

    def prepare(self, run: Session, analyses: Sequence[Analysis]) -> Sequence[Choice]:
        """Generate drafts of an answer to every red-team instruction, and rank them."""
        recipe, probe = run.recipe, self._probe(run)
        posterior = _posterior(recipe)
        engine = run.engine(recipe.model)
        questions = [
            x._replace(id=digest("choice", recipe.seed, x.id))
            for x in instructions(recipe.instructions, language=recipe.language)
        ]

        def request(x: Instruction) -> Request:
            return Request(x.text, seed=int(x.id, 16))

        journal = run.journal("choices.jsonl", Choice)
        work = run.work(journal, "train", planned(engine, questions, request), "drafts")
        for batch in work:
            requests, languages = [*map(request, batch)], [x.language for x in batch]
            ranked_drafts = drafts(
                engine, recipe, posterior, requests, languages, recipe.start, probe
            )
            records = [
                Choice(
                    id=x.id,
                    instruction=x.text,
                    drafts=[draft.completion.text for draft in ranked],
                    p_harmful=[round(draft.p_harmful, 6) for draft in ranked],
                    model=engine.name,
                )
                for x, ranked in zip(batch, ranked_drafts, strict=True)
            ]
            completions = (draft.completion for ranked in ranked_drafts for draft in ranked)
            work.commit(batch, records, completions)
        return journal.finish()

    def examples(self, recipe: Recipe, choices: Sequence[Choice]) -> list[Example]:
        """Return the best draft for every instruction, and helpful answers."""
        if recipe.start is None:
            raise InputError(
                "train.method posterior_distillation needs train.start: the adapter of a run that "
                "learned to judge, such as runs/NAME/adapter"
            )
        own = [
            example("choice", choice.instruction, choice.drafts[0], [choice.id])
            for choice in choices
            if substance(choice.drafts[0]) == "text"
        ]
        return mixed(recipe, own)

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of the examples of each kind."""
        return {"choice": recipe.instructions, "helpful": recipe.train.helpful}


class RankedByStates(PosteriorDistillation):
    """The same, with drafts ranked by a probe that is fitted on the run's mistakes."""

    name = PosteriorDistillation.name
    title = PosteriorDistillation.title
    uses_mistakes = True
    reads = ("respond.posterior", "respond.sampling")

    def _probe(self, run: Session) -> StatesProbe:
        model, probes = run.recipe.model.model, run.journal("probe.jsonl", StatesProbe)
        return states_probe(run, "train", probes, model, run.recipe.start)


def _posterior(recipe: Recipe) -> Posterior:
    return recipe.respond.posterior or Posterior()
