"""What a round changed on the validation prompts, what it learned from, and what it cost."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from setbacks.data import Source, load
from setbacks.loop.rounds import traffic
from setbacks.loop.rounds.state import Round
from setbacks.measure.differences import difference
from setbacks.measure.judged import balanced
from setbacks.measure.metrics import TASKS, Key, Outcomes, by_prompt
from setbacks.measure.statistics import Difference, Estimate
from setbacks.records import Mistake, digest
from setbacks.runs.folder import Run
from setbacks.runs.results import collect


@dataclass(frozen=True)
class RoundResult:
    """One round in numbers.

    Args:
        number: of the round.
        mistakes: mistakes that it learned from, by origin: induced, harvest, stream.
        before: balanced safety of the current model on the validation prompts.
        after: that of the model that the round trained.
        change: the difference of the two.
        failed: prompts that the current model failed.
        fixed: those of them that the new model does not fail.
        new: prompts that only the new model fails; those that came back are not among them.
        came_back: prompts that only the new model fails of the two, and an earlier one failed, too.
        newly_refused: safe prompts that the new model refuses, and the current one did not.
        tokens: that were generated or trained on.
        seconds: that it took.
        money: that servers charged.
    """

    number: int
    mistakes: dict[str, int]
    before: Estimate
    after: Estimate
    change: Difference
    failed: int
    fixed: int
    new: int
    came_back: int
    newly_refused: int
    tokens: int
    seconds: float
    money: float


def results(folder: Path, rounds: Sequence[Round]) -> dict[int, RoundResult]:
    """Return each round that was run in numbers, by its number."""
    table = {}
    known: set[Key] = set()  # prompts that a model failed before
    for one in rounds:
        run = Run(folder / one.name) if (folder / one.name / "recipe.yaml").exists() else None
        if run is not None:
            before, after = _outcomes(run)
            table[one.number] = _result(folder, one, run, before, after, known)
            known |= _failures(before)
    return table


def _result(
    folder: Path,
    one: Round,
    run: Run,
    before: Outcomes,
    after: Outcomes,
    known: Collection[Key],
) -> RoundResult:
    old, new = _failures(before), _failures(after)
    broken = new - old
    costs = [cost for place in _runs(folder, one, run) for cost in place.costs()]
    return RoundResult(
        number=one.number,
        mistakes=_mistakes(folder, one, run),
        before=balanced(before),
        after=balanced(after),
        change=difference(after, before, "balanced_safety"),
        failed=len(old),
        fixed=len(old - new),
        new=len(broken - set(known)),
        came_back=len(broken & set(known)),
        newly_refused=len(_failures(after, "compliance") - _failures(before, "compliance")),
        tokens=sum(cost["tokens"] for cost in costs),
        seconds=round(sum(cost["seconds"] for cost in costs), 1),
        money=round(sum(cost.get("money", 0.0) for cost in costs), 4),
    )


def _outcomes(run: Run) -> tuple[Outcomes, Outcomes]:
    """Return what the first judge says of the unguided answers before and after a round."""
    responses, verdicts = collect(run)
    judge = run.recipe.judges[0].called
    by_trained = {
        arm.trained: by_prompt(
            responses[arm.name],
            {verdict.response_id: verdict for verdict in verdicts[arm.name, judge]},
        )
        for arm in run.arms()
        if arm.way == "unguided"
    }
    return by_trained[False], by_trained[True]


def _failures(outcomes: Outcomes, *metrics: str) -> set[Key]:
    """Return the prompts that a model failed: a harmful answer, a refusal, or no answer at all."""
    return {
        prompt
        for metric in metrics or TASKS
        for prompt, passed in outcomes[metric].items()
        if not passed
    }


def _mistakes(folder: Path, one: Round, run: Run) -> dict[str, int]:
    """Count the mistakes that a round learned from, by where they came from."""
    failures = traffic.failures_of(folder, one.number)
    streamed = set()
    if failures.exists() and failures.stat().st_size:
        rows = load(Source(source=str(failures)))
        streamed = {digest("existing", row.text, row.response) for row in rows}
    counts = {"induced": 0, "harvest": 0, "stream": 0}
    for mistake in run.records("mistakes.jsonl", Mistake):
        if mistake.outcome == "mistake":
            taken = "stream" if mistake.id in streamed else "harvest"
            counts["induced" if mistake.model else taken] += 1
    return counts


def _runs(folder: Path, one: Round, run: Run) -> list[Run]:
    """Return the runs of a round: its traffic, if there was any, and the round itself."""
    place = traffic.folder_of(folder, one.number)
    return [*([Run(place)] if (place / "recipe.yaml").exists() else []), run]
