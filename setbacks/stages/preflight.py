"""Before step 3: what can training be expected to do?

The model's own verdict on responses (`setbacks.stages.introspect`) shows whether it can tell harm.
The flip rate shows what the teacher's context is worth: the share of mistakes to which it writes an
answer that can be learned if it sees nothing more, guidance, the right analysis, or the analysis of
another mistake. If the right analysis flips no more mistakes than a shuffled one, training cannot
gain from what the analyses say.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

from setbacks.judges import weights_of_judge
from setbacks.judges.checks import Check, Checker
from setbacks.measure import flip_report
from setbacks.measure.findings import flip_finding
from setbacks.methods import open_method
from setbacks.methods.corrections import (
    READS,
    TEACHER,
    CorrectionOptions,
    Draft,
    Teacher,
    best_of_each,
    shuffled,
)
from setbacks.models.fingerprint import weights_of
from setbacks.recipe import JudgeSpec, Recipe, Train
from setbacks.records import CONTEXTS, Analysis, Completion, Context, Flip, Reading, digest
from setbacks.runs.redo import Stage
from setbacks.runs.session import Session
from setbacks.runs.weights import check_weights
from setbacks.stages.checks import (
    check_judge_of_texts,
    induces,
    keys_of_judge,
)
from setbacks.stages.introspect import introspect, keys_of_readings

log = logging.getLogger(__name__)


class Preflight(NamedTuple):
    """What the preflight measured; empty where it was skipped."""

    readings: Sequence[Reading]
    flips: Sequence[Flip]


def preflight(run: Session, analyses: Sequence[Analysis], *, alone: bool = False) -> Preflight:
    """Read the model's own verdicts, and measure the flip rate if the recipe asks for it.

    Args:
        run: the session.
        analyses: every candidate analysis.
        alone: whether the run ends with this stage, as in `setbacks preflight`.
    """
    readings = introspect(run, analyses)
    option = run.recipe.preflight.flip_rate
    begun = (run.path / "flips.jsonl").exists()
    wanted = measures_flips(run.recipe) and (alone or begun or option == "always")
    return Preflight(readings, flips(run, analyses) if wanted else [])


def flips(run: Session, analyses: Sequence[Analysis]) -> Sequence[Flip]:
    """Have the teacher answer the instructions of mistakes in every context; check the answers.

    Args:
        run: the session.
        analyses: every candidate analysis.

    Raises:
        InputError: the model or the judge has changed since the first answers.
    """
    recipe, teacher = run.recipe, Teacher(run.recipe, _options(run.recipe))
    used = weights_of(recipe.model, recipe.current) | weights_of_judge(recipe.train.judge, recipe)
    journal = run.journal("flips.jsonl", Flip)
    check_weights(run, "preflight", [journal.path], used)
    model, checker = run.engine(recipe.model).name, Checker(recipe.train.judge, run)
    drafts = [*_drafts(recipe, teacher, analyses)]
    contexts = {draft.id: context for context, draft in drafts}

    def record(draft: Draft, one: Completion, check: Check) -> Flip:
        context = contexts[draft.id]
        return Flip(
            id=draft.id,
            response_id=draft.analysis.response_id,
            context=context,
            analysis_id=draft.analysis.id if context in ("analysis", "shuffled") else None,
            text=one.text,
            outcome=check.outcome,
            model=model,
        )

    checker.write(
        run,
        journal,
        "preflight",
        [draft for _, draft in drafts],
        request=Draft.request,
        sampling=teacher.options.correct,
        check=partial(teacher.check, checker),
        record=record,
        label="flip rate",
    )
    measured = journal.finish()
    finding = flip_finding(flip_report(measured))
    if finding and finding.level == "warning":
        log.warning(finding.text)
    return measured


def _drafts(
    recipe: Recipe, teacher: Teacher, analyses: Sequence[Analysis]
) -> Iterator[tuple[Context, Draft]]:
    """Yield the answers to generate: one in each context for each mistake of the sample.

    A single mistake is not answered with the analysis of another one.
    """
    sample = best_of_each(analyses)[: recipe.preflight.mistakes]
    alone = len(sample) == 1
    contexts = [context for context in CONTEXTS if not (alone and context == "shuffled")]
    for right, wrong in zip(sample, sample if alone else shuffled(sample), strict=True):
        for context in contexts:
            shown = wrong if context == "shuffled" else right
            id_ = digest("flip", recipe.seed, shown.response_id, shown.id, context)
            yield context, teacher.draft(id_, shown, context)


def _options(recipe: Recipe) -> CorrectionOptions:
    """Return how the teacher answers; for a method without one, as by default."""
    train = recipe.train
    if not isinstance(train, CorrectionOptions):
        train = Train.model_validate({"method": "mistake_distillation", "judge": train.judge})
    return cast(CorrectionOptions, train)


def measures_flips(recipe: Recipe) -> bool:
    """Whether the flip rate of a run's mistakes is measured, at least by `setbacks preflight`."""
    option = recipe.preflight.flip_rate
    if not induces(recipe) or option == "never":
        return False
    return option == "always" or open_method(recipe).has_teacher(recipe)


def check(recipe: Recipe) -> None:
    """Look up the judge of the answers, if every run of the recipe needs it.

    Raises:
        InputError: it is not known, or does not say whether a text is harmful or a refusal.
    """
    if measures_flips(recipe) and recipe.preflight.flip_rate == "always":
        check_judge_of_texts(recipe.train.judge or JudgeSpec(), recipe, declines=True)


def _keys(recipe: Recipe) -> tuple[str, ...]:
    """The words of the questions, and what the teacher sees and how its answers are judged."""
    if not measures_flips(recipe):
        return keys_of_readings(recipe)
    judge = keys_of_judge(recipe.train.judge or JudgeSpec())
    options = (f"train.{option}" for option in (*TEACHER, "judge"))
    return (*keys_of_readings(recipe), *READS, *options, *judge)


STAGE = Stage(
    "preflight",
    outputs=("preflight.jsonl", "flips.jsonl"),
    check=check,
    more_keys=_keys,
    shown={"flips.jsonl": "preflight"},
)
