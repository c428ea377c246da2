"""What is asked: instructions from sources, each text once."""

from __future__ import annotations

from collections.abc import Iterable

from setbacks.data.source import Source
from setbacks.data.sources import load
from setbacks.records import Instruction, digest, in_bulk


@in_bulk()
def instructions(sources: Iterable[Source]) -> list[Instruction]:
    """Load the instructions of several sources, each text once.

    Args:
        sources: where they come from, in order.

    Raises:
        InputError: a source is missing, broken or empty.
    """
    found: dict[str, Instruction] = {}
    for source in sources:
        for row in load(source):
            id_ = digest("instruction", row.text)
            instruction = Instruction(
                id_, row.text, row.answer, row.category, row.language or "en", row.source
            )
            found.setdefault(id_, instruction)
    return list(found.values())
