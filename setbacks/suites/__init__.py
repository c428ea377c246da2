"""What is asked: instructions from sources, and suites of prompts with what is expected of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from setbacks.records import Instruction, digest, in_bulk
from setbacks.sources import Source, load


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
            # Beside a response, the label is of that.
            harmful = row.harmful if row.response is None else None
            instruction = Instruction(
                id_, row.text, row.answer, row.category, row.language or "en", row.source, harmful
            )
            found.setdefault(id_, instruction)
    return list(found.values())


def distinct(words: Sequence[str], n: int = 3) -> float:
    """Return the share of distinct n-grams in a text; 0 where it is shorter than one.

    Source: distinct-n, Li et al. (2016), arXiv 1510.03055.
    """
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def words_of(text: str) -> list[str]:
    """Split into lower-case words, and into single characters where words are not spaced."""
    unspaced = "\u0e00-\u0e7f\u3040-\u30ff\u4e00-\u9fff"
    return re.findall(rf"[{unspaced}]|(?:(?![{unspaced}_])[\w'’])+", text.lower())
