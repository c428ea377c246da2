"""Step 5, measure: every judge of the recipe gives a verdict on every response."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from setbacks.judges import Item, Judge, gives, open_judge, opinions
from setbacks.records import Response, Verdict, digest
from setbacks.runs.folder import RunFolder
from setbacks.stages.answers import labels


class Case(NamedTuple):
    """One response before one judge."""

    id: str
    item: Item


def judge(
    run: RunFolder, responses: Mapping[str, Sequence[Response]]
) -> dict[tuple[str, str], Sequence[Verdict]]:
    """Return every judge's verdicts, and labels that came with answers, by arm and judge.

    Args:
        run: the open run folder.
        responses: what each arm answered.

    Raises:
        InputError: there is no judge of a name in the recipe.
    """
    verdicts = labels(run, responses)
    for spec in run.recipe.judges:
        opened = open_judge(spec, run)
        metrics = gives(spec, run.recipe)
        for arm, answered in responses.items():
            cases = [
                Case(digest("verdict", spec.called, response.id), _item(response))
                for response in answered
                if response.kind in spec.kinds
            ]
            plan = opened.plan([case.item for case in cases])
            batches = [[cases[index] for index in batch] for batch in plan]
            journal = run.journal(f"verdicts/{arm}.{spec.called}.jsonl", Verdict)
            work = run.work(journal, "judge", batches, f"{spec.called}: {arm}")
            for batch in work:
                work.commit(batch, _weigh(opened, spec.called, metrics, batch))
            verdicts[arm, spec.called] = journal.finish()
    return verdicts


def _weigh(
    judge: Judge, name: str, gives: Collection[str] | None, cases: Sequence[Case]
) -> list[Verdict]:
    """Have one batch judged."""
    said = opinions(judge, [case.item for case in cases], name, gives)
    return [
        Verdict(id=case.id, response_id=case.item.id, judge=name, **opinion._asdict())
        for case, opinion in zip(cases, said, strict=True)
    ]


def _item(response: Response) -> Item:
    return Item(
        response.id,
        response.instruction,
        response.text,
        response.kind,
        response.language,
        response.reference,
        response.finish,
    )
