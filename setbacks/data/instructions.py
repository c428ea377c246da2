"""Instructions from sources, each text once."""

from __future__ import annotations

from collections.abc import Iterable

from setbacks.data.languages import language_of
from setbacks.data.source import Source
from setbacks.data.sources import load, load_having
from setbacks.notices import notice
from setbacks.records import Instruction, digest, in_bulk


@in_bulk()
def instructions(
    sources: Iterable[Source], answered_for: str | None = None, language: str = "en"
) -> list[Instruction]:
    """Load the instructions of several sources, each text once.

    Args:
        sources: to load, in order.
        answered_for: what needs an answer to each, for messages; None if nothing does.
        language: of the rows that name none; "auto" recognizes it by their text.

    Raises:
        InputError: a source is missing, invalid or empty, or lacks the answers that are needed.
    """
    by_id: dict[str, Instruction] = {}
    for source in sources:
        rows = load_having(source, answered_for, "answer") if answered_for else load(source)
        before = len(by_id)
        for row in rows:
            id_ = digest("instruction", row.text)
            # If there is a response, the label is about the response.
            harmful = row.harmful if row.response is None else None
            spoken = language_of(row.language, row.text, language)
            instruction = Instruction(
                id_, row.text, row.answer, row.category, spoken, row.source, harmful
            )
            by_id.setdefault(id_, instruction)
        if repeats := len(rows) - (len(by_id) - before):
            notice(
                f"{source.source}: left out {repeats} of {len(rows)} rows that repeat an "
                "earlier instruction"
            )
    return list(by_id.values())
