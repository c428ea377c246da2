"""What reviewers are shown: a run's responses, blinded, each (instruction, response) pair once.

An `Answer` says nothing of the arm, the suite or a judge's verdict, and its id is a digest of the
two texts alone, so nothing on the page tells which model wrote it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from setbacks.errors import InputError
from setbacks.records import Response, digest
from setbacks.text import same_text

if TYPE_CHECKING:
    from setbacks.runs.folder import Run


class Answer(NamedTuple):
    """One answer to be labelled; `responses` are the ids of all that read the same."""

    id: str
    instruction: str
    text: str
    language: str
    category: str | None  # for those who analyse the labels; the page does not show it
    scored: bool  # it answers a prompt of a helpful suite, so its score is asked for
    responses: tuple[str, ...]


class Batch(NamedTuple):
    """All the answers of a run, and where their labels belong."""

    answers: dict[str, Answer]
    by_response: dict[str, str]  # response id -> answer id
    by_text: dict[tuple[str, str], list[str]]  # (instruction, response), loosely -> answer ids
    arms: dict[str, list[str]]  # arm -> response ids, in the order of its file
    planned: dict[str, float]  # response id -> probability with which the plan drew it, in order
    seed: int


def answer_id(instruction: str, text: str) -> str:
    """Return the id of an answer: the same for the same two texts, whoever wrote them."""
    return digest("answer", instruction, text)


def loosely(instruction: str, text: str) -> tuple[str, str]:
    """Return what two copies of an answer share, though a spreadsheet has changed line ends."""
    return same_text(instruction), same_text(text)


def collect(run: Run) -> Batch:
    """Return what there is to label in a run.

    Args:
        run: the open run folder.

    Raises:
        InputError: there are no responses yet, or the plan is broken or of other responses.
    """
    responses = run.responses()
    if not any(responses.values()):
        raise InputError(f"{run.path}: no responses to label; first `setbacks respond RUN`")
    return batch(responses, read_plan(run.path / "review" / "plan.json"), run.recipe.seed)


def batch(
    responses: Mapping[str, Sequence[Response]], planned: Mapping[str, float], seed: int
) -> Batch:
    """Group responses into answers.

    Args:
        responses: by arm.
        planned: response id -> probability, in the plan's order; empty without a plan.
        seed: of the shuffling.

    Raises:
        InputError: the plan names a response that is not there.
    """
    groups: dict[tuple[str, str], list[Response]] = {}
    for rows in responses.values():
        for r in rows:
            groups.setdefault((r.instruction, r.text), []).append(r)
    answers = [
        Answer(
            id=answer_id(*texts),
            instruction=texts[0],
            text=texts[1],
            language=same[0].language,
            category=same[0].category,
            scored=any(r.kind == "helpful" for r in same),
            responses=tuple(r.id for r in same),
        )
        for texts, same in groups.items()
    ]
    by_response = {response: answer.id for answer in answers for response in answer.responses}
    by_text: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        by_text.setdefault(loosely(answer.instruction, answer.text), []).append(answer.id)
    if strange := [response for response in planned if response not in by_response]:
        raise InputError(
            f"review/plan.json: plans {strange[0]}, which is no answer of this run; make it again "
            "with `setbacks review plan RUN`"
        )
    return Batch(
        answers={answer.id: answer for answer in answers},
        by_response=by_response,
        by_text=by_text,
        arms={arm: [r.id for r in rows] for arm, rows in responses.items()},
        planned=dict(planned),
        seed=seed,
    )


def read_plan(path: Path) -> dict[str, float]:
    """Return the probability of each planned response, in the plan's order; nothing without one.

    Raises:
        InputError: the file is no plan.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["answers"]
        found = {str(row["response_id"]): float(row["probability"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError):
        found = {}
    if not found or not all(0 < p <= 1 for p in found.values()):
        raise InputError(
            f"{path}: no plan of a review; make it again with `setbacks review plan RUN`, or "
            "move it away"
        )
    return found


def queue(batch: Batch, reviewer: str) -> list[Answer]:
    """Return all answers in the order in which a reviewer is to see them.

    Planned ones come first, in the plan's order; the others in an order of the reviewer's own, that
    is the same every time.
    """
    first = dict.fromkeys(batch.by_response[response] for response in batch.planned)
    others = sorted(
        batch.answers.keys() - first.keys(),
        key=lambda answer: digest("queue", batch.seed, reviewer, answer),
    )
    return [batch.answers[answer] for answer in [*first, *others]]


def shared(batch: Batch, share: float) -> set[str]:
    """Return the answers that every reviewer is to label.

    Args:
        batch: all the answers.
        share: how many of them, in [0, 1]; which ones follows from the seed and the texts alone.
    """
    return {answer for answer in batch.answers if _uniform(batch.seed, answer) < share}


def known(batch: Batch, names: Iterable[str]) -> None:
    """Check that answers are of this run.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if name not in batch.answers:
            raise InputError(f"no answer {name!r:.60} in this run; nothing was changed")


def _uniform(seed: int, answer: str) -> float:
    """A number in [0, 1) that follows from the seed and the answer alone."""
    return float(int(digest("shared", seed, answer), 16) / 2**64)
