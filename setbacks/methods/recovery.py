"""Recovery: an answer that begins like a mistake, and is then put right.

A model that has begun to comply tends to go on, since safety training changes mostly the first
tokens of an answer (arXiv 2406.05946). Examples that recover from a bad beginning make it deeper
(arXiv 2409.14586, 2510.00938). The beginning is given: only what puts it right is learned.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from os.path import commonprefix
from typing import Any

from setbacks.measure.substance import answer
from setbacks.methods import example, share
from setbacks.models.loading import load_tokenizer
from setbacks.models.tokens import plain
from setbacks.recipe import Recipe
from setbacks.records import Correction, Example, digest
from setbacks.text import is_unspaced

SHORTEST, LONGEST = 8, 24  # tokens of a mistake that are given


def recoveries(
    recipe: Recipe,
    learned: Sequence[Example],
    corrections: Sequence[Correction],
    wanted: float,
) -> list[Example]:
    """Make examples that begin like a mistake and continue with its correction.

    Args:
        recipe: names the model, with the tokenizer, and the seed.
        learned: examples of the corrections that are learned.
        corrections: all of them.
        wanted: examples per correction; several for one differ in where the mistake is cut.
    """
    if not wanted or not learned:
        return []
    ids = {parent for each in learned for parent in each.parents}
    chosen = [one for one in corrections if one.id in ids]
    tokenizer = load_tokenizer(recipe.model)
    made = {
        each.id: each
        for number in range(math.ceil(wanted))
        for each in _cut(tokenizer, recipe.seed, chosen, number)
    }
    return share(made.values(), wanted * len(chosen))


def _cut(
    tokenizer: Any, seed: int, corrections: Sequence[Correction], number: int
) -> Iterator[Example]:
    """Yield an example for each correction of a mistake that is long enough to be cut."""
    for one in corrections:
        drawn = int(digest("recovery", seed, one.id), 16) + SHORTEST * number  # cuts lie apart
        tokens = SHORTEST + drawn % (LONGEST - SHORTEST + 1)
        given = beginning(tokenizer, answer(one.response).strip(), tokens)
        if given:
            space = "" if is_unspaced(given[-1]) else " "
            text = f"{given}{space}{one.answer}"
            yield example("recovery", one.instruction, text, [one.id], given=given)


def beginning(tokenizer: Any, text: str, tokens: int) -> str:
    """Return the whole words among the first tokens of a text; "" if the text is hardly longer.

    Args:
        tokenizer: a transformers tokenizer.
        text: any text.
        tokens: how many.
    """
    ids = plain(tokenizer, text)
    if len(ids) <= SHORTEST:
        return ""
    begun: str = commonprefix([text, tokenizer.decode(ids[: min(tokens, len(ids) - 1)])])
    follows = text[len(begun) : len(begun) + 1]
    if follows and not follows.isspace() and not is_unspaced(follows):
        begun = re.sub(r"\S+\Z", "", begun)  # the last word is cut
    return begun.rstrip()
