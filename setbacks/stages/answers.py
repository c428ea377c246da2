"""Existing answers from files, in place of a model's, and the labels that come with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setbacks.data import Row, load_labels
from setbacks.errors import InputError
from setbacks.messages import Prompt, last_question
from setbacks.notices import notice
from setbacks.recipe import Evaluated, Suite
from setbacks.records import Instruction, Response, Verdict, digest, same_prompt
from setbacks.runs.session import Session


def answers(arm: Evaluated, prompts: Sequence[tuple[Suite, Instruction]]) -> dict[str, Row]:
    """Return the answers of an arm, by the id of their instruction.

    Args:
        arm: one with answers.
        prompts: the prompts of every suite.

    Raises:
        InputError: a source is missing, broken or without responses; there are two answers to one
            prompt, or none; or two labels of one answer contradict each other.
    """
    given = _Answers(arm)
    rows = {x.id: row for _, x in prompts if (row := given.to(x.id, x.text))}
    if missing := [(suite, x) for suite, x in prompts if x.id not in rows]:
        suite, example = missing[0]
        raise InputError(
            f"{arm.name}: no answer to {len(missing)} of {len(prompts)} prompts, such as "
            f'"{_short(example.text)}" of the suite {suite.name}; add them, or evaluate '
            "only the answered prompts: --suite KIND=FILE with the answers' file"
        )
    if unused := len(given) - len({id(row) for row in rows.values()}):
        notice(f"{arm.name}: left out {unused} answers to prompts of no suite")
    return rows


def labels(
    run: Session, responses: Mapping[str, Sequence[Response]]
) -> dict[tuple[str, str], Sequence[Verdict]]:
    """Store people's labels that came with the answers as verdicts of the judge "human".

    They are written once. The labels of a review page, which replace them, stay.

    Args:
        run: the session.
        responses: by arm.

    Returns:
        The labels of each arm that has some, by arm and judge.

    Raises:
        InputError: the labels in the files have changed since they were stored.
    """
    verdicts_by_arm: dict[tuple[str, str], Sequence[Verdict]] = {}
    for arm in run.recipe.evaluate:
        name = f"verdicts/{arm.name}.human.jsonl"
        there = run.records(name, Verdict)
        is_new = not (run.path / name).exists()
        if arm.answers and (is_new or _from_files(there)):
            given = _given(arm, responses[arm.name])
            if is_new and given:
                (run.path / "verdicts").mkdir(mode=0o700, exist_ok=True)
                run.write_text(name, "".join(v.model_dump_json() + "\n" for v in given))
                there = given
            elif _choices(there) != _choices(given):
                raise InputError(
                    f"{run.path / name}: the labels in the answers' file have changed since this "
                    "file was written from them; move this file away to use the new labels, or "
                    "restore the old ones"
                )
        if there:
            verdicts_by_arm[arm.name, "human"] = there
    return verdicts_by_arm


def _given(arm: Evaluated, responses: Sequence[Response]) -> list[Verdict]:
    """Return the labels in the files of an arm, as verdicts."""
    given = _Answers(arm)
    return [
        Verdict(
            id=_id(response.id),
            response_id=response.id,
            judge="human",
            harmful=row.harmful,
            refused=row.refused,
        )
        for response in responses
        if (row := given.to(response.instruction_id, response.instruction))
        and (row.harmful is not None or row.refused is not None)
    ]


def _id(response: str) -> str:
    return digest("verdict", "human", response)


def _from_files(labels: Sequence[Verdict]) -> bool:
    """Whether the labels came with the answers: those of a page have a text, others their own ids.

    A page whose labels were all undone leaves none.
    """
    return bool(labels) and all(v.id == _id(v.response_id) and v.raw is None for v in labels)


def _choices(labels: Sequence[Verdict]) -> set[tuple[str, bool | None, bool | None]]:
    return {(label.response_id, label.harmful, label.refused) for label in labels}


class _Answers:
    """The answers of an arm, looked up by prompt.

    A prompt that passed through a spreadsheet or another system may have other line endings,
    trailing spaces or another Unicode form, and still counts as the same prompt. An exact copy
    is preferred.
    """

    def __init__(self, arm: Evaluated) -> None:
        self.name = arm.name
        self._exact: dict[str, Row] = {}
        self._loose: dict[str, list[Row]] = {}
        for source in arm.answers:
            for row in load_labels(source, needs=(), strict=True, blank=True):
                if self._exact.setdefault(digest("instruction", row.text), row) is not row:
                    raise InputError(
                        f'{source.source}: two answers to one prompt ("{_short(row.text)}"); keep '
                        "one, or set unique: true on the source to take the first of each"
                    )
                self._loose.setdefault(same_prompt(row.text), []).append(row)

    def __len__(self) -> int:
        return len(self._exact)

    def to(self, id_: str, prompt: Prompt) -> Row | None:
        """Return the answer to a prompt; None where there is none.

        Args:
            id_: id of the instruction.
            prompt: its text.

        Raises:
            InputError: several prompts with answers differ only in line endings or spaces.
        """
        if id_ in self._exact:
            return self._exact[id_]
        rows = self._loose.get(same_prompt(prompt), [])
        if len(rows) > 1:
            raise InputError(
                f'{self.name}: two answers to one prompt, "{_short(prompt)}", whose copies differ '
                "only in line endings or trailing spaces; keep one"
            )
        return rows[0] if rows else None


def _short(prompt: Prompt) -> str:
    return last_question(prompt)[:60]
