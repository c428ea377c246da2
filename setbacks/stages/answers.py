"""Answers that are there already: from files, in place of a model's; and the labels beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from setbacks.errors import InputError
from setbacks.recipe import Evaluated, Suite
from setbacks.records import Instruction, Response, Verdict, digest
from setbacks.runfolder import RunFolder
from setbacks.sources import Row, load_labels


def answers(arm: Evaluated, asked: Sequence[tuple[Suite, Instruction]]) -> dict[str, Row]:
    """Return the answers of an arm, by the id of the instruction that each is to.

    Args:
        arm: one with answers.
        asked: the prompts of every suite.

    Raises:
        InputError: a source is missing, broken or without responses; there are two answers to one
            prompt, or none; or two labels of one answer contradict each other.
    """
    found = _read(arm)
    if missing := [(suite, x) for suite, x in asked if x.id not in found]:
        suite, example = missing[0]
        raise InputError(
            f"{arm.name}: no answer to {len(missing)} of {len(asked)} prompts, such as "
            f'"{_short(example.text)}" of the suite {suite.name}; add them, or ask what was '
            "answered alone: --suite KIND=FILE with the answers' file"
        )
    return found


def labels(
    run: RunFolder, responses: Mapping[str, Sequence[Response]]
) -> dict[tuple[str, str], Sequence[Verdict]]:
    """Keep people's labels that came with the answers, as verdicts of the judge "human".

    They are written once: what a review adds to them later stays.

    Args:
        run: the open run folder.
        responses: by arm.

    Returns:
        By arm and judge, the labels of the arms that have some.
    """
    made: dict[tuple[str, str], Sequence[Verdict]] = {}
    for arm in run.recipe.evaluate:
        name = f"verdicts/{arm.name}.human.jsonl"
        if arm.answers and not (run.path / name).exists():
            found = _read(arm)
            verdicts = [
                Verdict(
                    id=digest("verdict", "human", response.id),
                    response_id=response.id,
                    judge="human",
                    harmful=row.harmful,
                    refused=row.refused,
                )
                for response in responses[arm.name]
                if (row := found[response.instruction_id]).harmful is not None
                or row.refused is not None
            ]
            if verdicts:
                (run.path / "verdicts").mkdir(mode=0o700, exist_ok=True)
                lines = "".join(verdict.model_dump_json() + "\n" for verdict in verdicts)
                run.write_text(name, lines)
        if there := run.records(name, Verdict):
            made[arm.name, "human"] = there
    return made


def _read(arm: Evaluated) -> dict[str, Row]:
    found: dict[str, Row] = {}
    for source in arm.answers:
        for row in load_labels(source, needs=(), strict=True, blank=True):
            if found.setdefault(digest("instruction", row.text), row) is not row:
                raise InputError(
                    f'{source.source}: two answers to one prompt ("{_short(row.text)}"); keep one, '
                    "or set unique: true on the source to take the first of each"
                )
    return found


def _short(text: str) -> str:
    return " ".join(text.split())[:60]
