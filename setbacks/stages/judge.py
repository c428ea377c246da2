"""Step 5, measure: every judge of the recipe gives a verdict on every response."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from setbacks.judges import Item, Judge, Opinion, open_judge
from setbacks.records import Response, Verdict, digest
from setbacks.runfolder import RunFolder
from setbacks.stages.answers import labels


class Case(NamedTuple):
    """One response before one judge."""

    id: str
    item: Item
    answered: bool  # False: a server never gave it


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
        for arm, answered in responses.items():
            cases = [
                Case(
                    digest("verdict", spec.called, response.id),
                    _item(response),
                    response.finish != "failed",
                )
                for response in answered
                if response.kind in spec.kinds
            ]
            plan = opened.plan([case.item for case in cases])
            batches = [[cases[index] for index in batch] for batch in plan]
            journal = run.journal(f"verdicts/{arm}.{spec.called}.jsonl", Verdict)
            work = run.work(journal, "judge", batches, f"{spec.called}: {arm}")
            for batch in work:
                work.commit(batch, _weigh(opened, spec.called, batch))
            verdicts[arm, spec.called] = journal.finish()
    return verdicts


def _weigh(judge: Judge, name: str, cases: Sequence[Case]) -> list[Verdict]:
    """Have one batch judged; of a response that a server never gave, nobody has an opinion."""
    given = [case for case in cases if case.answered]
    opinions = judge.judge([case.item for case in given]) if given else []
    found = {case.id: opinion for case, opinion in zip(given, opinions, strict=True)}
    return [
        Verdict(
            id=case.id,
            response_id=case.item.id,
            judge=name,
            **found.get(case.id, Opinion())._asdict(),
        )
        for case in cases
    ]


def _item(response: Response) -> Item:
    return Item(
        response.id,
        response.instruction,
        response.text,
        response.kind,
        response.language,
        response.reference,
    )
