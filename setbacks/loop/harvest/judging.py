"""Every different answer in the logs is redacted and judged; only the verdicts are stored."""

from __future__ import annotations

from collections.abc import Sequence

from setbacks.data.languages import language_of
from setbacks.judges import Item, Judge, gives, weights_of_judge
from setbacks.loop.harvest.settings import ARM, SCANNED, Settings
from setbacks.loop.harvest.survey import Survey
from setbacks.records import Response, Verdict, digest
from setbacks.runs.session import Session
from setbacks.runs.weights import check_weights
from setbacks.stages.judge import Case, item_of, weigh


def scan(run: Session, opened: Judge, survey: Survey, settings: Settings) -> Sequence[Verdict]:
    """Judge every answer, and return the verdicts; only they are stored.

    Raises:
        InputError: the judge's weights have changed since the first verdict.
    """
    (spec,) = run.recipe.judges
    metrics = gives(spec, run.recipe)
    journal = run.journal(SCANNED, Verdict)
    check_weights(run, None, [journal.path], weights_of_judge(spec, run.recipe))

    def redacted(case: Case) -> Case:
        item = case.item
        if settings.redactor is not None:
            prompt, answer = settings.redactor(item.instruction, item.response)
            item = item._replace(instruction=prompt, response=answer)
        return case._replace(item=item)

    for chunk in survey.chunks():
        cases = [
            Case(
                digest("verdict", spec.called, id_),
                Item(
                    f"{id_:016x}",
                    logged.prompt,
                    logged.answer,
                    language=language_of(logged.language, logged.prompt, run.recipe.language),
                ),
            )
            for id_, logged in chunk
        ]
        plan = opened.plan([case.item for case in cases])
        batches = [[cases[index] for index in batch] for batch in plan]
        work = run.work(journal, "judge", batches, "the logs", len(survey.times))
        for batch in work:
            verdicts = weigh(opened, spec.called, metrics, [redacted(case) for case in batch])
            # A judge's own words can repeat what it read.
            work.commit(batch, [v.model_copy(update={"raw": None}) for v in verdicts])
    return journal.finish()


def adopt(
    run: Session, opened: Judge, responses: Sequence[Response], verdicts: Sequence[Verdict]
) -> None:
    """Write the verdicts of the scan as those on the candidates, as judging them again would."""
    (spec,) = run.recipe.judges
    adopted = [
        verdict.model_copy(update={"id": digest("verdict", spec.called, r.id), "response_id": r.id})
        for r, verdict in zip(responses, verdicts, strict=True)
    ]
    journal = run.journal(f"verdicts/{ARM}.{spec.called}.jsonl", Verdict)
    check_weights(run, "judge", [journal.path], weights_of_judge(spec, run.recipe))
    plan = opened.plan([item_of(r) for r in responses])
    for batch in journal.pending([[adopted[index] for index in batch] for batch in plan]):
        journal.commit(batch, batch)
    journal.finish()
