"""What is asked: instructions from sources, each text once."""

from __future__ import annotations

from collections.abc import Iterable

from setbacks.data.source import Source
from setbacks.data.sources import load, load_having
from setbacks.notices import notice
from setbacks.records import Instruction, digest, in_bulk


@in_bulk()
def instructions(sources: Iterable[Source], answered_for: str | None = None) -> list[Instruction]:
    """Load the instructions of several sources, each text once.

    Args:
        sources: where they come from, in order.
        answered_for: what needs an answer to each, for messages; None where nothing does.

    Raises:
        InputError: a source is missing, broken or empty, or has no answers where they are needed.
    """
    found: dict[str, Instruction] = {}
    for source in sources:
        rows = load_having(source, answered_for, "answer") if answered_for else load(source)
        before = len(found)
        for row in rows:
            id_ = digest("instruction", row.text)
            # Beside a response, the label is of that.
            harmful = row.harmful if row.response is None else None
            instruction = Instruction(
                id_, row.text, row.answer, row.category, row.language or "en", row.source, harmful
            )
            found.setdefault(id_, instruction)
        if repeats := len(rows) - (len(found) - before):
            notice(
                f"{source.source}: left out {repeats} of {len(rows)} rows: their instruction was "
                "there already, and the first counts"
            )
    return list(found.values())
