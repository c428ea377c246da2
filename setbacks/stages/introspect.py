"""The model's own verdict on responses, before and after training.

Before training this is the preflight check: if the model's verdict is near chance, it cannot teach
itself anything yet, and hours of training will not change that (arXiv 2310.10477, section 3: it
must judge better than it generates). After training it shows whether the model has learned to
analyze, or only a phrase.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from setbacks.engines.own_verdict import Question, question, says_first, verdicts
from setbacks.measure import spoken
from setbacks.measure.findings import near_chance
from setbacks.methods import open_method
from setbacks.models.fingerprint import weights_of
from setbacks.recipe import Recipe, Sampling
from setbacks.records import Analysis, Reading, Request, digest
from setbacks.runs.redo import Stage, StageName
from setbacks.runs.session import Session, planned
from setbacks.runs.weights import check_weights

log = logging.getLogger(__name__)

SAMPLE = 48  # of each kind; takes a minute on two cores, and gives the AUC to about 0.1


class Asked(NamedTuple):
    """One response to be read, and the question that asks for it."""

    id: str
    question: Question
    subject: Analysis


def introspect(
    run: Session, analyses: Sequence[Analysis], adapter: Path | None = None
) -> Sequence[Reading]:
    """Have the model read mistakes and benign responses under the neutral question.

    Skipped if the method learns no analyses, or the engine gives no probabilities.

    Args:
        run: the session.
        analyses: every candidate analysis; they contain the responses.
        adapter: folder of the trained adapter, which also writes analyses; None before training.

    Raises:
        InputError: the model has changed since the first readings.
    """
    engine = run.engine(run.recipe.model)
    if not open_method(run.recipe).learns_analyses or not engine.shows_probabilities:
        return []
    recipe = run.recipe
    weights = adapter or recipe.current
    stage: StageName = "introspect" if adapter else "preflight"
    journal = run.journal("introspection.jsonl" if adapter else "preflight.jsonl", Reading)
    # The adapter that this run trained is redone together with its readings.
    used = weights_of(recipe.model, None if adapter else recipe.current)
    check_weights(run, stage, [journal.path], used)
    questions = [
        Asked(
            digest("reading", stage, x.response_id),
            question(recipe.words_for(x.language), x.instruction, x.response),
            x,
        )
        for x in chosen(analyses)
    ]
    first = says_first(recipe, weights)
    sampling = Sampling(max_new_tokens=recipe.analyze.sampling.max_new_tokens)

    work = run.work(
        journal, stage, planned(engine, questions, lambda x: Request(x.question.text, 0))
    )
    for batch in work:
        shares = verdicts(engine, [x.question for x in batch], weights, first)
        requests = [Request(x.question.text, seed=int(x.id, 16)) for x in batch]
        written = engine.generate(requests, sampling, adapter) if adapter else []
        texts = [completion.text for completion in written] or [None] * len(batch)
        records = [
            Reading(
                id=x.id,
                response_id=x.subject.response_id,
                harmful=x.subject.harmful,
                kind=x.subject.kind,
                p_harmful=round(share, 6),
                text=text,
            )
            for x, share, text in zip(batch, shares, texts, strict=True)
        ]
        work.commit(batch, records, written)
    readings = journal.finish()
    if adapter is None and (warning := near_chance(spoken(readings))):
        log.warning(warning)
    return readings


def chosen(analyses: Sequence[Analysis]) -> list[Analysis]:
    """Choose responses of each kind, first those whose analyses training will not see.

    Args:
        analyses: every candidate; one is used for each response.
    """
    learned = {x.response_id for x in analyses if x.passed}
    by_response = {x.response_id: x for x in analyses}
    order = sorted(by_response.values(), key=lambda x: (x.response_id in learned, x.response_id))
    return [
        x
        for label in ("harmful", "harmless", "refusal")
        for x in [y for y in order if y.label == label][:SAMPLE]
    ]


def keys_of_readings(recipe: Recipe) -> tuple[str, ...]:
    """Return the words of the questions, as the model before training is asked."""
    if recipe.evaluate or not open_method(recipe).learns_analyses:
        return ()
    return "words.*.unguided", "words.*.spoken"


STAGE = Stage(
    "introspect",
    outputs=("introspection.jsonl",),
    more_keys=lambda recipe: (*keys_of_readings(recipe), "words.*.verdict"),
)
