"""Step 5, measure: every judge of the recipe gives a verdict on every response.

A judge with `thoughts: true` also gives one on every thought, in a journal apart, since a harmless
answer can follow a harmful thought.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from setbacks.errors import InputError, SetbacksError
from setbacks.judges import Item, Judge, gives, judge_class, open_judge, opinions, weights_of_judge
from setbacks.measure.substance import part
from setbacks.recipe import JudgeSpec, Recipe
from setbacks.records import Response, Verdict, digest
from setbacks.runs.journal import read
from setbacks.runs.redo import Redo, Stage
from setbacks.runs.session import Session
from setbacks.runs.weights import check_weights, have_changed
from setbacks.stages.answers import labels
from setbacks.stages.checks import check_judge_and_model, keys_of_judge
from setbacks.stages.respond import unchanged_arms


class Case(NamedTuple):
    """One response for one judge to rate."""

    id: str
    item: Item


def judge(
    run: Session, responses: Mapping[str, Sequence[Response]]
) -> dict[tuple[str, str], Sequence[Verdict]]:
    """Return every judge's verdicts, and labels that came with answers, by arm and judge.

    Args:
        run: the session.
        responses: what each arm answered.

    Raises:
        InputError: the recipe names an unknown judge, or an answer is not judged yet and the others
            were judged by another version of the judge; or its model or heads have changed since.
    """
    verdicts = labels(run, responses)
    for spec in run.recipe.judges:
        opened = open_judge(spec, run)
        for arm, answered in responses.items():
            verdicts[arm, spec.called] = judge_items(run, spec, opened, arm, map(item_of, answered))
            if spec.thoughts:
                judge_items(run, spec, opened, arm, _thoughts(answered), thoughts=True)
    return verdicts


def judge_items(
    run: Session,
    spec: JudgeSpec,
    judge: Judge,
    arm: str,
    items: Iterable[Item],
    *,
    thoughts: bool = False,
) -> Sequence[Verdict]:
    """Return one judge's verdicts on those items of one arm that are of the judge's kinds.

    Args:
        run: the session.
        spec: names the judge, and the kinds of prompts that it rates.
        judge: the open judge.
        arm: name of the arm, used in the journal's name.
        items: the responses to judge.
        thoughts: whether the items are thoughts, so that the verdicts go to a journal apart.
    """
    kind = ("thoughts",) if thoughts else ()
    cases = [
        Case(digest("verdict", *kind, spec.called, item.id), item)
        for item in items
        if item.kind in spec.kinds
    ]
    metrics = gives(spec, run.recipe)
    plan = judge.plan([case.item for case in cases])
    batches = [[cases[index] for index in batch] for batch in plan]
    journal = run.journal(
        f"thoughts/{arm}.{spec.called}.jsonl"
        if thoughts
        else f"verdicts/{arm}.{spec.called}.jsonl",
        Verdict,
    )
    check_weights(run, "judge", [journal.path], weights_of_judge(spec, run.recipe))
    if journal.lacks(len(cases)):
        _check_version(run, spec, judge)
    work = run.work(journal, "judge", batches, " ".join((f"{spec.called}: {arm}", *kind)))
    for batch in work:
        work.commit(batch, weigh(judge, spec.called, metrics, batch))
    return journal.finish()


def _check_version(run: Session, spec: JudgeSpec, judge: Judge) -> None:
    """Refuse to add verdicts to those of another version: their figures cannot be compared."""
    others = {v.version for v in run.verdicts(spec.called).values()} - {judge.version}
    if others:
        raise InputError(
            f"{run.path}: holds verdicts by version {min(others)} of {spec.called}, which is "
            f"version {judge.version} now; judge all answers again with --from judge (the old "
            "verdicts move to superseded/)"
        )


def weigh(
    judge: Judge, name: str, gives: Collection[str] | None, cases: Sequence[Case]
) -> list[Verdict]:
    """Have one planned batch judged.

    Args:
        judge: the open judge.
        name: of the judge.
        gives: the metrics that it gives; None if unknown.
        cases: the batch.
    """
    verdicts = opinions(judge, [case.item for case in cases], name, gives)
    return [
        Verdict(
            id=case.id,
            response_id=case.item.id,
            judge=name,
            version=judge.version,
            **opinion._asdict(),
        )
        for case, opinion in zip(cases, verdicts, strict=True)
    ]


def item_of(response: Response) -> Item:
    """Return a response as a judge reads it."""
    return Item(
        response.id,
        response.instruction,
        response.text,
        response.kind,
        response.language,
        response.reference,
        response.finish,
    )


def _thoughts(responses: Iterable[Response]) -> Iterator[Item]:
    """Yield the thoughts of responses, in the place of their answers."""
    for response in responses:
        if thought := response.thought or part(response.text)[0]:
            yield item_of(response)._replace(response=thought, finish=None, reference=None)


def check(recipe: Recipe) -> None:
    """Look up the judges and their models.

    Raises:
        InputError: a judge is not known, or lacks what it needs, or its model cannot be used.
    """
    for spec in recipe.judges:
        check_judge_and_model(spec)


def _more_keys(recipe: Recipe) -> tuple[str, ...]:
    """What the judges read of the recipe, and the template of a model that they ask."""
    read = [key for spec in recipe.judges for key in keys_of_judge(spec)]
    asked = [
        spec.engine or recipe.model for spec in recipe.judges if judge_class(spec).needs_engine
    ]
    templates = ("words.*.alpaca",) if any(x.chat_template == "alpaca" for x in asked) else ()
    return (*read, *templates)


def _stays(redo: Redo) -> list[str]:
    """People's labels stay while the answers do, and verdicts that would be the same stay, too."""
    if redo.first == "judge":
        return ["*.human.jsonl"]
    arms, called = unchanged_arms(redo), [spec.called for spec in redo.recipe.judges]
    same = not redo.changes(STAGE) and all(_gives_the_same(redo, arm) for arm in arms)
    return [f"{arm}.{name}.jsonl" for arm in arms for name in ("human", *(called if same else ()))]


def _gives_the_same(redo: Redo, arm: str) -> bool:
    """Whether the verdicts on an arm are by the present versions and weights of all judges."""
    for spec in redo.recipe.judges:
        name = f"verdicts/{arm}.{spec.called}.jsonl"
        try:
            versions = {verdict.version for verdict in read(redo.folder / name, Verdict)}
        except SetbacksError:  # damaged: set aside like the others
            return False
        used = weights_of_judge(spec, redo.recipe)
        if not versions <= {judge_class(spec).version} or have_changed(redo.folder, name, used):
            return False
    return True


STAGE = Stage(
    "judge",
    outputs=("verdicts", "thoughts"),
    stays=_stays,
    keys=("judges",),
    check=check,
    evaluates=True,
    more_keys=_more_keys,
)
