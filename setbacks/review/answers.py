"""The answers that reviewers see: a run's responses, blinded, each (instruction, response) once.

An `Answer` does not include the arm, the suite or a judge's verdict, and its id is a digest of only
what was asked and answered, so the page does not reveal which model wrote it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from setbacks.errors import InputError
from setbacks.measure.substance import part
from setbacks.messages import Prompt
from setbacks.records import Response, digest, same_prompt
from setbacks.runs.results import read_plan
from setbacks.text import same_text

if TYPE_CHECKING:
    from setbacks.runs.folder import Run


class Answer(NamedTuple):
    """One answer to label; `responses` are the ids of all responses with the same text.

    Their thoughts may differ: a label is about the answer.
    """

    id: str
    instruction: Prompt
    text: str
    language: str
    category: str | None  # for the analysis of labels; the page does not show it
    scored: bool  # whether it answers a prompt of a helpful suite, so that a score is required
    responses: tuple[str, ...]
    thoughts: tuple[str, ...] = ()  # before the text, apart from it

    @property
    def parted(self) -> tuple[tuple[str, ...], str]:
        """The thoughts and the answer, also where a thought is at the beginning of the text."""
        if self.thoughts:
            return self.thoughts, self.text
        thought, answer = part(self.text)
        return (thought,) if thought else (), answer


class Batch(NamedTuple):
    """All the answers of a run, and where their labels belong."""

    answers: dict[str, Answer]
    by_response: dict[str, str]  # response id -> answer id
    by_text: dict[tuple[str, str], list[str]]  # (instruction, response), loosely -> answer ids
    arms: dict[str, list[str]]  # arm -> response ids, in the order of its file
    planned: dict[str, float]  # response id -> probability with which the plan drew it, in order
    seed: int


def answer_id(instruction: Prompt, text: str) -> str:
    """Return the id of an answer, which depends only on what was asked and answered."""
    return digest("answer", instruction, text)


def loosely(instruction: Prompt, text: str) -> tuple[str, str]:
    """Return a key that is equal for copies of an answer, even with changed line ends.

    For a conversation, its transcript is a copy too.
    """
    return same_prompt(instruction), same_text(text)


def collect(run: Run) -> Batch:
    """Return the answers of a run to label.

    Args:
        run: the open run folder.

    Raises:
        InputError: there are no responses yet, or the plan is invalid or of another run.
    """
    responses = run.responses()
    if not any(responses.values()):
        raise InputError(f"{run.path}: no responses to label; run `setbacks respond RUN` first")
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
        InputError: the plan names an unknown response.
    """
    groups: dict[tuple[Prompt, str], list[Response]] = {}
    for rows in responses.values():
        for r in rows:
            groups.setdefault((r.instruction, r.text), []).append(r)
    answers = [
        Answer(
            id=answer_id(instruction, text),
            instruction=instruction,
            text=text,
            language=same[0].language,
            category=same[0].category,
            scored=any(r.kind == "helpful" for r in same),
            responses=tuple(r.id for r in same),
            thoughts=tuple(dict.fromkeys(r.thought for r in same if r.thought)),
        )
        for (instruction, text), same in groups.items()
    ]
    by_response = {response: answer.id for answer in answers for response in answer.responses}
    by_text: dict[tuple[str, str], list[str]] = {}
    for answer in answers:
        by_text.setdefault(loosely(answer.instruction, answer.text), []).append(answer.id)
    if strange := [response for response in planned if response not in by_response]:
        raise InputError(
            f"review/plan.json: plans {strange[0]}, which is not an answer of this run; create it "
            "again with `setbacks review plan RUN`"
        )
    return Batch(
        answers={answer.id: answer for answer in answers},
        by_response=by_response,
        by_text=by_text,
        arms={arm: [r.id for r in rows] for arm, rows in responses.items()},
        planned=dict(planned),
        seed=seed,
    )


def queue(batch: Batch, reviewer: str) -> list[Answer]:
    """Return all answers in the order in which a reviewer sees them.

    Planned answers come first, in the plan's order; the others follow in an order that is fixed for
    each reviewer.
    """
    first = dict.fromkeys(batch.by_response[response] for response in batch.planned)
    others = sorted(
        batch.answers.keys() - first.keys(),
        key=lambda answer: digest("queue", batch.seed, reviewer, answer),
    )
    return [batch.answers[answer] for answer in [*first, *others]]


def shared(batch: Batch, share: float) -> set[str]:
    """Return the answers that every reviewer labels.

    Args:
        batch: all the answers.
        share: of the answers, in [0, 1]; the choice depends only on the seed and the texts.
    """
    return {answer for answer in batch.answers if _uniform(batch.seed, answer) < share}


def known(batch: Batch, names: Iterable[str]) -> None:
    """Check that answers belong to this run.

    Raises:
        InputError: one does not.
    """
    for name in names:
        if name not in batch.answers:
            raise InputError(f"answer {name!r:.60} is not in this run; nothing was changed")


def _uniform(seed: int, answer: str) -> float:
    """Return a number in [0, 1) that depends only on the seed and the answer."""
    return float(int(digest("shared", seed, answer), 16) / 2**64)
