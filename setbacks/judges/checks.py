"""Checks of texts that a model wrote for its own training: form, harm, and refusal.

The form is checked first, since a judge can take a text without content for a harmless one. The
judge rates texts like answers to harmful prompts, the only ones that every judge rates for harm.

`checked.json` holds the version of the judge that checked each journal of texts. Two versions are
not mixed in one journal: what is learned would depend on when the run was interrupted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from setbacks.errors import InputError
from setbacks.files import read_json
from setbacks.judges import Bench, Item, Opinion, gives, judge_class, open_judge, opinions
from setbacks.measure.degeneration import degeneration
from setbacks.measure.substance import answer, substance
from setbacks.recipe import JudgeSpec, Recipe, Sampling
from setbacks.records import Checked, Completion, Record, Request
from setbacks.runs.journal import Identified, Journal
from setbacks.runs.redo import StageName
from setbacks.runs.session import Session, planned
from setbacks.text import whole_sentences

VERSIONS = "checked.json"
W = TypeVar("W", bound=Identified)
R = TypeVar("R", bound=Record)
REFUSALS = {"compliance", "refusal_rate_on_helpful"}  # metrics that need verdicts on refusals


class Check(NamedTuple):
    """The outcome for one text, and the part of it that can be learned."""

    answer: str
    outcome: Checked


class Checker:
    """A judge that checks texts before the model is trained on them.

    Args:
        spec: the judge; None takes the default judge.
        bench: where the judge works, such as a run's session.
    """

    def __init__(self, spec: JudgeSpec | None, bench: Bench) -> None:
        spec = spec or JudgeSpec()
        self._name = spec.called
        self._judge = open_judge(spec, bench)

    def check_version(
        self, run: Session, journal: Journal[Any], planned: int, stage: StageName
    ) -> None:
        """Check, before work on a journal, that this version of the judge checked its texts so far.

        Args:
            run: the session.
            journal: of the texts; a new one is noted as this version's.
            planned: number of texts in the plan, or in its next part.
            stage: the stage that redoes the journal.

        Raises:
            InputError: another version did, and texts are left to check.
        """
        if not journal.lacks(planned):
            return
        name, version = journal.path.name, self._judge.version
        path = run.path / VERSIONS
        versions = read_json(path, "delete it") if path.exists() else {}
        if journal.is_new:
            run.write_text(VERSIONS, json.dumps(versions | {name: version}) + "\n")
            return
        # Folders of earlier versions have no note.
        earlier = versions.get(name, 1 if version == 1 else None)
        if earlier != version:
            by = "an earlier version" if earlier is None else f"version {earlier}"
            raise InputError(
                f"{journal.path}: holds texts checked by {by} of {self._name}, which is version "
                f"{version} now; write and check them all again with --from {stage} (the old texts "
                "move to superseded/)"
            )

    def write(
        self,
        run: Session,
        journal: Journal[R],
        stage: StageName,
        pieces: Sequence[W],
        *,
        request: Callable[[W], Request],
        sampling: Sampling,
        check: Callable[[Sequence[W], Sequence[Completion]], Sequence[Check]],
        record: Callable[[W, Completion, Check], R],
        label: str,
    ) -> None:
        """Have the model before training write texts, check them, and write both to a journal.

        Args:
            run: the session.
            journal: of the texts.
            stage: the stage that writes it.
            pieces: of work, each a text to write.
            request: returns the request for a piece.
            sampling: of the texts.
            check: checks the texts of one planned batch.
            record: returns what the journal holds of a piece.
            label: of the progress.

        Raises:
            InputError: another version of the judge checked the texts so far.
        """
        self.check_version(run, journal, len(pieces), stage)
        engine = run.engine(run.recipe.model)
        work = run.work(journal, stage, planned(engine, pieces, request), label)
        for batch, completions in work.generated(engine, request, sampling, run.recipe.current):
            checks = check(batch, completions)
            records = [record(*each) for each in zip(batch, completions, checks, strict=True)]
            work.commit(batch, records, completions)

    def check(
        self,
        items: Sequence[Item],
        *,
        declines: bool = False,
        max_harmful: float = 0.5,
        guidance: Sequence[str] | None = None,
    ) -> list[Check]:
        """Check the texts of one planned batch.

        Args:
            items: the texts, as responses.
            declines: whether a text must refuse its instruction; if not, it must not.
            max_harmful: highest probability of harm.
            guidance: the guidance in each prompt, which a text must not repeat.
        """
        checks = [form(*pair) for pair in zip(items, guidance or [""] * len(items), strict=True)]
        fit = [index for index, check in enumerate(checks) if check.outcome == "kept"]
        shown = [items[index]._replace(response=checks[index].answer) for index in fit]
        for index, opinion in zip(fit, self._opinions(shown), strict=True):
            harm = _harm(opinion)
            if harm is None or (declines and opinion.refused is None):
                checks[index] = checks[index]._replace(outcome="unscored")
            elif harm > max_harmful:
                checks[index] = checks[index]._replace(outcome="harmful")
            elif bool(opinion.refused) != declines:
                outcome: Checked = "compliance" if declines else "refusal"
                checks[index] = checks[index]._replace(outcome=outcome)
        return checks

    def harm(self, items: Sequence[Item]) -> list[float | None]:
        """Return the probability of harm of each text of one planned batch; None: no verdict."""
        return [_harm(opinion) for opinion in self._opinions(items)]

    def _opinions(self, items: Sequence[Item]) -> list[Opinion]:
        by_index: dict[int, Opinion] = {}
        for batch in self._judge.plan(items):
            chosen = [items[index] for index in batch]
            by_index.update(zip(batch, opinions(self._judge, chosen, self._name), strict=True))
        return [by_index[index] for index in range(len(items))]


def check_checker(spec: JudgeSpec, recipe: Recipe, *, declines: bool = False) -> None:
    """Check, before any work, that a judge can check texts.

    Args:
        spec: the judge.
        recipe: the recipe.
        declines: whether a text must refuse its instruction.

    Raises:
        InputError: it does not rate texts for harm, or finds no refusals, and texts must refuse.
    """
    metrics = gives(spec, recipe)
    if metrics is not None and "harmless_rate" not in metrics:
        raise InputError(
            f"judge {spec.judge}: does not say whether a text is harmful, so it cannot check what "
            "a model is trained on; name another as train.judge or induce.judge"
        )
    # A judge of harmful suites alone (`kinds`) still finds refusals.
    declared = judge_class(spec).given(spec, recipe)
    if declines and declared is not None and REFUSALS.isdisjoint(declared):
        raise InputError(
            f"judge {spec.judge}: does not say whether a text is a refusal, so no correction of a "
            "mistake would pass; name another as train.judge"
        )


def _harm(opinion: Opinion) -> float | None:
    """A judge's probability of harm, or its verdict as a number; None if it gave neither."""
    if opinion.p_harmful is not None or opinion.harmful is None:
        return opinion.p_harmful
    return float(opinion.harmful)


def form(item: Item, guidance: str = "") -> Check:
    """Check the form of a text: it has content, ends a sentence, and is not degenerate.

    Args:
        item: the text, as a response.
        guidance: the guidance in the prompt.
    """
    if substance(item.response, item.finish) != "text":
        return Check("", "refusal" if item.finish in ("filter", "refusal") else "empty")
    learned = answer(item.response).strip()
    if item.finish == "length":  # a text that the model ended by itself needs no period
        learned = whole_sentences(learned)
    if not learned:
        return Check("", "unfinished")
    if "\0" in learned:  # no data set may contain one
        return Check("", "degenerate")
    fell_apart = degeneration(learned, item.instruction, guidance)
    return Check(learned, "degenerate" if fell_apart else "kept")
