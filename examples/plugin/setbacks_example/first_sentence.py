"""First sentence: mistake analysis that learns only the first sentences of each analysis."""

import re
from collections.abc import Mapping, Sequence

from pydantic import Field

from setbacks.methods import Method, example, mistake_sources, mixed
from setbacks.methods.mistake_analysis import best
from setbacks.prompts import fill
from setbacks.recipe import Recipe, Sources, Train
from setbacks.records import Analysis, Example, Record, digest


class Options(Train):
    """Step 3, fine-tuning on first sentences."""

    excerpt_length: int = Field(1, ge=1, description="Sentences of each analysis to learn.")


class Excerpt(Record):
    """The beginning of an analysis."""

    analysis_id: str
    question: str
    text: str


class FirstSentence(Method):
    """Teaches the first sentences of the best analysis of each response."""

    name = "first_sentence"
    Options = Options
    uses_mistakes = True
    learns_analyses = True  # the model's own verdicts are read before and after training
    outputs = ("excerpts.jsonl",)  # redoing the training sets it aside

    def prepare(self, run, analyses: Sequence[Analysis]) -> Sequence[Excerpt]:
        """Shorten the analyses, and save the excerpts in a journal of the run."""
        excerpts = [
            Excerpt(
                id=digest("excerpt", one.id),
                analysis_id=one.id,
                question=_question(run.recipe, one),
                text=_first(one.text, run.recipe.train.excerpt_length),
            )
            for one in best(analyses)
        ]
        journal = run.journal("excerpts.jsonl", Excerpt)
        journal.write(excerpts)
        return journal.finish()

    def examples(self, recipe: Recipe, excerpts: Sequence[Excerpt]) -> list[Example]:
        """Return an example for each excerpt, and helpful answers."""
        own = [example("excerpt", one.question, one.text, [one.analysis_id]) for one in excerpts]
        return mixed(recipe, own)

    def sources(self, recipe: Recipe) -> Mapping[str, Sources]:
        """Return the sources of each kind of example."""
        return {"excerpt": mistake_sources(recipe), "helpful": recipe.train.helpful}


def _question(recipe: Recipe, analysis: Analysis) -> str:
    """Return the neutral question of training, in the language of the response."""
    words = recipe.words_for(analysis.language)
    return fill(words["unguided"], instruction=analysis.instruction, response=analysis.response)


def _first(text: str, sentences: int) -> str:
    return " ".join(re.split(r"(?<=[.!?])\s", text)[:sentences])
